package cluster

import (
	"context"
	"errors"
	"iter"
	"testing"

	"torus/ring"
	"torus/store"
)

// pull turns a watch into a function that returns its next Update.
func pull[K comparable, V any](t *testing.T, w iter.Seq2[Update[K, V], error]) func() Update[K, V] {
	t.Helper()
	next, stop := iter.Pull2(w)
	t.Cleanup(stop)
	return func() Update[K, V] {
		t.Helper()
		u, err, ok := next()
		if err != nil || !ok {
			t.Fatalf("watch: %v, %v", err, ok)
		}
		return u
	}
}

func TestWatchVolumes(t *testing.T) {
	b := newBench(t, 1)
	v := b.create(t, "vol1", 1)
	next := pull(t, b.WatchVolumes(t.Context()))
	u := next()
	if !u.Reset || len(u.Put) != 1 || u.Put["vol1"] != v {
		t.Fatalf("at first %+v", u)
	}
	if err := b.RenameVolume(t.Context(), "vol1", "vol2"); err != nil {
		t.Fatal(err)
	}
	u = next()
	if u.Reset || len(u.Put) != 1 || u.Put["vol2"].ID != v.ID || len(u.Gone) != 1 || u.Gone[0] != "vol1" {
		t.Errorf("after renaming %+v", u)
	}
	b.create(t, "vol3", 1)
	if u = next(); len(u.Put) != 1 || len(u.Gone) != 0 || u.Put["vol3"].Name != "vol3" {
		t.Errorf("after creating %+v", u)
	}
	// Changes that are forgotten before they are told: everything again.
	b.create(t, "vol4", 1)
	if err := b.DeleteVolume(t.Context(), "vol3"); err != nil {
		t.Fatal(err)
	}
	b.kv.Compact()
	if u = next(); !u.Reset || len(u.Put) != 2 || u.Put["vol4"].Name != "vol4" {
		t.Errorf("after compaction %+v", u)
	}
}

func TestWatchLayersAndAttachments(t *testing.T) {
	b := newBench(t, 1)
	v := b.create(t, "vol1", 1)
	layers := pull(t, b.WatchLayers(t.Context()))
	attachments := pull(t, b.WatchAttachments(t.Context()))
	nodes := pull(t, b.WatchNodes(t.Context()))
	if u := layers(); !u.Reset || len(u.Put) != 1 {
		t.Errorf("%+v", u)
	}
	if u := attachments(); !u.Reset || len(u.Put) != 0 {
		t.Errorf("%+v", u)
	}
	if u := nodes(); !u.Reset || u.Put[ring.NodeID(1)].Name != "n1" {
		t.Errorf("%+v", u)
	}
	a := b.attach(t, "vol1", holder(1))
	if u := attachments(); u.Put[v.ID].Holder != holder(1) || u.Put[v.ID].Epoch != 1 {
		t.Errorf("%+v", u)
	}
	b.pass(a.lease.TTL)
	if u := attachments(); len(u.Gone) != 1 || u.Gone[0] != v.ID {
		t.Errorf("%+v", u)
	}
	if err := b.DeleteVolume(t.Context(), "vol1"); err != nil {
		t.Fatal(err)
	}
	if u := layers(); !u.Put[v.Head].Deleted || u.Put[v.Head].Forget != v.ID || u.Put[v.Head].Pending[0] != 1 {
		t.Errorf("%+v", u)
	}
	if err := b.ConfirmDrop(t.Context(), v.Head, 1); err != nil {
		t.Fatal(err)
	}
	if u := layers(); len(u.Gone) != 1 || u.Gone[0] != v.Head {
		t.Errorf("%+v", u)
	}
}

func TestWatchEnds(t *testing.T) {
	b := newBench(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	next, stop := iter.Pull2(b.WatchVolumes(ctx))
	defer stop()
	next()
	cancel()
	if _, err, ok := next(); !errors.Is(err, context.Canceled) || !ok {
		t.Errorf("%v, %v", err, ok)
	}
	if _, _, ok := next(); ok {
		t.Error("goes on after its error")
	}
	mustCommit(t, b.kv, put(keyLayers+"x", "{}"))
	for u, err := range b.WatchLayers(t.Context()) {
		wantErr(t, err, ErrCorrupt, `record /torus/layers/x: corrupt record: key: "x" is not an ID of 16 hexadecimal digits`)
		if len(u.Put) != 0 {
			t.Errorf("%+v", u)
		}
	}
	mustCommit(t, b.kv, put(idKey(keyLayers, store.LayerID(1)), `{"format":9}`), Op{Kind: OpDelete, Key: keyLayers + "x"})
	for _, err := range b.WatchLayers(t.Context()) {
		wantErr(t, err, ErrFormat, "record /torus/layers/0000000000000001: unknown format: format 9, this program knows up to 1: it is too old")
	}
}
