package node

import (
	"slices"
	"testing"

	"torus/cluster"
	"torus/ring"
)

func TestDistance(t *testing.T) {
	self := cluster.Node{ID: 1, Host: "h1", Zone: "a"}
	for _, c := range []struct {
		what string
		n    cluster.Node
		want int
	}{
		{"itself", cluster.Node{ID: 1, Host: "h1", Zone: "a"}, here},
		{"same machine", cluster.Node{ID: 2, Host: "h1", Zone: "a"}, sameHost},
		{"same zone", cluster.Node{ID: 3, Host: "h2", Zone: "a"}, sameZone},
		{"another zone", cluster.Node{ID: 4, Host: "h3", Zone: "b"}, elsewhere},
	} {
		if got := distance(self, c.n); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
	none := cluster.Node{} // an exporter alone, which knows neither
	if got := distance(none, cluster.Node{ID: 2}); got != elsewhere {
		t.Errorf("nothing known: %d", got)
	}
}

// Reads go to the nearest copy, and where that leaves a choice to all of them.
func TestNearestFirst(t *testing.T) {
	var members []ring.Member
	for id := ring.NodeID(1); id <= 5; id++ {
		members = append(members, ring.Member{ID: id, Weight: 1 << 40})
	}
	r, err := ring.New(3, members, nil)
	if err != nil {
		t.Fatal(err)
	}
	place := nearestFirst(r, nil, 7, func(id ring.NodeID) int {
		if id == 4 {
			return here
		}
		return elsewhere
	})
	first := map[ring.NodeID]int{}
	for c := range ring.ChunkIndex(2000) {
		got, want := place(c), slices.Clone(r.Nodes(7, c))
		if slices.Contains(got, 4) && got[0] != 4 {
			t.Fatalf("chunk %v: %v, the near copy is not the first", c, got)
		}
		first[got[0]]++
		got = slices.Sorted(slices.Values(got))
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("chunk %v: %v, the ring says %v", c, got, want)
		}
	}
	for id := ring.NodeID(1); id <= 5; id++ {
		if first[id] == 0 {
			t.Errorf("node %v is never read from: %v", id, first)
		}
	}
	if n := testing.AllocsPerRun(100, func() { place(3) }); n != 0 {
		t.Errorf("%v allocations to ask", n)
	}
}
