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
