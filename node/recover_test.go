package node

import (
	"errors"
	"testing"

	"torus/cluster"
)

// A node follows a newer recovery of its own cluster, and nothing else.
func TestRejoin(t *testing.T) {
	one, other, two := cluster.Recovery{Number: 1, ID: 7}, cluster.Recovery{Number: 1, ID: 8}, cluster.Recovery{Number: 2, ID: 9}
	for name, c := range map[string]struct {
		follows    cluster.Recovery
		registered bool
		about      About
		may        bool
	}{
		"the first recovery":         {cluster.Recovery{}, true, About{Cluster: "c1", Recovery: one}, true},
		"the next":                   {one, true, About{Cluster: "c1", Recovery: two}, true},
		"the same":                   {one, true, About{Cluster: "c1", Recovery: one}, false},
		"the same, killed amid":      {one, false, About{Cluster: "c1", Recovery: one}, true},
		"an older one":               {two, true, About{Cluster: "c1", Recovery: one}, false},
		"the lost records":           {one, true, About{Cluster: "c1"}, false},
		"another of the same number": {one, true, About{Cluster: "c1", Recovery: other}, false},
		"another cluster":            {one, true, About{Cluster: "c2", Recovery: two}, false},
	} {
		s := Settings{ID: 1, Name: "n1", Cluster: "c1", Recovery: c.follows, Registered: c.registered}
		c.about.Etcd = []string{"10.0.0.1:7482"}
		got, err := s.Rejoin(c.about)
		if c.may && (err != nil || got.Recovery != c.about.Recovery || got.Registered || got.ID != 1) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if !c.may && !errors.Is(err, ErrFounded) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
