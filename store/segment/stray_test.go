package segment

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"torus/store"
)

// A copy that was made when the store was killed, and that no index knows, does
// not bring back what was dropped, and forgotten, since (I8).
func TestStrayCopies(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	s.create(layerB, 0)
	next := func() *seg { // ends the open segment
		g := m.st.log.cur
		for m.st.log.cur == g && s.err == nil {
			s.write(layerA, windowFirst+100, 20)
		}
		m.ok(s.err)
		m.ok(m.st.flush())
		return g
	}
	evacuate := func(g *seg) error {
		m.st.collector.paced = time.Now()
		m.ok(m.st.survey(g, false))
		return m.st.collector.cold.write(m.st)
	}
	s.write(layerA, windowFirst, 20)
	kept := next()
	s.write(layerB, windowFirst, 3)
	dropped := next()
	m.ok(evacuate(kept)) // a copy that lives, and keeps its segment
	m.ok(m.st.flush())
	copies := m.st.collector.cold.seg
	m.disk.breaks(func(op, name string) error {
		if op == "datasync" && name == copies.name() {
			return errCrashed
		}
		return nil
	})
	if err := evacuate(dropped); !errors.Is(err, errCrashed) {
		t.Fatalf("copying: %v", err)
	}
	m.disk.breaks(nil)
	m.end(killed)
	m.ok(m.open())

	s = &scribe{t: t, ctx: s.ctx, h: s.h, st: m.st}
	s.attach(3)
	s.dropChunk(layerB, 0)
	s.sync()
	for range 3 {
		s.work()
		next() // a rebuild begins where the log says no more of what was forgotten
	}
	if m.st.segments.get(dropped.num) != nil || m.st.segments.get(copies.num) == nil {
		t.Fatal("the dropped pages' segment is still there, or that of their copy is not")
	}
	m.end(killed)
	m.spoilIndex(indexLost)
	m.ok(m.open())
	m.ok(s.h.check(s.ctx, m.st, killed))
}

// unreadable is a file of which the disk gives nothing any more.
type unreadable struct{ file }

func (unreadable) readAt([]byte, int64, bool) error { return syscall.EIO }

// What cannot be read behind a cold segment's end may be anything, and is no
// reason not to start.
func TestUnreadableStrays(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	s.create(layerB, 0)
	m.ok(s.err)
	g, err := m.st.segments.take(cold, 0, 0)
	m.ok(err)
	whole := g.f
	g.f = unreadable{whole}
	m.st.noteStrays()
	g.f = whole
	for _, l := range []store.LayerID{layerA, layerB} {
		if !g.hasOlder(l, 1) {
			t.Errorf("segment %v states nothing of layer %v", g.num, l)
		}
	}
}
