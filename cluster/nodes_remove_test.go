package cluster

import (
	"context"
	"slices"
	"testing"

	"torus/ring"
)

func TestRemoveNode(t *testing.T) {
	b := newBench(t, 3)
	one := b.create(t, "vol1", 1) // over three nodes, so that each may have chunks of it
	b.create(t, "vol2", 3)
	wantErr(t, b.RemoveNode(t.Context(), "n3"), ErrBusy, "node n3: busy: it keeps copies of vol1, vol2, and the last one in sync of volume vol1")
	wantErr(t, b.RemoveNode(t.Context(), "n9"), ErrNotFound, "node n9: not found")

	// Its part in what is deleted goes with it: nobody waits for it for ever.
	for _, name := range []string{"vol1", "vol2"} {
		if err := b.DeleteVolume(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.ConfirmDrop(t.Context(), one.Head, 1); err != nil {
		t.Fatal(err)
	}
	if err := b.RemoveNode(t.Context(), "n3"); err != nil {
		t.Fatal(err)
	}
	if l, err := b.Layer(t.Context(), one.Head); err != nil || !slices.Equal(l.Pending, []ring.NodeID{2}) {
		t.Errorf("%+v, %v: only node 2 is waited for", l, err)
	}
	for id, want := range map[ring.NodeID]bool{2: true, 3: false} {
		if got, err := b.Registered(t.Context(), id); got != want || err != nil {
			t.Errorf("node %v registered: %v, %v", id, got, err)
		}
	}
	b.create(t, "vol3", 2)
	if v, _ := b.Volume(t.Context(), "vol3"); v.Lineage.Ring == 0 {
		t.Error("no ring")
	}
}

// A node that is removed while a volume is being made does not get copies of it.
func TestRemoveNodeBesideCreate(t *testing.T) {
	b := newBench(t, 2)
	racing := &beforeCommit{KV: b.kv}
	c, err := Open(t.Context(), racing, testID, b.options())
	if err != nil {
		t.Fatal(err)
	}
	racing.do = func() {
		if err := b.RemoveNode(t.Context(), "n2"); err != nil {
			t.Error(err)
		}
	}
	_, err = c.CreateVolume(t.Context(), VolumeSpec{Name: "vol1", Size: 4096, Replicas: 2})
	wantErr(t, err, ErrTooFewNodes, `volume vol1: 2 replicas need 2 storage nodes, the cluster has 1: `+
		`add one with "torus join 10.0.0.1:7480", or use --replicas 1`)
}

// beforeCommit is a KV on which something happens just before the first commit.
type beforeCommit struct {
	KV
	do func()
}

func (k *beforeCommit) Commit(ctx context.Context, t Txn) (Outcome, error) {
	if do := k.do; do != nil {
		k.do = nil
		do()
	}
	return k.KV.Commit(ctx, t)
}
