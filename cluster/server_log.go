package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// serverLog is where etcd writes its log: it passes lines on to slog, and
// keeps etcd from ending the process.
type serverLog struct {
	to     *slog.Logger
	closed atomic.Bool // lines are dropped: a clean close warns five times

	once    sync.Once
	onFatal func()
	mu      sync.Mutex // guards reason
	reason  error
}

// newServerLog returns a log that calls onFatal, once, when etcd gives up.
func newServerLog(to *slog.Logger, onFatal func()) *serverLog {
	return &serverLog{to: to.With("part", "etcd"), onFatal: onFatal}
}

// zap returns the log as etcd wants it. Where etcd would exit or panic, its
// goroutine ends instead; closing it then hangs, so that must not be tried.
func (l *serverLog) zap() *zap.Logger {
	hook := fatalHook{l}
	return zap.New(&slogCore{log: l}, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
}

func (l *serverLog) close() { l.closed.Store(true) }

// fatal returns why etcd gave up; nil if it did not.
func (l *serverLog) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reason
}

// fatalHook ends the goroutine in which etcd gives up.
type fatalHook struct{ log *serverLog }

// OnWrite implements zapcore.CheckWriteHook.
func (h fatalHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	h.log.once.Do(func() {
		enc := zapcore.NewMapObjectEncoder()
		for _, f := range fields {
			f.AddTo(enc)
		}
		h.log.mu.Lock()
		h.log.reason = fmt.Errorf("etcd gave up: %s: %v", e.Message, enc.Fields)
		h.log.mu.Unlock()
		h.log.onFatal()
	})
	runtime.Goexit()
}

// slogCore is a zapcore.Core over slog. etcd's "info" is detail to an operator of
// Torus: it becomes debug. So does "warn", of which a member whose peer is away
// writes several lines a second; status says which node does not answer.
type slogCore struct {
	log    *serverLog
	fields []zapcore.Field
}

var slogLevels = map[zapcore.Level]slog.Level{
	zapcore.DebugLevel: slog.LevelDebug - 4, zapcore.InfoLevel: slog.LevelDebug,
	zapcore.WarnLevel: slog.LevelDebug, zapcore.ErrorLevel: slog.LevelWarn,
	zapcore.DPanicLevel: slog.LevelError, zapcore.PanicLevel: slog.LevelError, zapcore.FatalLevel: slog.LevelError,
}

// Enabled implements zapcore.LevelEnabler.
func (c *slogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.PanicLevel || !c.log.closed.Load() && c.log.to.Enabled(context.Background(), slogLevels[l])
}

// With implements zapcore.Core.
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

// Check implements zapcore.Core.
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	slices.SortFunc(attrs, func(a, b slog.Attr) int { return strings.Compare(a.Key, b.Key) })
	level := slogLevels[e.Level]
	if text, _ := enc.Fields["error"].(string); strings.HasSuffix(text, "missing term information") {
		level = slog.LevelDebug // it looks for its storage version before it has written it
	}
	c.log.to.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}

// Sync implements zapcore.Core.
func (c *slogCore) Sync() error { return nil }
