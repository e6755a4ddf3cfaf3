package segment

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"torus/store"
)

// A rebuild of the index that fails ends the store before anybody asks the index
// that is gone; and the store can be closed.
func TestFailedRebuild(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	s.write(layerA, windowFirst, 20)
	s.sync()
	m.ok(s.err)
	// A directory can't be renamed to a link.
	if err := os.Symlink("nowhere", filepath.Join(m.dir, indexAside)); err != nil {
		t.Fatal(err)
	}
	m.st.suspect("a test")
	if err := m.st.rebuildServing(); err == nil {
		t.Fatal("the index was put aside over a link")
	}
	err := s.r.Read(s.ctx, []store.LayerID{layerA}, windowFirst*ps, alignedBuffer(ps), nil)
	if !errors.Is(err, store.ErrIncarnation) { // N2
		t.Errorf("reading after it: %v", err)
	}
	if err := m.st.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
	m.st = nil
}

// While the next segment is opened nothing is zeroed ahead in the old one, which
// may be freed, and used again, before the zeroes are on their way.
func TestNoZeroingAmidRotation(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	s.write(layerA, windowFirst, 4)
	m.ok(s.err)
	l := m.st.log
	zeroes := func(rotating bool) bool {
		l.mu.Lock()
		l.rotating, l.zeroing.often, l.zeroing.warm, l.zeroing.lastSync = rotating, 8, 0, l.off
		g, off := l.cur, l.off
		l.mu.Unlock()
		l.zeroAhead(g, off)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.rotating = false
		return l.zeroing.active || l.zeroing.warm > 0
	}
	if zeroes(true) {
		t.Error("zeroing begins amid a rotation")
	}
	if !zeroes(false) {
		t.Error("nothing is zeroed though syncs come often")
	}
	l.zeroing.running.Wait()
}
