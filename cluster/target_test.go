package cluster

import (
	"errors"
	"slices"
	"testing"

	"torus/ring"
	"torus/store"
)

// joined returns the nodes that are recorded to lack what a target adds to a layer.
func (b *bench) joining(t *testing.T, layer store.LayerID, target uint64) (nodes []ring.NodeID) {
	t.Helper()
	for _, s := range b.stale(t) {
		if s.Layer == layer && s.Target == target {
			if s.Since != 0 {
				t.Errorf("%+v", s)
			}
			nodes = append(nodes, s.Node)
		}
	}
	return nodes
}

func (b *bench) lineage(t *testing.T, name string) Lineage {
	t.Helper()
	return b.info(t, name).Lineage
}

// A lineage moves to the ring of the present nodes: who gains chunks is recorded to lack
// them, until it has them; only then, and when its holder writes to both, it is the ring.
func TestRingChange(t *testing.T) {
	b := newBench(t, 3)
	v := b.create(t, "vol1", 2)
	other := b.create(t, "vol2", 2)
	l, err := b.SetTarget(t.Context(), v.Lineage)
	if err != nil || l.Target != 0 {
		t.Fatalf("nothing has changed: %+v, %v", l, err)
	}
	a := b.attach(t, "vol1", holder(1))
	must(t, a.Serving(t.Context(), []Incarnation{{1, 1, 1}, {2, 2, 2}, {3, 3, 3}}, nil))
	b.register(t, 4)
	l, err = b.SetTarget(t.Context(), v.Lineage)
	if err != nil || l.Target == 0 || l.Target == l.Ring {
		t.Fatalf("a node has joined: %+v, %v", l, err)
	}
	if got := b.joining(t, v.Head, l.Target); !slices.Equal(got, []ring.NodeID{4}) {
		t.Errorf("the nodes %v are to gain chunks", got)
	}
	if got := b.joining(t, other.Head, l.Target); len(got) != 0 {
		t.Errorf("of another lineage, %v", got)
	}
	again, err := b.SetTarget(t.Context(), v.Lineage)
	if err != nil || again != l {
		t.Errorf("again: %+v, %v", again, err)
	}
	finish := func(want string) {
		t.Helper()
		if _, err := b.FinishTarget(t.Context(), v.Lineage); !errors.Is(err, ErrBusy) || err.Error() != want {
			t.Errorf("finishing: %v", err)
		}
	}
	about := "lineage " + v.Lineage.String() + ": busy: "
	lacks := about + "node " + ring.NodeID(4).String() + " lacks writes"
	unplaced := about + holder(1).String() + " has volume vol1 attached and does not write to both rings yet"
	finish(lacks)
	must(t, a.TellPlaced(t.Context()))

	// The holder attaches anew, with both rings.
	must(t, a.Detach(t.Context(), true))
	a = b.attach(t, "vol1", holder(1))
	if a.Ring.Number != l.Ring || a.Target.Number != l.Target || len(a.Stale) != 1 || !a.Stale[0].Fresh {
		t.Fatalf("attached with ring %d, target %d, %+v", a.Ring.Number, a.Target.Number, a.Stale)
	}
	now := Incarnation{4, 4, 4}
	layers := []store.LayerID{v.Head}
	if err := a.InSync(t.Context(), now, l.Target, layers); !errors.Is(err, ErrInvalid) {
		t.Errorf("in sync before it has dropped what it had: %v", err)
	}
	must(t, b.Dropped(t.Context(), StaleKey{v.Head, 4, l.Target}))
	must(t, b.Dropped(t.Context(), StaleKey{v.Head, 4, l.Target}))
	finish(lacks)
	must(t, a.InSync(t.Context(), now, 0, layers)) // of what it has by the ring: nothing
	finish(lacks)
	must(t, a.InSync(t.Context(), now, l.Target, layers))
	finish(unplaced)
	must(t, a.TellPlaced(t.Context()))
	must(t, a.MarkStale(t.Context(), []Stale{{Layer: v.Head, Node: 4, Target: l.Target, Since: store.NewVersion(a.Epoch, 7)}}))
	finish(lacks)
	must(t, a.InSync(t.Context(), now, l.Target, layers))
	// What a node lacks that the target doesn't have is no hindrance.
	done, err := b.FinishTarget(t.Context(), v.Lineage)
	if err != nil || done.Ring != l.Target || done.Target != 0 || b.lineage(t, "vol1") != done {
		t.Errorf("%+v, %v", done, err)
	}
	if again, err = b.FinishTarget(t.Context(), v.Lineage); err != nil || again != done {
		t.Errorf("finished again: %+v, %v", again, err)
	}
}

// A node that neither ring nor target have can go; what the others lack goes with the ring.
func TestRingChangeWithoutANode(t *testing.T) {
	b := newBench(t, 3)
	v := b.create(t, "vol1", 2)
	a := b.attach(t, "vol1", holder(1))
	must(t, a.Serving(t.Context(), []Incarnation{{1, 1, 1}, {2, 2, 2}}, []Stale{{Layer: v.Head, Node: 3}}))
	must(t, a.Detach(t.Context(), false))
	n := testNode(3)
	n.State = NodeDraining
	must(t, b.RegisterNode(t.Context(), n))
	l, err := b.SetTarget(t.Context(), v.Lineage)
	must(t, err)
	if got := b.joining(t, v.Head, l.Target); !slices.Equal(got, []ring.NodeID{1, 2}) {
		t.Fatalf("the nodes %v are to gain chunks", got)
	}
	a = b.attach(t, "vol1", holder(1))
	for _, id := range []ring.NodeID{1, 2} {
		must(t, b.Dropped(t.Context(), StaleKey{v.Head, id, l.Target}))
		must(t, a.InSync(t.Context(), Incarnation{id, 1, 1}, l.Target, []store.LayerID{v.Head}))
	}
	must(t, a.Detach(t.Context(), true))
	wantErr(t, b.RemoveNode(t.Context(), "n3"), ErrBusy, "node n3: busy: it keeps copies of vol1")
	_, err = b.FinishTarget(t.Context(), v.Lineage)
	must(t, err)
	if all := b.stale(t); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
	must(t, b.RemoveNode(t.Context(), "n3"))
}

// Setting a target with an unknown outcome does it once.
func TestSetTargetTwice(t *testing.T) {
	b := newBench(t, 2)
	v := b.create(t, "vol1", 2)
	b.register(t, 3)
	kv := &interruptedKV{KV: b.kv, then: func() {}}
	b.Cluster.kv = kv
	l, err := b.SetTarget(t.Context(), v.Lineage)
	if err != nil || kv.then != nil || l != b.lineage(t, "vol1") || l.Target == 0 {
		t.Errorf("%+v, %v", l, err)
	}
	if rings, err := b.Rings(t.Context()); err != nil || len(rings) != 2 {
		t.Errorf("%d rings, %v", len(rings), err)
	}
}
