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
		const writers = 4
		var done sync.WaitGroup
		var written [writers]atomic.Int64
		for w := range int64(writers) {
			done.Go(func() {
				for i := int64(0); ; i++ {
					err := f.Write(f.ctx, top, (w*1000+i%100)*ps, pattern(w*1000+i%100, 1, v(uint64(i+1))), v(uint64(i+1)), 0)
					if err != nil {
						if !errors.Is(err, store.ErrClosed) {
							f.Errorf("got error %v, want %v", err, store.ErrClosed)
						}
						return
					}
					written[w].Store(i + 1)
				}
			})
		}
		for written[0].Load() < 10 {
			f.expect(chain(bottom), 0, absent)
		}
		f.ok(f.store.Close())
		done.Wait()
		f.open()
		for w := range int64(writers) {
			for i := max(0, written[w].Load()-100); i < written[w].Load(); i++ {
				f.expect(chain(top), w*1000+i%100, data(top, v(uint64(i+1))))
			}
		}
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
