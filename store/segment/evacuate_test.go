package segment

import (
	"testing"

	"torus/store"
)

// Amid an evacuation, which may take long, the supply of segments looks again
// whether there is space.
func TestSupplyAmidEvacuation(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	v := value{kind: store.Data}
	for i := int64(0); i < 10; i++ { // more than a segment
		v.version = store.NewVersion(2, uint64(i)+1000)
		m.ok(s.r.Write(s.ctx, layerA, (windowEnd+i*32)*ps, s.bytes(windowEnd+i*32, 32, v), v.version, 0))
	}
	var victim *seg
	for _, g := range m.st.segments.all() {
		if g.sealed.Load() && g.live.Load() > 0 {
			victim = g
		}
	}
	if victim == nil {
		t.Fatal("no segment is sealed")
	}
	segs := m.st.segments
	segs.mu.Lock()
	segs.full = store.ErrNoSpace // of a moment ago
	segs.mu.Unlock()
	m.ok(m.st.evacuate(victim))
	if err := segs.exhausted(); err != nil {
		t.Errorf("after it: %v", err)
	}
}

// The file of a freed segment takes all of its space again when it becomes a
// spare, what was punched out of it too: not beyond the capacity.
func TestRecyclingKeepsToCapacity(t *testing.T) {
	m := newCrashMachine(t, 1)
	m.capacity = 8 << 20
	s := openScribe(t, m)
	s.fill()
	segs := m.st.segments
	var g *seg
	for _, g = range segs.all() {
		if g.sealed.Load() {
			break
		}
	}
	most := int64(g.used.Load()) * 3 / 4
	m.ok(g.f.punch(blockSize, most*blockSize))
	m.ok(g.measure())
	segs.mu.Lock()
	segs.capacity = segs.usedLocked() // what was given back is in use elsewhere
	segs.mu.Unlock()
	segs.drop(g.num)
	m.ok(segs.recycle(g))
	segs.removals.Wait()
	if used := segs.usedBytes(); used > segs.capacity {
		t.Errorf("%d bytes are used, of %d", used, segs.capacity)
	}
}
