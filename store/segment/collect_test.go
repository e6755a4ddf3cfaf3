package segment

import (
	"testing"
	"time"

	"torus/store"
)

// What was copied is not copied again for nothing: on a full store the collector
// rewrote segments that had only headers to lose, each time with two records in
// the log, until that was full; then nothing could be freed, nor the store opened.
func TestVictimIsWorthACopy(t *testing.T) {
	type figures struct {
		taken, live, headers int
		damaged              bool
	}
	victim := func(ratio float64, segs ...figures) segNum {
		all := map[segNum]*seg{}
		for i, f := range segs {
			g := &seg{num: segNum(i + 1)}
			g.used.Store(uint32(f.taken))
			g.live.Store(int32(f.live))
			g.headers.Store(uint32(f.headers))
			g.sealed.Store(true)
			g.damaged.Store(f.damaged)
			all[g.num] = g
		}
		if g := chooseVictim(all, ratio); g != nil {
			return g.num
		}
		return 0
	}
	for _, c := range []struct {
		name  string
		ratio float64
		segs  []figures
		want  segNum
	}{
		{"copies, full, of single pages", 1, []figures{{taken: 8057, live: 7932}}, 0},
		{"copies of nothing but holes", 1, []figures{{taken: 256, headers: 255}}, 0},
		{"copies, some dead since", 1, []figures{{taken: 8057, live: 7932}, {taken: 8057, live: 7000, headers: 125}}, 2},
		{"little to gain", 1, []figures{{taken: 65000, live: 61000}}, 0},
		{"small, and half dead", 1, []figures{{taken: 260, live: 130}}, 1},
		{"the most garbage by share", 1.15, []figures{{taken: 60000, live: 30000}, {taken: 1000, live: 100}}, 2},
		{"below the limit", 2, []figures{{taken: 60000, live: 31000}}, 0},
		{"damaged", 1, []figures{{taken: 60000, live: 100, damaged: true}}, 0},
	} {
		if got := victim(c.ratio, c.segs...); got != c.want {
			t.Errorf("%s: segment %v, want %v", c.name, got, c.want)
		}
	}
}

// Holes that hide a lower layer stay for ever: where nothing else is, collecting
// comes to an end all the same.
func TestCollectingHolesEnds(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	s.create(layerB, layerA)
	m.ok(s.err)
	const holes = 40000 // on more than one cold segment
	for i := range int64(holes) {
		m.ok(s.r.Zero(s.ctx, layerB, (windowEnd+2*i)*ps, ps, s.version(), 0))
		if i%flushDirty == 0 {
			m.ok(m.st.flush())
		}
	}
	m.ok(m.st.flush())
	now := time.Now()
	_, err := m.st.collect(now)
	m.ok(err)
	for rounds := 0; ; rounds++ {
		more, err := m.st.collect(now.Add(time.Hour))
		m.ok(err)
		if !more {
			break
		}
		if rounds == 2*holes/int(m.st.segments.blocks) {
			t.Fatalf("after %d rounds the collector goes on, %d bytes copied", rounds, m.st.stats.collected.Load())
		}
	}
	copies := 0
	for _, g := range m.st.segments.all() {
		if g.stream == cold && g.sealed.Load() {
			copies++
		}
	}
	if copies == 0 {
		t.Fatal("no cold segment is full: this shows nothing")
	}
	info := make([]store.PageInfo, 1)
	m.ok(s.r.Read(s.ctx, []store.LayerID{layerB, layerA}, windowEnd*ps, alignedBuffer(ps), info))
	if info[0].Kind != store.Hole {
		t.Errorf("a hole became %v", info[0].Kind)
	}
}
