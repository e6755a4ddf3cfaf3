package cluster

import (
	"slices"
	"testing"
	"time"

	"torus/ring"
)

// What a node that stops leaves of a volume, as far as the records say.
func TestDoesWithout(t *testing.T) {
	nodes := func(ids ...ring.NodeID) map[ring.NodeID]bool {
		m := map[ring.NodeID]bool{}
		for _, id := range ids {
			m[id] = true
		}
		return m
	}
	three, spread := [][]ring.NodeID{{1, 2, 3}}, [][]ring.NodeID{{1, 2}, {2, 3}, {1, 3}}
	for _, c := range []struct {
		what  string
		sets  [][]ring.NodeID
		min   int
		stale map[ring.NodeID]bool
		live  map[ring.NodeID]bool
		want  Without
	}{
		{"it is recorded", three, 2, nodes(1), nodes(2, 3), WithoutLetGo},
		{"all copies are in sync", three, 2, nodes(), nodes(2, 3), WithoutSpare},
		{"one lacks writes, one is enough", three, 1, nodes(2), nodes(2, 3), WithoutSpare},
		{"one lacks writes, and is needed", three, 2, nodes(2), nodes(2, 3), WithoutSoon},
		{"one lacks writes and does not live", three, 2, nodes(2), nodes(3), WithoutNot},
		{"it is the last in sync", three, 1, nodes(2, 3), nodes(), WithoutNot},
		{"it has the only copy", [][]ring.NodeID{{1}}, 1, nodes(), nodes(), WithoutNot},
		{"as many as there are are needed", three, 3, nodes(), nodes(2, 3), WithoutNot},
		{"chunks in several places", spread, 1, nodes(), nodes(2, 3), WithoutSpare},
		{"one of the places does not do", spread, 1, nodes(3), nodes(2), WithoutNot},
		{"one of the places does soon", spread, 1, nodes(3), nodes(2, 3), WithoutSoon},
		{"chunks elsewhere only", [][]ring.NodeID{{2, 3}}, 1, nodes(2, 3), nodes(), WithoutSpare},
	} {
		if got := doesWithout(1, c.sets, c.min, c.stale, c.live); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

func TestDependents(t *testing.T) {
	b := newBench(t, 3)
	b.create(t, "idle", 3)
	b.create(t, "vol1", 2) // over all three
	a := b.attach(t, "vol1", holder(1))
	must(t, a.Serving(t.Context(), []Incarnation{{1, 1, 1, 0}, {2, 2, 2, 0}, {3, 3, 3, 0}}, nil))
	dependent := func(node ring.NodeID, want Without) {
		t.Helper()
		all, err := b.Dependents(t.Context(), node)
		if err != nil || len(all) != 1 || all[0].Name != "vol1" || all[0].Without != want {
			t.Errorf("of node %v: %+v, %v; want vol1, %v", node, all, err, want)
		}
	}
	dependent(1, WithoutSpare)
	for id := range ring.NodeID(3) {
		must(t, b.Announce(id+1).Renew(t.Context(), Usage{}))
	}
	must(t, a.MarkStale(t.Context(), mark(a, 7)))
	dependent(2, WithoutLetGo)
	dependent(1, WithoutSoon)
	must(t, b.Stopping(t.Context(), 2))
	dependent(1, WithoutNot)
	must(t, b.Started(t.Context(), 2))
	dependent(1, WithoutSoon)
	if all, err := b.Dependents(t.Context(), 9); err != nil || len(all) != 0 {
		t.Errorf("of a node in no ring: %+v, %v", all, err)
	}
	must(t, a.Detach(t.Context(), true))
	if all, err := b.Dependents(t.Context(), 1); err != nil || len(all) != 0 {
		t.Errorf("when nobody has anything attached: %+v, %v", all, err)
	}
}

// TestCopySets: a small volume is on fewer nodes than its ring.
func TestCopySets(t *testing.T) {
	r := Ring{1, newTestRing(t, 2, 1, 2, 3)}
	large := copySets(r, Volume{Size: 1 << 50, Lineage: 1})
	small := copySets(r, Volume{Size: 4096, Lineage: 1})
	if len(large) != 3 || len(small) != 1 || !slices.Equal(small[0], slices.Sorted(slices.Values(r.Nodes(1, 0)))) {
		t.Errorf("large %v, small %v", large, small)
	}
}

// That a node stops is told who watches, and forgotten when it is there again or
// after a while.
func TestStopping(t *testing.T) {
	b := newBench(t, 2)
	next := pull(t, b.WatchStopping(t.Context()))
	if u := next(); !u.Reset || len(u.Put) != 0 {
		t.Fatalf("at first %+v", u)
	}
	must(t, b.Stopping(t.Context(), 2))
	if u := next(); u.Put[2].IsZero() {
		t.Errorf("%+v", u)
	}
	nodes, err := b.Nodes(t.Context())
	if err != nil || nodes[0].Stopping || !nodes[1].Stopping {
		t.Errorf("%+v, %v", nodes, err)
	}
	must(t, b.Started(t.Context(), 2))
	if u := next(); !slices.Equal(u.Gone, []ring.NodeID{2}) {
		t.Errorf("%+v", u)
	}
	must(t, b.Started(t.Context(), 2))
	must(t, b.Stopping(t.Context(), 1))
	if u := next(); u.Put[1].IsZero() {
		t.Errorf("%+v", u)
	}
	b.pass(stoppingTTL - time.Second)
	must(t, b.Stopping(t.Context(), 1)) // anew
	next()
	b.pass(stoppingTTL - time.Second)
	if nodes, _ := b.Nodes(t.Context()); !nodes[0].Stopping {
		t.Error("forgotten too early")
	}
	b.pass(time.Second)
	if u := next(); !slices.Equal(u.Gone, []ring.NodeID{1}) {
		t.Errorf("%+v", u)
	}
}

func TestAskToStop(t *testing.T) {
	b := newBench(t, 2)
	next := pull(t, b.WatchStop(t.Context(), 2))
	next()
	must(t, b.AskToStop(t.Context(), testNode(1), "somebody else"))
	must(t, b.AskToStop(t.Context(), testNode(2), "process 7"))
	if u := next(); len(u.Put) != 1 || u.Put[2] != "process 7" {
		t.Errorf("%+v", u)
	}
	must(t, b.StopTaken(t.Context(), 2))
	if u := next(); !slices.Equal(u.Gone, []ring.NodeID{2}) {
		t.Errorf("%+v", u)
	}
	must(t, b.AskToStop(t.Context(), testNode(2), "process 7"))
	next()
	b.pass(stoppingTTL) // a node that does not see it in time was not asked
	if u := next(); !slices.Equal(u.Gone, []ring.NodeID{2}) {
		t.Errorf("%+v", u)
	}
}

func TestWanted(t *testing.T) {
	b := newBench(t, 1)
	v := b.create(t, "vol1", 1)
	next := pull(t, b.WatchWanted(t.Context()))
	next()
	must(t, b.Want(t.Context(), v, holder(3)))
	if u := next(); u.Put[v.ID] != holder(3) {
		t.Errorf("%+v", u)
	}
	b.pass(wantedTTL)
	if u := next(); len(u.Gone) != 1 || u.Gone[0] != v.ID {
		t.Errorf("%+v", u)
	}
}

func TestLimits(t *testing.T) {
	b := newBench(t, 2)
	next := pull(t, b.WatchLimits(t.Context(), 2))
	if u := next(); len(u.Put) != 0 {
		t.Errorf("at first %+v", u)
	}
	must(t, b.SetLimits(t.Context(), "n1", Limits{RepairRate: 1}))
	must(t, b.SetLimits(t.Context(), "n2", Limits{RepairRate: 7}))
	if u := next(); len(u.Put) != 1 || u.Put[2].RepairRate != 7 {
		t.Errorf("%+v", u)
	}
	b.register(t, 2) // as at each start
	if n, err := b.Node(t.Context(), "n2"); err != nil || n.Limits.RepairRate != 7 {
		t.Errorf("%+v, %v", n, err)
	}
	wantErr(t, b.SetLimits(t.Context(), "n9", Limits{}), ErrNotFound, "node n9: not found")
	wantErr(t, b.SetLimits(t.Context(), "n2", Limits{RepairRate: -1}), ErrInvalid,
		"node n2: invalid: repair rate -1, allowed are 0 to 1125899906842624")
	must(t, b.RemoveNode(t.Context(), "n2"))
	if u := next(); len(u.Gone) != 1 {
		t.Errorf("of a node that was removed: %+v", u)
	}
}
