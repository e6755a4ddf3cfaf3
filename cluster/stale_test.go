package cluster

import (
	"context"
	"errors"
	"slices"
	"testing"

	"torus/store"
)

// serving attaches vol1, of two copies, and records both as in sync.
func serving(t *testing.T) (*bench, *Attachment) {
	t.Helper()
	b := newBench(t, 2)
	b.create(t, "vol1", 2)
	a := b.attach(t, "vol1", holder(1))
	if err := a.Serving(t.Context(), []Incarnation{{1, 1, 1, 0}, {2, 2, 2, 0}}, nil); err != nil {
		t.Fatal(err)
	}
	return b, a
}

// mark returns what is recorded of node 2 when it lacks what is above 1.sequence.
func mark(a *Attachment, sequence uint64) []Stale {
	return []Stale{{Layer: a.Volume.Head, Node: 2, Since: store.NewVersion(1, sequence), Why: "no answer"}}
}

func (b *bench) stale(t *testing.T) []Stale {
	t.Helper()
	all, err := b.StaleCopies(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStaleRecords(t *testing.T) {
	b, a := serving(t)
	layers := []store.LayerID{a.Volume.Head}
	must(t, a.MarkStale(t.Context(), mark(a, 7)))
	must(t, a.MarkStale(t.Context(), mark(a, 5)))
	must(t, a.MarkStale(t.Context(), mark(a, 9)))
	all := b.stale(t)
	if len(all) != 1 || all[0].Since != store.NewVersion(1, 5) || all[0].Node != 2 || all[0].Layer != a.Volume.Head ||
		all[0].Epoch != 1 || all[0].Why != "no answer" || all[0].At.IsZero() {
		t.Fatalf("%+v", all)
	}
	// The next holder is told, and may go on with it.
	next, err := b.Attach(t.Context(), "vol1", holder(2), AttachOptions{Force: true})
	must(t, err)
	if !slices.Equal(next.Stale, all) {
		t.Errorf("attached with %+v", next.Stale)
	}
	if info := b.info(t, "vol1"); !slices.Equal(info.Stale, all) {
		t.Errorf("volume with %+v", info.Stale)
	}
	wantErr(t, a.InSync(t.Context(), Incarnation{2, 2, 3, 0}, layers), ErrLost, "volume vol1: attachment lost: epoch 1 was followed by 2")
	wantErr(t, a.MarkStale(t.Context(), mark(a, 0)), ErrLost, "volume vol1: attachment lost: epoch 1 was followed by 2")
	if got := b.stale(t); !slices.Equal(got, all) {
		t.Errorf("a former holder made it %+v", got)
	}
	must(t, next.InSync(t.Context(), Incarnation{2, 2, 3, 0}, layers))
	if got := b.stale(t); len(got) != 0 {
		t.Errorf("in sync, and %+v", got)
	}
	incarnations, err := b.incarnations(t.Context(), a.Volume.ID, 0)
	if err != nil || !slices.Equal(incarnations, []Incarnation{{1, 1, 1, 0}, {2, 2, 3, 0}}) {
		t.Errorf("%+v, %v", incarnations, err)
	}
	// The records go with the volume.
	must(t, next.MarkStale(t.Context(), mark(next, 3)))
	must(t, next.Detach(t.Context(), false))
	must(t, b.DeleteVolume(t.Context(), "vol1"))
	if got := b.stale(t); len(got) != 0 {
		t.Errorf("deleted, and %+v", got)
	}
}

// What is recorded with Serving is recorded as by MarkStale, or not at all.
func TestServingRecordsStale(t *testing.T) {
	b := newBench(t, 2)
	b.create(t, "vol1", 2)
	old := b.attach(t, "vol1", holder(1))
	must(t, old.Serving(t.Context(), []Incarnation{{1, 1, 1, 0}}, mark(old, 7)))
	must(t, old.Serving(t.Context(), []Incarnation{{1, 1, 1, 0}}, mark(old, 5)))
	must(t, old.Serving(t.Context(), nil, mark(old, 6)))
	if all := b.stale(t); len(all) != 1 || all[0].Since != store.NewVersion(1, 5) {
		t.Fatalf("%+v", all)
	}
	if _, err := b.Attach(t.Context(), "vol1", holder(2), AttachOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := old.Serving(t.Context(), nil, mark(old, 1)); !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	if all := b.stale(t); len(all) != 1 || all[0].Since != store.NewVersion(1, 5) {
		t.Errorf("%+v", all)
	}
}

// keptKV keeps commits from arriving until late is done; their outcome is unknown.
type keptKV struct {
	KV
	keep bool
	kept []Txn
}

func (k *keptKV) Commit(ctx context.Context, t Txn) (Outcome, error) {
	if !k.keep {
		return k.KV.Commit(ctx, t)
	}
	k.kept = append(k.kept, t)
	return Outcome{}, ErrUnknown
}

// giveUp has f try to commit, in vain, and keeps what it tried.
func (k *keptKV) giveUp(t *testing.T, f func(context.Context) error) {
	t.Helper()
	k.keep = true
	defer func() { k.keep = false }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k.KV = cancelled{k.KV, func() bool { return len(k.kept) > 0 }, cancel}
	defer func() { k.KV = k.KV.(cancelled).KV }()
	if err := f(ctx); !errors.Is(err, ErrUnknown) {
		t.Fatalf("%v, with an unknown outcome", err)
	}
}

// cancelled ends a context at the first read when it is time.
type cancelled struct {
	KV
	time func() bool
	end  context.CancelFunc
}

func (c cancelled) Get(ctx context.Context, key string, at Revision) (Pair, Revision, error) {
	if c.time() {
		c.end()
		return Pair{}, 0, ctx.Err()
	}
	return c.KV.Get(ctx, key, at)
}

// arrives lets the kept commits arrive, all of which must come too late.
func (k *keptKV) arrives(t *testing.T) {
	t.Helper()
	for _, late := range k.kept {
		if out, err := k.KV.Commit(t.Context(), late); err != nil || out.Held {
			t.Errorf("late commit: held %v, %v: %+v", out.Held, err, late.Then)
		}
	}
	if len(k.kept) == 0 {
		t.Error("nothing was kept")
	}
}

// A commit that arrives late changes nothing, whatever came between.
func TestLateStaleCommits(t *testing.T) {
	now := Incarnation{2, 2, 2, 0} // as recorded already
	for _, c := range []struct {
		name   string
		before func(context.Context, *Attachment) error
		late   func(context.Context, *Attachment) error
		then   []func(context.Context, *Attachment) error
		want   int // stale records
	}{
		{"in sync, and then stale again", marking(7), inSync(now), calls(marking(9)), 1},
		{"stale, and then stale and in sync", nil, marking(7), calls(marking(7), inSync(now)), 0},
		{"stale, and then in sync", marking(7), marking(8), calls(inSync(now)), 0},
		{"served without, and then stale and in sync", nil, servedWithout, calls(servedWithout, inSync(now)), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, _ := serving(t)
			kv := &keptKV{KV: b.kv}
			cl, err := Open(t.Context(), kv, testID, b.options())
			must(t, err)
			a, err := cl.Attach(t.Context(), "vol1", holder(2), AttachOptions{Force: true})
			must(t, err)
			if c.before != nil {
				must(t, c.before(t.Context(), a))
			}
			kv.giveUp(t, func(ctx context.Context) error { return c.late(ctx, a) })
			for _, call := range c.then {
				must(t, call(t.Context(), a))
			}
			kv.arrives(t)
			if all := b.stale(t); len(all) != c.want {
				t.Errorf("%+v", all)
			}
		})
	}
}

func marking(sequence uint64) func(context.Context, *Attachment) error {
	return func(ctx context.Context, a *Attachment) error { return a.MarkStale(ctx, mark(a, sequence)) }
}

func inSync(now Incarnation) func(context.Context, *Attachment) error {
	return func(ctx context.Context, a *Attachment) error {
		return a.InSync(ctx, now, []store.LayerID{a.Volume.Head})
	}
}

func servedWithout(ctx context.Context, a *Attachment) error {
	return a.Serving(ctx, []Incarnation{{1, 1, 1, 0}}, mark(a, 7))
}

func calls(all ...func(context.Context, *Attachment) error) []func(context.Context, *Attachment) error {
	return all
}

// InSync with an unknown outcome that was done is done.
func TestInSyncTwice(t *testing.T) {
	b, a := serving(t)
	must(t, a.MarkStale(t.Context(), mark(a, 7)))
	kv := &interruptedKV{KV: b.kv, then: func() {}}
	a.c.kv = kv
	must(t, a.InSync(t.Context(), Incarnation{2, 2, 4, 0}, []store.LayerID{a.Volume.Head}))
	if all := b.stale(t); len(all) != 0 || kv.then != nil {
		t.Errorf("%+v", all)
	}
}

func TestWatchStale(t *testing.T) {
	b, a := serving(t)
	next := pull(t, b.WatchStale(t.Context()))
	if u := next(); !u.Reset || len(u.Put) != 0 {
		t.Fatalf("at first %+v", u)
	}
	key := StaleKey{a.Volume.Head, 2, 0}
	must(t, a.MarkStale(t.Context(), mark(a, 7)))
	if u := next(); len(u.Put) != 1 || u.Put[key].Since != store.NewVersion(1, 7) {
		t.Errorf("stale: %+v", u)
	}
	must(t, a.InSync(t.Context(), Incarnation{2, 2, 2, 0}, []store.LayerID{a.Volume.Head}))
	if u := next(); len(u.Put) != 0 || !slices.Equal(u.Gone, []StaleKey{key}) {
		t.Errorf("in sync: %+v", u)
	}
	for _, bad := range []string{keyStale, keyStale + "x/y", staleLayer(1), staleKey(StaleKey{1, 2, 0}) + "/", idKey(keyStale, store.LayerID(1))} {
		if _, err := parseStaleKey(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if k, err := parseStaleKey(staleKey(StaleKey{1, 2, 0})); err != nil || k != (StaleKey{1, 2, 0}) {
		t.Errorf("%+v, %v", k, err)
	}
}

// What the holder tells stands as long as its lease.
func TestReport(t *testing.T) {
	b, a := serving(t)
	r := Report{Waiting: "for n2", Copies: []CopyReport{{Node: 2, State: "away", Why: "no answer", Done: 1, Total: 2}}}
	must(t, a.Report(t.Context(), r))
	info := b.info(t, "vol1")
	if info.Report == nil || info.Report.Waiting != r.Waiting || !slices.Equal(info.Report.Copies, r.Copies) || info.Report.At.IsZero() {
		t.Fatalf("%+v", info.Report)
	}
	all, err := b.Volumes(t.Context())
	if err != nil || len(all) != 1 || all[0].Report == nil || all[0].Report.Waiting != "for n2" {
		t.Errorf("%+v, %v", all, err)
	}
	must(t, a.Detach(t.Context(), true))
	if info := b.info(t, "vol1"); info.Report != nil {
		t.Errorf("detached: %+v", info.Report)
	}
}
