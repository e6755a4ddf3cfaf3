package cluster

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"torus/ring"
)

func (b *bench) node(t *testing.T, name string) NodeInfo {
	t.Helper()
	n, err := b.Node(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What an operator sets of a node stays when it starts again.
func TestSetNode(t *testing.T) {
	b := newBench(t, 3)
	zone, weight := ring.Zone("z9"), 0.5
	must(t, b.SetNode(t.Context(), "n2", NodeChange{Zone: &zone}))
	must(t, b.SetNode(t.Context(), "n2", NodeChange{Weight: &weight}))
	must(t, b.DrainNode(t.Context(), "n2"))
	b.register(t, 2)
	n, first := b.node(t, "n2"), b.node(t, "n1")
	if n.Zone != zone || n.Weight != 0.5 || n.Share != n.Capacity/2 || n.State != NodeDraining {
		t.Errorf("%+v", n.Node)
	}
	if first.Weight != 1 || first.Share != first.Capacity || first.State != NodeActive {
		t.Errorf("%+v", first.Node)
	}
	for _, bad := range []float64{0, -1, 101} {
		if err := b.SetNode(t.Context(), "n2", NodeChange{Weight: &bad}); !errors.Is(err, ErrInvalid) {
			t.Errorf("weight %v: %v", bad, err)
		}
	}
	wantErr(t, b.SetNode(t.Context(), "n7", NodeChange{}), ErrNotFound, "node n7: not found")
}

// A node's weight in rings does not follow each change of its disk.
func TestShareStays(t *testing.T) {
	b := newBench(t, 1)
	n := testNode(1)
	was := n.Capacity
	for _, test := range []struct{ capacity, share int64 }{
		{was * 3 / 4, was}, {was * 3 / 2, was}, {was * 3, was * 3}, {was * 2, was * 3}, {was, was},
	} {
		n.Capacity = test.capacity
		must(t, b.RegisterNode(t.Context(), n))
		if got := b.node(t, n.Name); got.Share != test.share || got.Capacity != test.capacity {
			t.Errorf("capacity %d of %d: share %d, want %d", test.capacity, was, got.Share, test.share)
		}
	}
}

// No node is taken out that the copies of some volume need.
func TestTooFewWithout(t *testing.T) {
	b := newBench(t, 3)
	b.create(t, "vol1", 2)
	must(t, b.TakeOut(t.Context(), "n3"))
	const few = "too few storage nodes: 1 active ones would be left, and volume vol1 has 2 copies: add a node with \"torus join\", or use " +
		"\"torus volume set vol1 --replicas 1\""
	wantErr(t, b.DrainNode(t.Context(), "n2"), ErrTooFewNodes, "node n2: "+few)
	wantErr(t, b.TakeOut(t.Context(), "n2"), ErrTooFewNodes, "node n2: "+few)
	must(t, b.TakeBack(t.Context(), "n3"))
	must(t, b.DrainNode(t.Context(), "n2"))
	must(t, b.TakeOut(t.Context(), "n2")) // it is on its way out
	must(t, b.TakeBack(t.Context(), "n2"))
	if n := b.node(t, "n2"); n.State != NodeDraining {
		t.Errorf("%v", n.State)
	}
	must(t, b.UndrainNode(t.Context(), "n2"))
	if n := b.node(t, "n2"); n.State != NodeActive {
		t.Errorf("%v", n.State)
	}
}

// The ring follows the number of copies, and writes need no more than it gives.
func TestSetReplicas(t *testing.T) {
	b, a := serving(t)
	b.register(t, 3)
	must(t, b.SetReplicas(t.Context(), "vol1", 3, 0))
	if l := b.lineage(t, "vol1"); l.Replicas != 3 || l.MinCopies != 2 {
		t.Errorf("%+v", l)
	}
	must(t, b.SetReplicas(t.Context(), "vol1", 3, 3))
	must(t, a.Detach(t.Context(), true))
	a = b.attach(t, "vol1", holder(1))
	if a.MinCopies() != 2 {
		t.Errorf("%d copies of 2 are needed", a.MinCopies())
	}
	b.serve(t, a)
	must(t, a.TellPlaced(t.Context()))
	if l := b.advance(t, RingSet); l.Target == 0 {
		t.Errorf("%+v", l)
	}
	wantErr(t, b.SetReplicas(t.Context(), "vol1", 4, 0), ErrTooFewNodes,
		"volume vol1: 4 replicas need 4 storage nodes, the cluster has 3: add one with \"torus join 10.0.0.1:7480\", or use --replicas 3")
	wantErr(t, b.SetReplicas(t.Context(), "vol1", 2, 3), ErrInvalid, "volume vol1: invalid: min-copies 3, allowed are 1 to 2")
	must(t, b.SetReplicas(t.Context(), "vol1", 1, 0))
	if l := b.lineage(t, "vol1"); l.Replicas != 1 || l.MinCopies != 1 {
		t.Errorf("%+v", l)
	}
}

// A node is done without after the time that is set for it, or never.
func TestAway(t *testing.T) {
	for _, test := range []struct {
		after, so time.Duration
		want      bool
	}{
		{0, DefaultAwayAfter - 1, false}, {0, DefaultAwayAfter, true},
		{time.Hour, time.Hour - 1, false}, {time.Hour, time.Hour, true}, {-time.Second, 100 * time.Hour, false},
	} {
		if got := (Limits{AwayAfter: test.after}).Away(test.so); got != test.want {
			t.Errorf("away for %v, allowed %v: %v", test.so, test.after, got)
		}
	}
}

// Placed names the volumes of each node that a ring or a target has.
func TestPlaced(t *testing.T) {
	b, a := serving(t)
	must(t, a.TellPlaced(t.Context()))
	b.register(t, 3)
	look := func(want map[ring.NodeID][]string) {
		t.Helper()
		if got, err := b.Placed(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	vol1 := []string{"vol1"}
	look(map[ring.NodeID][]string{1: vol1, 2: vol1})
	b.advance(t, RingSet)
	look(map[ring.NodeID][]string{1: vol1, 2: vol1, 3: vol1})
}
