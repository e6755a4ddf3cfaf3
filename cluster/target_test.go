package cluster

import (
	"context"
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
	must(t, a.Serving(t.Context(), []Incarnation{{1, 1, 1, 0}, {2, 2, 2, 0}, {3, 3, 3, 0}}, nil))
	b.register(t, 4)
	if _, err := b.SetTarget(t.Context(), v.Lineage); !errors.Is(err, ErrBusy) {
		t.Fatalf("set before the holder told by which ring it places: %v", err)
	}
	must(t, a.TellPlaced(t.Context()))
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
	now := Incarnation{4, 4, 4, l.Target}
	layers := []store.LayerID{v.Head}
	if err := a.InSync(t.Context(), now, layers); !errors.Is(err, ErrInvalid) {
		t.Errorf("in sync before it has dropped what it had: %v", err)
	}
	must(t, b.Dropped(t.Context(), StaleKey{v.Head, 4, l.Target}))
	must(t, b.Dropped(t.Context(), StaleKey{v.Head, 4, l.Target}))
	finish(lacks)
	must(t, a.InSync(t.Context(), Incarnation{4, 4, 4, 0}, layers)) // of what it has by the ring: nothing
	finish(lacks)
	must(t, a.InSync(t.Context(), now, layers))
	finish(unplaced)
	must(t, a.TellPlaced(t.Context()))
	must(t, a.MarkStale(t.Context(), []Stale{{Layer: v.Head, Node: 4, Target: l.Target, Since: store.NewVersion(a.Epoch, 7)}}))
	finish(lacks)
	must(t, a.InSync(t.Context(), now, layers))
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
	must(t, a.Serving(t.Context(), []Incarnation{{1, 1, 1, 0}, {2, 2, 2, 0}}, []Stale{{Layer: v.Head, Node: 3}}))
	must(t, a.Detach(t.Context(), false))
	must(t, b.DrainNode(t.Context(), "n3"))
	l, err := b.SetTarget(t.Context(), v.Lineage)
	must(t, err)
	if got := b.joining(t, v.Head, l.Target); !slices.Equal(got, []ring.NodeID{1, 2}) {
		t.Fatalf("the nodes %v are to gain chunks", got)
	}
	a = b.attach(t, "vol1", holder(1))
	must(t, a.Serving(t.Context(), nil, nil))
	for _, id := range []ring.NodeID{1, 2} {
		must(t, b.Dropped(t.Context(), StaleKey{v.Head, id, l.Target}))
		must(t, a.InSync(t.Context(), Incarnation{id, store.Identity(id), store.Incarnation(id), l.Target}, []store.LayerID{v.Head}))
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

// advance does the next step of vol1's ring, which is to be want.
func (b *bench) advance(t *testing.T, want RingStep) Lineage {
	t.Helper()
	l := b.lineage(t, "vol1")
	step, err := b.AdvanceRing(t.Context(), l.ID)
	if step != want || err != nil && !errors.Is(err, ErrBusy) {
		t.Fatalf("%v, %v; want %v", step, err, want)
	}
	return b.lineage(t, "vol1")
}

// A lineage follows its nodes: a target that is not wanted any more, or has a node that
// is not, is given up, and with it what was recorded of its copies.
func TestAdvanceRing(t *testing.T) {
	b, a := serving(t)
	must(t, a.TellPlaced(t.Context()))
	was := b.advance(t, RingStays)
	b.register(t, 3)
	moving := b.advance(t, RingSet)
	if moving.Target == 0 || moving.Ring != was.Ring {
		t.Fatalf("%+v", moving)
	}
	must(t, a.Detach(t.Context(), true))
	a = b.attach(t, "vol1", holder(1))
	must(t, a.Serving(t.Context(), []Incarnation{{3, 3, 3, moving.Target}}, nil))
	if b.advance(t, RingFinish).Target == 0 {
		t.Fatal("finished though node 3 lacks everything")
	}
	must(t, b.TakeOut(t.Context(), "n3"))
	if now := b.advance(t, RingAbort); now.Target != 0 || now.Ring != was.Ring {
		t.Errorf("given up: %+v", now)
	}
	if all := b.stale(t); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
	incarnations, err := b.incarnations(t.Context(), a.Volume.ID, 0)
	if err != nil || slices.ContainsFunc(incarnations, func(i Incarnation) bool { return i.Target != 0 }) {
		t.Errorf("left: %+v, %v", incarnations, err)
	}
	b.advance(t, RingStays)
	must(t, b.TakeBack(t.Context(), "n3"))
	if _, err := b.AdvanceRing(t.Context(), was.ID); !errors.Is(err, ErrBusy) {
		t.Errorf("set again while the holder takes node 3 for in sync: %v", err)
	}
}

// Who places by rings that the lineage does not have any more records nothing of copies:
// it could record that the last copy in sync by the new ring lacks writes.
func TestMoved(t *testing.T) {
	b, a := serving(t)
	must(t, a.TellPlaced(t.Context()))
	b.register(t, 3)
	l := b.advance(t, RingSet)
	mark := []Stale{{Layer: a.Volume.Head, Node: 3, Target: l.Target}}
	must(t, a.MarkStale(t.Context(), []Stale{{Layer: a.Volume.Head, Node: 2}})) // its ring is the ring still
	must(t, a.InSync(t.Context(), Incarnation{2, 2, 2, 0}, []store.LayerID{a.Volume.Head}))
	must(t, a.Detach(t.Context(), true))
	a = b.attach(t, "vol1", holder(1))
	must(t, a.Serving(t.Context(), nil, nil))
	must(t, a.TellPlaced(t.Context()))
	for _, n := range b.joining(t, a.Volume.Head, l.Target) {
		must(t, b.Dropped(t.Context(), StaleKey{a.Volume.Head, n, l.Target}))
		must(t, a.InSync(t.Context(), Incarnation{n, 9, 9, l.Target}, []store.LayerID{a.Volume.Head}))
	}
	for _, n := range []ring.NodeID{1, 2} { // one incarnation by ring and target
		must(t, a.Serving(t.Context(), []Incarnation{{n, 9, 9, 0}}, nil))
	}
	if now := b.advance(t, RingFinish); now.Ring != l.Target || now.Target != 0 {
		t.Fatalf("%+v", now)
	}
	for _, err := range []error{
		a.MarkStale(t.Context(), mark),
		a.MarkStale(t.Context(), []Stale{{Layer: a.Volume.Head, Node: 2}}),
		a.InSync(t.Context(), Incarnation{2, 9, 9, 0}, []store.LayerID{a.Volume.Head}),
		a.Serving(t.Context(), []Incarnation{{2, 9, 9, 0}}, nil),
	} {
		if !errors.Is(err, ErrMoved) {
			t.Errorf("by the former ring: %v", err)
		}
	}
	incarnations, err := b.incarnations(t.Context(), a.Volume.ID, 0)
	if want := []Incarnation{{1, 9, 9, 0}, {2, 9, 9, 0}, {3, 9, 9, 0}}; err != nil || !slices.Equal(incarnations, want) {
		t.Errorf("%+v, %v", incarnations, err)
	}
}

// A node that was found in two incarnations has not all in one: what a power cut took of
// the chunks that the target gives it would count as there.
func TestFinishInOneIncarnation(t *testing.T) {
	b := newBench(t, 3)
	b.create(t, "vol1", 2)
	a := b.attach(t, "vol1", holder(1))
	b.serve(t, a)
	must(t, a.TellPlaced(t.Context()))
	must(t, b.DrainNode(t.Context(), "n3"))
	l := b.advance(t, RingSet)
	must(t, a.Detach(t.Context(), true))
	a = b.attach(t, "vol1", holder(1))
	must(t, a.Serving(t.Context(), []Incarnation{{1, 1, 1, 0}, {2, 2, 2, 0}, {3, 3, 3, 0}}, nil))
	for _, n := range []ring.NodeID{1, 2} {
		must(t, b.Dropped(t.Context(), StaleKey{a.Volume.Head, n, l.Target}))
		must(t, a.InSync(t.Context(), Incarnation{n, store.Identity(n), 7, l.Target}, []store.LayerID{a.Volume.Head}))
	}
	must(t, a.TellPlaced(t.Context()))
	if _, err := b.FinishTarget(t.Context(), l.ID); !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
	must(t, a.Serving(t.Context(), []Incarnation{{1, 1, 7, 0}, {2, 2, 7, 0}}, nil))
	b.advance(t, RingFinish)
	if l = b.lineage(t, "vol1"); l.Target != 0 {
		t.Errorf("%+v", l)
	}
}

// A node drops what is not its own only when nobody can read it there any more.
func TestLeftovers(t *testing.T) {
	b, a := serving(t)
	settled := func(want bool) {
		t.Helper()
		all, err := b.Leftovers(t.Context())
		if err != nil || len(all) > 1 || (len(all) == 1) != want {
			t.Errorf("%+v, %v", all, err)
		}
		for _, o := range all {
			l := b.lineage(t, "vol1")
			if o.Lineage != l.ID || o.Ring.Number != l.Ring || o.Target.Number != l.Target || len(o.Volumes) != 1 || o.Volumes[0].Epoch != l.Epoch ||
				!slices.Equal(o.Layers, []store.LayerID{a.Volume.Head}) {
				t.Errorf("%+v", o)
			}
		}
	}
	settled(false)
	must(t, a.TellPlaced(t.Context()))
	settled(true)
	b.register(t, 3)
	l := b.advance(t, RingSet)
	settled(false)
	must(t, a.Detach(t.Context(), false))
	settled(false) // who had it may read on, cut off from the records
	a = b.attach(t, "vol1", holder(1))
	settled(false)
	must(t, a.Serving(t.Context(), nil, nil))
	must(t, a.TellPlaced(t.Context()))
	settled(true)
	must(t, a.Detach(t.Context(), true))
	settled(true)
	fresh, err := b.FreshCopies(t.Context(), 3)
	if err != nil || len(fresh) != 1 || fresh[0].StaleKey != (StaleKey{a.Volume.Head, 3, l.Target}) ||
		fresh[0].Lineage != l.ID || fresh[0].Ring.Number != l.Ring || fresh[0].Of.Number != l.Target {
		t.Fatalf("%+v, %v", fresh, err)
	}
	must(t, b.Dropped(t.Context(), fresh[0].StaleKey))
	if fresh, err := b.FreshCopies(t.Context(), 3); err != nil || len(fresh) != 0 {
		t.Errorf("%+v, %v", fresh, err)
	}
}

// After a recovery no lineage moves before the operator has confirmed it, and a change
// that was under way is not ended, either way, before all copies are compared: the records
// may be from before a ring change, and who "gains" chunks have the only copies.
func TestNoRingChangeBeforeConfirmed(t *testing.T) {
	b := newBench(t, 3)
	still, moving := b.create(t, "still", 2), b.create(t, "moving", 2)
	a := b.attach(t, "moving", holder(1))
	must(t, a.Serving(t.Context(), []Incarnation{{1, 1, 1, 0}, {2, 2, 2, 0}, {3, 3, 3, 0}}, nil))
	must(t, a.Detach(t.Context(), true))
	b.register(t, 4)
	if l, err := b.SetTarget(t.Context(), moving.Lineage); err != nil || l.Target == 0 {
		t.Fatalf("%+v, %v", l, err)
	}

	r := b.recovered(t, testRecovered)
	refused := func(why error, change func(context.Context, ring.LineageID) (Lineage, error), id ring.LineageID) {
		t.Helper()
		if _, err := change(t.Context(), id); !errors.Is(err, why) {
			t.Errorf("%v, want %v", err, why)
		}
	}
	refused(ErrUnconfirmed, r.SetTarget, still.Lineage)
	refused(ErrUnconfirmed, r.FinishTarget, moving.Lineage)
	refused(ErrUnconfirmed, r.AbortTarget, moving.Lineage)
	must(t, r.ConfirmRecovery(t.Context()))
	refused(ErrBusy, r.FinishTarget, moving.Lineage)
	refused(ErrBusy, r.AbortTarget, moving.Lineage)
	if l, err := r.SetTarget(t.Context(), still.Lineage); err != nil || l.Target == 0 {
		t.Errorf("confirmed: %+v, %v", l, err)
	}
	a = r.attach(t, "moving", holder(1))
	target := a.Target.Number
	must(t, a.Serving(t.Context(), []Incarnation{{1, 1, 1, 0}, {2, 2, 2, 0}, {3, 3, 3, 0}, {4, 4, 4, target}}, nil))
	must(t, a.TellPlaced(t.Context()))
	if l, err := r.FinishTarget(t.Context(), moving.Lineage); err != nil || l.Ring != target {
		t.Errorf("compared: %+v, %v", l, err)
	}
}
