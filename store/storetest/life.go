package storetest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"torus/store"
)

var lifeBehaviours = []behaviour{
	{"IncarnationIsTheStores", func(f *fixture) {
		if f.Incarnation() == 0 || f.Incarnation() != f.stat().Incarnation || f.stat().Identity == 0 {
			f.Fatalf("the replica's incarnation is %v, the store says %+v", f.Incarnation(), f.stat())
		}
	}},
	{"KillKeepsIncarnation", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.reincarnated((*fixture).killAndOpen, false)
	}},
	{"CloseKeepsIncarnation", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.reincarnated((*fixture).closeAndOpen, false)
	}},
	{"PowerCutChangesIncarnation", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.reincarnated((*fixture).cutAndOpen, true)
	}},
	{"PowerCutAfterCloseChangesIncarnation", func(f *fixture) {
		f.reincarnated(func(f *fixture) {
			f.ok(f.store.Close())
			f.cutAndOpen()
		}, true)
	}},
	{"OldReplicaAfterKill", func(f *fixture) { f.oldReplicaFails((*fixture).killAndOpen) }},
	{"OldReplicaAfterPowerCut", func(f *fixture) { f.oldReplicaFails((*fixture).cutAndOpen) }},
	{"OldReplicaAfterClose", func(f *fixture) { f.oldReplicaFails((*fixture).closeAndOpen) }},
	{"CloseEndsReplicas", func(f *fixture) {
		f.ok(f.store.Close())
		for name, err := range f.everyMethod(f.Replica) {
			if !errors.Is(err, store.ErrClosed) {
				f.Errorf("%s: got error %v, want %v", name, err, store.ErrClosed)
			}
		}
	}},
	{"CloseEndsTheStore", func(f *fixture) {
		f.ok(f.store.Close())
		for name, err := range f.everyStoreMethod(f.ctx) {
			if !errors.Is(err, store.ErrClosed) {
				f.Errorf("%s: got error %v, want %v", name, err, store.ErrClosed)
			}
		}
	}},
	{"CloseMakesEverythingDurable", func(f *fixture) {
		f.write(top, 0, 20, v(1))
		f.closeAndOpen()
		f.cutAndOpen()
		f.expectData(0, 20, v(1))
	}},
	{"CloseFinishesRequests", func(f *fixture) {
		f.closeBesideWriters()
	}},
	{"CancelledBefore", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		ctx := f.ctx
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		f.ctx = cancelled
		errs := f.everyMethod(f.Replica)
		for name, err := range f.everyStoreMethod(cancelled) {
			if name != "Stat" { // which does no I/O
				errs[name] = err
			}
		}
		f.ctx = ctx
		for name, err := range errs {
			if !errors.Is(err, context.Canceled) {
				f.Errorf("%s: got error %v, want %v", name, err, context.Canceled)
			}
		}
		f.expect(chain(top), 0, data(top, v(1)))
		f.wantFences(store.Fence{Volume: volume, Epoch: first})
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid, Bytes: ps})
		if n := len(f.layers()); n != 3 {
			f.Fatalf("%d layers are here, want 3", n)
		}
	}},
}

// closeBesideWriters wants all that was answered before Close to be there.
func (f *fixture) closeBesideWriters() {
	f.Helper()
	const writers, pages, tooMany = 4, 100, 100_000
	ctx, cancel := context.WithCancel(f.ctx)
	var done sync.WaitGroup
	defer done.Wait()
	defer cancel()
	var answered [writers]atomic.Int64
	for w := range int64(writers) {
		done.Go(func() {
			for i := int64(0); i < tooMany; i++ {
				page, version := w*pages+i%pages, v(uint64(i+1))
				err := f.Write(ctx, top, page*ps, pattern(page, 1, version), version, 0)
				switch {
				case errors.Is(err, store.ErrClosed) || ctx.Err() != nil:
					return
				case err != nil:
					f.Errorf("got error %v, want %v", err, store.ErrClosed)
					return
				}
				answered[w].Store(i + 1)
			}
			f.Errorf("%d writes were answered, none was refused", tooMany)
		})
	}
	for answered[0].Load() < 10 {
		f.read(f.Replica, chain(bottom), 0, 1)
	}
	f.ok(f.store.Close())
	done.Wait()
	f.cutAndOpen() // what Close finished it made durable
	for w := range int64(writers) {
		last := answered[w].Load()
		for i := max(0, last-pages); i < last; i++ {
			page, want := w*pages+i%pages, v(uint64(i+1))
			if got := f.versionAt(page); got < want {
				f.Fatalf("page %d has version %v, %v was answered", page, got, want)
			}
		}
	}
}

// versionAt returns the version of a page of top, and wants its bytes to be
// that version's.
func (f *fixture) versionAt(page int64) store.Version {
	f.Helper()
	_, info := f.read(f.Replica, chain(top), page, 1)
	f.expect(chain(top), page, info...)
	return info[0].Version
}

// reincarnated wants the incarnation to change over what happens, or to stay,
// and the identity to stay.
func (f *fixture) reincarnated(happens func(*fixture), change bool) {
	f.Helper()
	before := f.stat()
	for range 3 {
		happens(f)
		after := f.stat()
		if after.Identity != before.Identity {
			f.Fatalf("identity was %v, is %v", before.Identity, after.Identity)
		}
		if (after.Incarnation != before.Incarnation) != change {
			f.Fatalf("incarnation was %v, is %v; want a change: %v", before.Incarnation, after.Incarnation, change)
		}
		if f.Incarnation() != after.Incarnation {
			f.Fatalf("the replica's incarnation is %v, the store's %v", f.Incarnation(), after.Incarnation)
		}
		before = after
	}
}

// oldReplicaFails wants replicas from before what happens to do nothing after.
func (f *fixture) oldReplicaFails(happens func(*fixture)) {
	f.Helper()
	f.write(top, 0, 1, v(1), store.FlagSync)
	was := f.Replica
	happens(f)
	for name, err := range f.everyMethod(was) {
		if err == nil {
			f.Errorf("%s: no error", name)
		}
	}
	f.expect(chain(top), 0, data(top, v(1)))
	f.wantLayer(store.LayerInfo{ID: top, Parent: mid, Bytes: ps})
}

// everyStoreMethod calls every method of the store that can fail, but Close,
// and returns what each returned.
func (f *fixture) everyStoreMethod(ctx context.Context) map[string]error {
	var layers, fences error
	for _, err := range f.store.Layers(ctx) {
		layers = err
	}
	for _, err := range f.store.Fences(ctx) {
		fences = err
	}
	_, attach := f.store.Attach(ctx, volume, first+1)
	_, stat := f.store.Stat(ctx)
	return map[string]error{
		"Attach":     attach,
		"ReadSealed": f.store.ReadSealed(ctx, chain(bottom), 0, make([]byte, ps)),
		"Drop":       f.store.Drop(ctx, top, store.AllChunks),
		"Forget":     f.store.Forget(ctx, volume),
		"Layers":     layers,
		"Fences":     fences,
		"Stat":       stat,
	}
}
