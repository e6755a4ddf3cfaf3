package segment

import (
	"bytes"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"torus/store"
)

// A writer that comes when the open segment is full and the next one is taken,
// but not yet open, goes on when it is: no spare is wanted then, so that none
// that was made wakes it.
func TestWriterAmidRotation(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	const most = 188 // pages, more than fit in what is left and one spare
	write := func(sequence uint64, pages int64) error {
		v := store.NewVersion(2, sequence)
		page := windowEnd + int64(sequence)*most
		return s.r.Write(s.ctx, layerA, page*ps, s.bytes(page, pages, value{kind: store.Data, version: v}), v, 0)
	}
	l := m.st.log
	second := make(chan error, 1)
	var caught atomic.Bool // by who leads
	m.disk.watch(func(op, name string) {
		n, ok := parseSegmentName(name)
		if op != "writeAt" || !ok || caught.Load() {
			return
		}
		l.mu.Lock()
		opening := l.rotating && l.segs.get(n) != nil && n != l.cur.num
		l.mu.Unlock()
		if !opening {
			return
		}
		caught.Store(true)
		go func() { second <- write(5000, most) }()
		for deadline := time.Now().Add(10 * time.Second); !waitsFor("segment.(*hotLog).commit("); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Error("the second writer does not wait for room")
				return
			}
		}
	})
	for i := uint64(1000); i < 1040 && !caught.Load(); i++ {
		m.ok(write(i, 9))
	}
	m.disk.watch(nil)
	if !caught.Load() {
		t.Fatal("no segment was opened")
	}
	select {
	case err := <-second:
		m.ok(err)
	case <-time.After(10 * time.Second):
		t.Fatal("a writer waits for room that there is")
	}
}

// waitsFor tells whether a goroutine waits for a condition amid f.
func waitsFor(f string) bool {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for g := range bytes.SplitSeq(stacks, []byte("\n\n")) {
		first, rest, _ := bytes.Cut(g, []byte("\n"))
		if bytes.Contains(first, []byte("[sync.Cond.Wait")) && bytes.Contains(rest, []byte(f)) {
			return true
		}
	}
	return false
}
