package cluster

import (
	"slices"
	"testing"

	"torus/ring"
	"torus/store"
)

// A node that has the last copy in sync of something is removed only by who accepts
// that this is lost; then what is left counts, and is compared.
func TestGiveUpNode(t *testing.T) {
	b := newBench(t, 3)
	v := b.create(t, "vol1", 2)
	b.create(t, "vol2", 2)
	a := b.attach(t, "vol1", holder(1))
	b.serve(t, a)
	must(t, a.MarkStale(t.Context(), []Stale{{Layer: v.Head, Node: 2, Since: store.NewVersion(1, 3)}}))
	must(t, a.Detach(t.Context(), false))
	last := func(id ring.NodeID, want ...string) {
		t.Helper()
		if got, err := b.LastCopies(t.Context(), id); err != nil || !slices.Equal(got, want) {
			t.Errorf("node %v: %q, %v; want %q", id, got, err, want)
		}
	}
	last(1, "vol1")
	last(2)
	last(3, "vol1")
	wantErr(t, b.RemoveNode(t.Context(), "n1"), ErrBusy, "node n1: busy: it keeps copies of vol1, vol2, and the last one in sync of volume vol1")

	p := b.Announce(1)
	must(t, p.Renew(t.Context(), Usage{}))
	_, err := b.GiveUpNode(t.Context(), "n1")
	wantErr(t, err, ErrBusy, `node n1: busy: it answers: move its data off it with "torus node drain n1"`)
	must(t, p.Close(t.Context()))
	a = b.attach(t, "vol1", holder(1))
	_, err = b.GiveUpNode(t.Context(), "n1")
	wantErr(t, err, ErrBusy, "volume vol1: attached by "+holder(1).String())
	must(t, a.Detach(t.Context(), false))

	lost, err := b.GiveUpNode(t.Context(), "n1")
	if err != nil || !slices.Equal(lost, []string{"vol1"}) {
		t.Fatalf("%q, %v", lost, err)
	}
	if n := b.node(t, "n1"); n.State != NodeOut {
		t.Errorf("%v", n.State)
	}
	a = b.attach(t, "vol1", holder(1))
	if !a.Uncompared || !a.Served || len(a.Stale) != 1 || a.Stale[0].Node != 1 || a.Stale[0].Since != 0 {
		t.Errorf("attached with %+v, to be compared: %v", a.Stale, a.Uncompared)
	}
}
