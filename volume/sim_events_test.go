package volume_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"torus/store"
	"torus/volume"
)

// events count what befell the runs and what the volumes did about it: a
// simulation in which nothing happens finds nothing.
type events struct {
	mu          sync.Mutex
	count, runs map[string]int // how often, and in how many runs
	done        []int          // requests, of each run
}

func newEvents() *events { return &events{count: map[string]int{}, runs: map[string]int{}} }

// add counts a run.
func (e *events) add(w *world) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for what, n := range w.events() {
		e.count[what] += n
		e.runs[what]++
	}
	e.done = append(e.done, w.done)
}

// table shows the counts.
func (e *events) table() string {
	var b strings.Builder
	slices.Sort(e.done)
	fmt.Fprintf(&b, "%d runs, with %d to %d requests done, half of them %d or more\n%-58s %8s %8s\n",
		len(e.done), e.done[0], e.done[len(e.done)-1], e.done[len(e.done)/2], "", "times", "runs")
	for _, what := range slices.Sorted(maps.Keys(e.count)) {
		fmt.Fprintf(&b, "%-58s %8d %8d\n", what, e.count[what], e.runs[what])
	}
	return b.String()
}

// expected says in how many of 1,000 runs each of these was seen to happen, of
// seeds 1 to 2,000. How seldom the rarest are is why fewer runs are not checked.
var expected = map[string]int{
	"attach: a copy left out": 49, "attach: by force": 593, "attach: pages reconciled": 337, "attach: reborn": 296,
	"attach: serves": 1000, "attach: unflushed writes may be gone": 267,
	"client: ENOSPC": 41, "client: waits for more than 3.5 s": 757,
	"fault: a disk is full": 84, "fault: a request fails": 242, "fault: all disks are full": 78, "fault: another disk": 22,
	"fault: exporter killed": 423, "fault: exporter paused": 457, "fault: link cut": 119, "fault: link cut in one direction": 60,
	"fault: node down for long": 481, "fault: node killed": 158, "fault: page rots": 127, "fault: planned stop": 94,
	"fault: power cut": 155, "fault: power cut everywhere": 159, "fault: records away": 164,
	"lease may have run out": 44,
	"record: answer lost":    42, "record: in sync": 748, "record: late commit done": 15, "record: late commit in vain": 22,
	"record: outcome unknown": 96, "record: stale": 735, "record: stale, planned": 29,
	"record: in sync by the target": 120, "ring: dropped for a target": 120, "ring: exporter attaches anew": 125,
	"ring: node drained": 125, "ring: target given up": 75, "ring: target is the ring": 120, "ring: target set": 125,
	"resync: adopts": 705, "resync: takes back": 15, "settled is told": 1000,
	"volume: a copy answers again, nothing was missed": 214, "volume: corrupt page, reading another copy": 15,
	"volume: not recorded that a copy is away": 238, "volume: not recorded that a copy is in sync": 15,
}

// check fails a test of many runs in which something happened in less than a third
// of the share of them that it should.
func (e *events) check(t *testing.T) {
	for _, what := range slices.Sorted(maps.Keys(expected)) {
		if usual := expected[what] * len(e.done) / 1000; e.runs[what] < max(usual/3, 1) {
			t.Errorf("%q happened in %d of %d runs, usual are %d", what, e.runs[what], len(e.done), usual)
		}
	}
	if worked := e.done[len(e.done)/4]; worked < 50 {
		t.Errorf("in a quarter of the runs %d requests or fewer were done", worked)
	}
}

// happens counts something.
func (w *world) happens(what string) {
	w.noting.Lock()
	defer w.noting.Unlock()
	w.happened[what]++
}

func (w *world) events() map[string]int {
	w.noting.Lock()
	defer w.noting.Unlock()
	return maps.Clone(w.happened)
}

// silence is how long a request may wait with nothing in the volume's status that
// says why: for a few calls, one after the other, that are not answered.
const silence = 15 * time.Second

// waited counts a request that began at some time, and is answered now; status
// has to say of one that waits that it does (I9).
func (w *world) waited(s *session, what string, began time.Duration) {
	if w.now()-began > 3500*time.Millisecond {
		w.happens("client: waits for more than 3.5 s")
	}
	w.locked(func() {
		if w.now()-began > silence && s.said < began && !s.proc.isDead() {
			w.fail("I9: %s of %s waited for %v, and the volume's status didn't say so", what, s.proc.name, w.now()-began)
		}
	})
}

// simLog counts what the volume logs, and notes it where one run is looked at.
type simLog struct{ p *process }

func (l simLog) Enabled(context.Context, slog.Level) bool { return true }
func (l simLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l simLog) WithGroup(string) slog.Handler            { return l }
func (l simLog) Handle(_ context.Context, r slog.Record) error {
	l.p.w.happens("volume: " + r.Message)
	var attrs []string
	r.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a.String()); return true })
	l.p.w.trace("  %s: %s %s", l.p.name, r.Message, strings.Join(attrs, " "))
	return nil
}

// judgeError counts an error that a client gets, and fails where it should have
// been made to wait (I9).
func (w *world) judgeError(what string, err error) {
	switch {
	case errors.Is(err, volume.ErrClosed):
		w.happens("client: closed")
	case errors.Is(err, volume.ErrBroken):
		w.happens("client: broken")
	case errors.Is(err, store.ErrNoSpace) && w.with.full:
		w.happens("client: ENOSPC")
	case errors.Is(err, store.ErrCorrupt) && w.with.corrupt:
		w.happens("client: EIO, corrupt")
	default:
		w.fail("I9: %s failed: %v", what, err)
	}
}
