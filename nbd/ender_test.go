package nbd

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// endingDevice is a device that ends when end is closed.
type endingDevice struct {
	*memDevice
	end chan struct{}
}

var _ Ender = endingDevice{}

func (d endingDevice) Done() <-chan struct{} { return d.end }

// TestDeviceEnds: clients of a device that ends are cut off, idle ones and ones
// that wait for an answer, and nobody else; the device is released.
func TestDeviceEnds(t *testing.T) {
	dev := endingDevice{newMemDevice(1 << 20), make(chan struct{})}
	hold := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(hold) })
	var entered atomic.Bool
	dev.before = func(op string, _, _ int64) error {
		if op == "write" {
			entered.Store(true)
			<-hold
		}
		return nil
	}
	exports := memExports{"v": {dev: dev}, "other": {dev: newMemDevice(1 << 20)}}
	s, tcp, unix := startServer(t, Options{Exports: exports})
	t.Cleanup(letGo)
	idle := enter(t, "tcp", tcp, "v", simpleReplies, false)
	waiting := enter(t, "unix", unix, "v", simpleReplies, false)
	other := enter(t, "unix", unix, "other", simpleReplies, false)
	for i, c := range []*rawClient{idle, other} { // they are served
		c.write(rawRequest(0, 0, cmdRead, uint64(i), 0, 512, nil))
		c.reply(512)
	}
	waiting.write(rawRequest(0, 0, cmdWrite, 7, 0, 512, make([]byte, 512)))
	waitFor(t, "the write to reach the device", entered.Load)
	close(dev.end)
	idle.closed()
	waiting.closed()
	letGo()
	waitFor(t, "the release", func() bool { return exports["v"].closes.Load() == 2 })
	other.write(rawRequest(0, 0, cmdRead, 9, 0, 512, nil))
	if r := other.reply(512); r.cookie != 9 || r.err != eOK {
		t.Errorf("another device's client: reply to %d, %v", r.cookie, r.err)
	}
	if n := s.Stats().Connections; n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// TestEndIsNoAnswer: a request that fails as the device has ended gets no answer, and those
// that fail behind it neither.
func TestEndIsNoAnswer(t *testing.T) {
	for range 10 {
		dev := endingDevice{newMemDevice(1 << 20), make(chan struct{})}
		end := sync.OnceFunc(func() { close(dev.end) })
		dev.before = func(op string, _, _ int64) error {
			if op != "write" {
				return nil
			}
			end()
			return ErrShutdown
		}
		_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
		c := enter(t, "unix", unix, "v", simpleReplies, false)
		c.write(rawRequest(0, 0, cmdRead, 1, 0, 512, nil))
		c.reply(512)
		c.write(append(rawRequest(0, 0, cmdWrite, 2, 0, 512, make([]byte, 512)), rawRequest(0, 0, cmdWrite, 3, 0, 512, make([]byte, 512))...))
		c.closed()
	}
}

// TestDisconnectLogged: a clean end says nothing of an error, whether the device
// can end or not.
func TestDisconnectLogged(t *testing.T) {
	var log bytes.Buffer // read after its writer is done
	exports := memExports{"v": {dev: endingDevice{newMemDevice(1 << 20), make(chan struct{})}}}
	_, _, unix := startServer(t, Options{Exports: exports, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	c.write(rawRequest(0, 0, cmdDisc, 0, 0, 0, nil))
	c.closed()
	waitFor(t, "the release", func() bool { return exports["v"].closes.Load() == 1 })
	if text := log.String(); !strings.Contains(text, "client disconnected") || strings.Contains(text, "err=") {
		t.Errorf("the log:\n%s", text)
	}
}
