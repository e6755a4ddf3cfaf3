package segment

import (
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
)

// spaceFor returns a store that has space for so many segments, and 80 in all.
func spaceFor(n int64) *Store {
	const size = 1 << 20
	s := newSegments(nil, 1, size, 80*size, nil)
	used := make(map[segNum]*seg)
	for i := segNum(1); int64(i) <= 80-n; i++ {
		used[i] = &seg{num: i} // not sealed: it takes all of a segment
	}
	s.table.Store(&used)
	if n == 0 {
		s.full = store.ErrNoSpace
	}
	return &Store{segments: s, stop: make(chan struct{})}
}

// The collector leaves the disk to clients for a while, also where there is but
// one that waits long for each answer; the less, the less space is left.
func TestPace(t *testing.T) {
	for _, c := range []struct {
		name  string
		space int64         // segments
		ago   time.Duration // since the last request; 0: none came
		want  time.Duration
	}{
		{"nobody asks", 40, 0, 0},
		{"a client", 40, paceUnit, yieldFactor * paceUnit},
		{"a client that waits", 40, 20 * paceUnit, yieldFactor * paceUnit},
		{"a client that is gone", 40, askedLately + paceUnit, 0},
		{"half of the space that lets it take its time", easeSegments / 2, paceUnit, yieldFactor * paceUnit / 2},
		{"no space", 0, paceUnit, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			st := spaceFor(c.space)
			st.collector.paced = time.Now()
			if c.ago > 0 {
				st.stats.reads.Add(1)
				st.pace() // sees it
			}
			time.Sleep(c.ago - paceUnit)
			st.collector.paced = time.Now()
			time.Sleep(paceUnit)
			start := time.Now()
			st.pace()
			if got := time.Since(start); got != c.want {
				t.Errorf("%s: paused for %v, want %v", c.name, got, c.want)
			}
		})
	}
}

// How much garbage may lie about depends on how much space is left.
func TestLimit(t *testing.T) {
	for _, c := range []struct {
		space int64
		rest  bool
		want  float64
	}{
		{40, false, busyRatio},
		{40, true, restRatio},
		{easeSegments / 2, false, (busyRatio + restRatio) / 2},
		{0, false, 1},
		{0, true, 1},
	} {
		if got := spaceFor(c.space).limit(c.rest); got != c.want {
			t.Errorf("space for %d segments, at rest %v: %v, want %v", c.space, c.rest, got, c.want)
		}
	}
}
