package volume

import (
	"reflect"
	"testing"

	"torus/ring"
	"torus/store"
)

// A set of copies that few chunks have counts as much as any other: its last copy in
// sync must not be recorded stale.
func TestEachSetOfCopiesIsKnown(t *testing.T) {
	const rare = 3333
	place := func(c ring.ChunkIndex) []ring.NodeID {
		if c%4096 == rare {
			return []ring.NodeID{3, 2}
		}
		return [][]ring.NodeID{{1, 2}, {2, 1}}[c%2]
	}
	for _, period := range []ring.ChunkIndex{0, 4096} {
		o := Options{Size: 10_000 * store.ChunkSize, Place: place, Period: period, MinCopies: 1}
		var p placement
		groups, err := p.init(o, []*node{{id: 1}, {id: 2}, {id: 3}})
		if want := [][]ring.NodeID{{1, 2}, {2, 3}}; err != nil || !reflect.DeepEqual(groups, want) {
			t.Errorf("period %d: sets %v, %v; want %v", period, groups, err, want)
		}
	}
}
