package segment

import (
	"math/rand/v2"
	"testing"

	"torus/store"
)

// Holes that may not be forgotten are there however often the collector copies
// what lies around them: those that hide a lower layer, settled or not, and those
// that a node in sync may not have yet (I7).
func TestHolesAreKept(t *testing.T) {
	for _, over := range []bool{true, false} { // a lower layer, and settled; none, and not settled
		for seed := range uint64(4) {
			m := newCrashMachine(t, seed)
			s := openScribe(t, m)
			rng := rand.New(rand.NewPCG(seed, 11))
			head := layerA
			if over {
				head = layerB
				s.create(layerB, layerA)
				s.write(layerA, windowFirst, 100)
			}
			const fromHole, holes = windowFirst + 20, 60
			s.zero(head, 2*store.PagesPerChunk, store.PagesPerChunk)
			for round := range 6 {
				s.write(head, fromHole, holes)
				s.zero(head, fromHole, holes)
				for range 30 { // so that the segments with the holes are worth collecting
					s.write(head, windowFirst+100+rng.Int64N(60), 1+rng.Int64N(40))
				}
				s.sync()
				if over {
					s.settle(head)
				}
				s.work()
				m.ok(s.err)
				s.wantHoles(head, fromHole, holes, round)
				s.wantHoles(head, 2*store.PagesPerChunk, store.PagesPerChunk, round)
			}
		}
	}
}

// wantHoles fails unless n pages are holes of a layer.
func (s *scribe) wantHoles(l store.LayerID, page, n int64, round int) {
	s.t.Helper()
	info := make([]store.PageInfo, n)
	if err := s.r.Read(s.ctx, []store.LayerID{l}, page*ps, alignedBuffer(int(n*ps)), info); err != nil {
		s.t.Fatal(err)
	}
	for i, is := range info {
		if is.Kind != store.Hole {
			s.t.Fatalf("round %d: page %d of layer %v is %v %v", round, page+int64(i), l, is.Kind, is.Version)
		}
	}
}

// A hole that may be forgotten is kept for as long as some segment has what it
// killed: a rebuild would find that, and not the hole (I7, I8).
func TestForgottenHolesHideWhatIsLeft(t *testing.T) {
	for seed := range uint64(4) {
		m := newCrashMachine(t, seed)
		s := openScribe(t, m)
		rng := rand.New(rand.NewPCG(seed, 12))
		s.write(layerA, windowFirst, 20)
		for i := range int64(3) { // they live, so that this segment is not worth collecting
			s.write(layerA, i*80, 80)
		}
		s.zero(layerA, windowFirst, 20)
		for range 30 {
			s.write(layerA, windowFirst+100+rng.Int64N(60), 1+rng.Int64N(40))
		}
		s.sync()
		s.settle(layerA)
		s.work()
		s.work()
		m.ok(s.err)
		m.end(killed)
		m.spoilIndex(indexLost)
		m.ok(m.open())
		if err := s.h.check(s.ctx, m.st, killed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
