package storetest

import "torus/store"

var durableBehaviours = []behaviour{
	{"AcknowledgedSurvivesKill", func(f *fixture) {
		f.write(top, 0, 3, v(1))
		f.write(top, 1, 1, v(2))
		f.zero(top, 2, 1, v(3))
		f.killAndOpen()
		f.expect(chain(top), 0, data(top, v(1)), data(top, v(2)), hole(top, v(3)), absent)
	}},
	{"WhatSurvivedAKillSurvivesAPowerCut", func(f *fixture) {
		// N5: a start syncs the tail before it serves.
		f.write(top, 0, 20, v(1))
		f.killAndOpen()
		f.cutAndOpen()
		f.expectData(0, 20, v(1))
	}},
	{"ClosedSurvivesPowerCut", func(f *fixture) {
		f.write(top, 0, 20, v(1))
		f.ok(f.store.Close())
		f.cutAndOpen()
		f.expectData(0, 20, v(1))
	}},
	{"SyncedSurvivesPowerCut", func(f *fixture) {
		f.write(top, 0, 20, v(1))
		f.write(mid, 0, 1, v(2))
		f.zero(mid, 5, 2, v(3))
		f.sync()
		f.cutAndOpen()
		f.expectData(0, 20, v(1))
		f.expect(chain(mid), 0, data(mid, v(2)))
		f.expect(chain(mid), 4, absent, hole(mid, v(3)), hole(mid, v(3)))
	}},
	{"SyncedSurvivesUnderUnsynced", func(f *fixture) {
		f.write(top, 0, 20, v(1))
		f.sync()
		f.write(top, 0, 20, v(2))
		f.cutAndOpen()
		f.expectEach(0, 20, data(top, v(1)), data(top, v(2)))
	}},
	{"UnsyncedIsWholeOrGone", func(f *fixture) {
		f.write(top, 0, 20, v(1))
		f.zero(top, 20, 5, v(1))
		f.cutAndOpen()
		f.expectEach(0, 20, absent, data(top, v(1)))
		f.expectEach(20, 5, absent, hole(top, v(1)))
	}},
	{"WhatAPowerCutLeftStays", func(f *fixture) {
		f.write(top, 0, 20, v(1))
		f.cutAndOpen()
		_, info := f.read(f.Replica, chain(top), 0, 20)
		f.cutAndOpen()
		f.expect(chain(top), 0, info...)
	}},
	{"SyncByAnotherVolume", func(f *fixture) {
		// Sync is of all writes answered before the call.
		f.write(top, 0, 20, v(1))
		r, err := f.store.Attach(f.ctx, other, 1)
		f.ok(err)
		f.ok(r.Create(f.ctx, 0xbeef, 0))
		f.ok(r.Write(f.ctx, 0xbeef, 0, pattern(0, 1, v(1)), v(1), 0))
		f.ok(r.Sync(f.ctx))
		f.sync()
		f.cutAndOpen()
		f.expectData(0, 20, v(1))
		f.expect(chain(0xbeef), 0, data(0xbeef, v(1)))
	}},
	{"SyncOfNothing", func(f *fixture) {
		f.sync()
		f.sync()
	}},
	{"FlagSyncSurvivesPowerCut", func(f *fixture) {
		f.write(top, 0, 5, v(1), store.FlagSync)
		f.ok(f.Zero(f.ctx, top, 2*ps, 2*ps, v(2), store.FlagSync))
		f.cutAndOpen()
		f.expect(chain(top), 0, data(top, v(1)), data(top, v(1)), hole(top, v(2)), hole(top, v(2)), data(top, v(1)))
	}},
	{"FlagSyncOverUnsynced", func(f *fixture) {
		f.write(top, 0, 20, v(1))
		f.write(top, 5, 10, v(2), store.FlagSync)
		f.cutAndOpen()
		f.expectEach(0, 5, absent, data(top, v(1)))
		f.expectData(5, 10, v(2))
		f.expectEach(15, 5, absent, data(top, v(1)))
	}},
	{"FlagSyncOfARepeatedWrite", func(f *fixture) {
		// The first copy was answered to nobody; the second is the promise.
		f.write(top, 0, 5, v(1))
		f.write(top, 0, 5, v(1), store.FlagSync)
		f.cutAndOpen()
		f.expectData(0, 5, v(1))
	}},
	{"FlagSyncThenUnsynced", func(f *fixture) {
		f.write(top, 0, 5, v(1), store.FlagSync)
		f.write(top, 0, 5, v(2))
		f.cutAndOpen()
		f.expectEach(0, 5, data(top, v(1)), data(top, v(2)))
	}},
	{"DropSurvivesPowerCut", func(f *fixture) {
		f.write(top, 0, 5, v(1), store.FlagSync)
		f.write(top, 3, 5, v(2))
		f.ok(f.store.Drop(f.ctx, top, store.Chunks{First: 0, End: 1}))
		f.cutAndOpen()
		f.expectEach(0, 8, absent)
	}},
	{"DropOfALayerSurvivesPowerCut", func(f *fixture) {
		f.write(top, 0, 5, v(1), store.FlagSync)
		f.ok(f.store.Drop(f.ctx, top, store.AllChunks))
		f.cutAndOpen()
		f.fails(f.Read(f.ctx, chain(top), 0, make([]byte, ps), nil), store.ErrUnknownLayer)
	}},
	{"DropThenWriteOverPowerCut", func(f *fixture) {
		f.write(top, 0, 5, v(1), store.FlagSync)
		f.ok(f.store.Drop(f.ctx, top, store.Chunks{First: 0, End: 1}))
		f.write(top, 0, 2, v(2), store.FlagSync)
		f.write(top, 2, 2, v(3))
		f.cutAndOpen()
		f.expect(chain(top), 0, data(top, v(2)), data(top, v(2)))
		f.expectEach(2, 2, absent, data(top, v(3)))
		f.expect(chain(top), 4, absent)
	}},
	{"DropThenCreateOverPowerCut", func(f *fixture) {
		f.write(top, 0, 5, v(1), store.FlagSync)
		f.ok(f.store.Drop(f.ctx, top, store.AllChunks))
		f.ok(f.Create(f.ctx, top, bottom))
		f.cutAndOpen()
		f.wantLayer(store.LayerInfo{ID: top, Parent: bottom})
		f.expectEach(0, 5, absent)
	}},
	{"ManyRoundsOfCuts", func(f *fixture) {
		synced := store.Version(0)
		for round := range uint64(6) {
			f.write(top, 0, 8, v(2*round+1))
			f.sync()
			synced = v(2*round + 1)
			f.write(top, 4, 8, v(2*round+2))
			f.cutAndOpen()
			f.expectEach(0, 4, data(top, synced))
			f.expectEach(4, 4, data(top, synced), data(top, v(2*round+2)))
		}
	}},
}

// expectData wants n pages of top with the version.
func (f *fixture) expectData(page, n int64, version store.Version) {
	f.Helper()
	f.expectEach(page, n, data(top, version))
}

// expectEach wants each of n pages of top to be one of these.
func (f *fixture) expectEach(page, n int64, anyOf ...store.PageInfo) {
	f.Helper()
	_, infos := f.read(f.Replica, chain(top), page, n)
	for i, info := range infos {
		found := false
		for _, want := range anyOf {
			found = found || info == want
		}
		if !found {
			f.Fatalf("page %d is %+v, want one of %+v", page+int64(i), info, anyOf)
		}
		f.expect(chain(top), page+int64(i), info)
	}
}
