package storetest

import (
	"time"

	"torus/store"
)

var layerBehaviours = []behaviour{
	{"AreListed", func(f *fixture) {
		f.write(mid, 0, 3, v(1))
		f.zero(mid, 1, 1, v(2))
		f.wantLayers(
			store.LayerInfo{ID: top, Parent: mid},
			store.LayerInfo{ID: mid, Parent: bottom, Bytes: 2 * ps},
			store.LayerInfo{ID: bottom},
		)
	}},
	{"ListHasTheMarks", func(f *fixture) {
		f.ok(f.Stable(f.ctx, top, v(7), v(5)))
		f.wantLayers(
			store.LayerInfo{ID: top, Parent: mid, Stable: v(7), Settled: v(5)},
			store.LayerInfo{ID: mid, Parent: bottom},
			store.LayerInfo{ID: bottom},
		)
	}},
	{"BreakEndsTheList", func(f *fixture) {
		n := 0
		for range f.store.Layers(f.ctx) {
			n++
			break
		}
		if n != 1 {
			f.Fatalf("%d layers before the break", n)
		}
	}},
	{"CreateAgainChangesNothing", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.ok(f.Stable(f.ctx, top, v(1), 0))
		f.ok(f.Create(f.ctx, top, bottom))
		f.expect(chain(top), 0, data(top, v(1)))
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid, Bytes: ps, Stable: v(1)})
	}},
	{"CreatedIsKnown", func(f *fixture) {
		f.fails(f.Read(f.ctx, chain(0xbeef), 0, make([]byte, ps), nil), store.ErrUnknownLayer)
		f.ok(f.Create(f.ctx, 0xbeef, 0))
		f.expect(chain(0xbeef), 0, absent)
	}},
	{"CreateSurvivesKill", func(f *fixture) {
		f.killAndOpen()
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid})
	}},
	{"CreateSurvivesPowerCut", func(f *fixture) {
		f.cutAndOpen()
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid})
		f.expect(chain(top, mid, bottom), 0, absent)
	}},
	{"DropOfChunks", func(f *fixture) {
		const c = store.PagesPerChunk
		for chunk := range int64(5) {
			f.write(top, chunk*c, 1, v(1))
			f.write(top, chunk*c+c-1, 1, v(1))
		}
		f.ok(f.store.Drop(f.ctx, top, store.Chunks{First: 1, End: 3}))
		f.expect(chain(top), 0, data(top, v(1)))
		f.expect(chain(top), c-1, data(top, v(1)), absent)
		f.expect(chain(top), 2*c-1, absent, absent)
		f.expect(chain(top), 3*c-1, absent, data(top, v(1)))
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid, Bytes: 6 * ps})
	}},
	{"DropShowsLowerLayers", func(f *fixture) {
		f.write(bottom, 0, 1, v(1))
		f.write(top, 0, 1, v(2))
		f.ok(f.store.Drop(f.ctx, top, store.Chunks{First: 0, End: 1}))
		f.expect(chain(top, bottom), 0, data(bottom, v(1)))
	}},
	{"DropOfHoles", func(f *fixture) {
		const c = store.PagesPerChunk
		f.write(bottom, 2*c, 1, v(1))
		f.zero(top, 0, 5*c, v(2))
		f.ok(f.store.Drop(f.ctx, top, store.Chunks{First: 2, End: 3}))
		f.expect(chain(top, bottom), 2*c-1, hole(top, v(2)), data(bottom, v(1)), absent)
		f.expect(chain(top, bottom), 3*c-1, absent, hole(top, v(2)))
	}},
	{"DropOfChunksThenWrite", func(f *fixture) {
		f.write(top, 0, 2, v(5))
		f.ok(f.store.Drop(f.ctx, top, store.Chunks{First: 0, End: 1}))
		f.write(top, 0, 1, v(2))
		f.expect(chain(top), 0, data(top, v(2)), absent)
		f.killAndOpen()
		f.expect(chain(top), 0, data(top, v(2)), absent)
	}},
	{"DropOfALayer", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.ok(f.store.Drop(f.ctx, top, store.AllChunks))
		f.fails(f.Read(f.ctx, chain(top), 0, make([]byte, ps), nil), store.ErrUnknownLayer)
		f.fails(f.Write(f.ctx, top, 0, pattern(0, 1, v(2)), v(2), 0), store.ErrUnknownLayer)
		f.wantLayers(store.LayerInfo{ID: mid, Parent: bottom}, store.LayerInfo{ID: bottom})
	}},
	{"DropOfALayerLeavesOthers", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.write(mid, 0, 1, v(2))
		f.ok(f.store.Drop(f.ctx, top, store.AllChunks))
		f.expect(chain(mid), 0, data(mid, v(2)))
	}},
	{"DropOfALayerThenCreate", func(f *fixture) {
		f.write(top, 0, 2, v(9))
		f.ok(f.Stable(f.ctx, top, v(9), 0))
		f.ok(f.store.Drop(f.ctx, top, store.AllChunks))
		f.ok(f.Create(f.ctx, top, bottom))
		f.write(top, 0, 1, v(2))
		for range 2 {
			f.expect(chain(top), 0, data(top, v(2)), absent)
			f.wantLayer(store.LayerInfo{ID: top, Parent: bottom, Bytes: ps})
			f.killAndOpen()
		}
	}},
	{"DropOfWhatIsNotThere", func(f *fixture) {
		f.ok(f.store.Drop(f.ctx, nowhere, store.AllChunks))
		f.ok(f.store.Drop(f.ctx, nowhere, store.Chunks{First: 1, End: 2}))
		f.ok(f.store.Drop(f.ctx, top, store.Chunks{First: 7, End: 1000}))
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid})
	}},
	{"DropOfALayerTwice", func(f *fixture) {
		f.ok(f.store.Drop(f.ctx, top, store.AllChunks))
		f.ok(f.store.Drop(f.ctx, top, store.AllChunks))
	}},
	{"DropNeedsNoEpoch", func(f *fixture) {
		f.ok(f.store.Forget(f.ctx, volume))
		f.ok(f.store.Drop(f.ctx, top, store.AllChunks))
		f.wantLayers(store.LayerInfo{ID: mid, Parent: bottom}, store.LayerInfo{ID: bottom})
	}},
	{"StatCountsLivePages", func(f *fixture) {
		// What a drop killed may be counted out in the background.
		live := func(want int64) {
			f.Helper()
			got := f.stat().Live
			for end := time.Now().Add(10 * time.Second); got != want*ps && time.Now().Before(end); got = f.stat().Live {
				time.Sleep(time.Millisecond)
			}
			if got != want*ps {
				f.Fatalf("%d bytes are live, want %d pages", got, want)
			}
		}
		live(0)
		f.write(top, 0, 4, v(1))
		f.write(mid, 2, 4, v(1))
		live(8)
		f.write(top, 2, 4, v(2))
		live(10)
		f.zero(top, 0, 3, v(3))
		live(7)
		f.killAndOpen()
		live(7)
		f.ok(f.store.Drop(f.ctx, top, store.Chunks{First: 0, End: 1}))
		live(4)
		f.ok(f.store.Drop(f.ctx, mid, store.AllChunks))
		live(0)
	}},
	{"StatCountsRequests", func(f *fixture) {
		before := f.stat()
		f.write(top, 0, 4, v(1))
		f.expect(chain(top), 0, data(top, v(1)), data(top, v(1)))
		f.sync()
		after := f.stat()
		if after.Writes-before.Writes != 1 || after.Reads-before.Reads != 1 || after.Syncs-before.Syncs != 1 ||
			after.BytesWritten-before.BytesWritten != 4*ps || after.BytesRead-before.BytesRead != 2*ps {
			f.Fatalf("before %+v, after one write of 4 pages, a read of 2 and a sync %+v", before, after)
		}
		if after.Capacity <= 0 || after.NoSpace || after.Failed != "" || after.Corrupt != 0 {
			f.Fatalf("a sound store says %+v", after)
		}
	}},
}

// layers returns what the store lists, by ID.
func (f *fixture) layers() map[store.LayerID]store.LayerInfo {
	f.Helper()
	here := make(map[store.LayerID]store.LayerInfo)
	for info, err := range f.store.Layers(f.ctx) {
		f.ok(err)
		if _, twice := here[info.ID]; twice {
			f.Fatalf("layer %v comes twice", info.ID)
		}
		here[info.ID] = info
	}
	return here
}

func (f *fixture) wantLayer(want store.LayerInfo) {
	f.Helper()
	if got := f.layers()[want.ID]; got != want {
		f.Fatalf("layer is %+v, want %+v", got, want)
	}
}

func (f *fixture) wantLayers(want ...store.LayerInfo) {
	f.Helper()
	if here := f.layers(); len(here) != len(want) {
		f.Fatalf("layers are %+v, want %+v", here, want)
	}
	for _, w := range want {
		f.wantLayer(w)
	}
}
