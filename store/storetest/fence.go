package storetest

import (
	"errors"

	"torus/store"
)

const other store.VolumeID = 0x7002

var fenceBehaviours = []behaviour{
	{"LowerEpochIsRefusedByAttach", func(f *fixture) {
		_, err := f.store.Attach(f.ctx, volume, first-1)
		f.fencedBy(err, first-1, first)
	}},
	{"LowerEpochIsRefusedByEveryMethod", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.attach(first + 1)
		for name, err := range f.everyMethod(f.Replica) {
			if !errors.Is(err, store.ErrFenced) {
				f.Errorf("%s: got error %v, want %v", name, err, store.ErrFenced)
			}
		}
		f.Replica = f.attach(first + 1)
		f.expect(chain(top), 0, data(top, v(1)))
	}},
	{"ErrorHasTheEpochs", func(f *fixture) {
		f.attach(first + 4)
		f.fencedBy(f.Write(f.ctx, top, 0, pattern(0, 1, v(1)), v(1), 0), first, first+4)
		f.fencedBy(f.Read(f.ctx, chain(top), 0, make([]byte, ps), nil), first, first+4)
	}},
	{"RefusedAttachChangesNothing", func(f *fixture) {
		_, err := f.store.Attach(f.ctx, volume, first-1)
		f.fails(err, store.ErrFenced)
		f.write(top, 0, 1, v(1))
		f.wantFences(store.Fence{Volume: volume, Epoch: first})
	}},
	{"EqualEpochAttachesAgain", func(f *fixture) {
		again := f.attach(first)
		f.write(top, 0, 1, v(1))
		f.ok(again.Write(f.ctx, top, ps, pattern(1, 1, v(2)), v(2), 0))
		f.expect(chain(top), 0, data(top, v(1)), data(top, v(2)))
	}},
	{"HigherEpochSeesWhatWasWritten", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.Replica = f.attach(first + 1)
		f.expect(chain(top), 0, data(top, v(1)))
	}},
	{"VolumesAreApart", func(f *fixture) {
		_, err := f.store.Attach(f.ctx, other, first+7)
		f.ok(err)
		f.write(top, 0, 1, v(1))
		f.wantFences(store.Fence{Volume: volume, Epoch: first}, store.Fence{Volume: other, Epoch: first + 7})
	}},
	{"EpochIsAtLeastOne", func(f *fixture) {
		_, err := f.store.Attach(f.ctx, other, 0)
		f.fails(err, store.ErrInvalid)
		f.wantFences(store.Fence{Volume: volume, Epoch: first})
	}},
	{"SurvivesKill", func(f *fixture) {
		f.attach(first + 1)
		f.machine.Kill(f.T)
		f.fencedAfterOpen()
	}},
	{"SurvivesPowerCut", func(f *fixture) {
		f.attach(first + 1)
		f.machine.PowerCut(f.T)
		f.fencedAfterOpen()
	}},
	{"SurvivesClose", func(f *fixture) {
		f.attach(first + 1)
		f.ok(f.store.Close())
		f.fencedAfterOpen()
	}},
	{"ForgetRemovesIt", func(f *fixture) {
		_, err := f.store.Attach(f.ctx, other, first)
		f.ok(err)
		f.ok(f.store.Forget(f.ctx, volume))
		f.wantFences(store.Fence{Volume: other, Epoch: first})
		f.attach(1)
	}},
	{"ForgetEndsReplicas", func(f *fixture) {
		f.ok(f.store.Forget(f.ctx, volume))
		f.fails(f.Write(f.ctx, top, 0, pattern(0, 1, v(1)), v(1), 0), store.ErrFenced)
		f.fails(f.Read(f.ctx, chain(top), 0, make([]byte, ps), nil), store.ErrFenced)
	}},
	{"ForgetLeavesLayers", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.ok(f.store.Forget(f.ctx, volume))
		f.Replica = f.attach(1)
		f.expect(chain(top), 0, data(top, v(1)))
	}},
	{"ForgetOfAnUnknownVolume", func(f *fixture) {
		f.ok(f.store.Forget(f.ctx, other))
		f.wantFences(store.Fence{Volume: volume, Epoch: first})
	}},
	{"ForgetSurvivesPowerCut", func(f *fixture) {
		f.ok(f.store.Forget(f.ctx, volume))
		f.machine.PowerCut(f.T)
		f.store = f.machine.Open(f.T)
		f.wantFences()
		f.attach(1)
	}},
	{"AttachAfterForgetSurvivesPowerCut", func(f *fixture) {
		f.ok(f.store.Forget(f.ctx, volume))
		f.attach(1)
		f.machine.PowerCut(f.T)
		f.store = f.machine.Open(f.T)
		f.wantFences(store.Fence{Volume: volume, Epoch: 1})
	}},
	{"BreakEndsTheList", func(f *fixture) {
		_, err := f.store.Attach(f.ctx, other, first)
		f.ok(err)
		n := 0
		for range f.store.Fences(f.ctx) {
			n++
			break
		}
		if n != 1 {
			f.Fatalf("%d fences before the break", n)
		}
	}},
}

// fencedAfterOpen opens the store and wants the fence first+1 on record.
func (f *fixture) fencedAfterOpen() {
	f.Helper()
	f.store = f.machine.Open(f.T)
	f.wantFences(store.Fence{Volume: volume, Epoch: first + 1})
	_, err := f.store.Attach(f.ctx, volume, first)
	f.fencedBy(err, first, first+1)
	f.attach(first + 1)
}

func (f *fixture) fencedBy(err error, epoch, recorded store.Epoch) {
	f.Helper()
	var fenced *store.FencedError
	f.fails(err, store.ErrFenced)
	if !errors.As(err, &fenced) {
		f.Fatalf("%v is no *FencedError", err)
	}
	if want := (store.FencedError{Volume: volume, Epoch: epoch, Recorded: recorded}); *fenced != want {
		f.Fatalf("got %+v, want %+v", *fenced, want)
	}
}

func (f *fixture) wantFences(want ...store.Fence) {
	f.Helper()
	here := make(map[store.Fence]bool)
	for fence, err := range f.store.Fences(f.ctx) {
		f.ok(err)
		if here[fence] {
			f.Fatalf("%+v comes twice", fence)
		}
		here[fence] = true
	}
	for _, w := range want {
		if !here[w] {
			f.Fatalf("fences are %+v, want %+v", here, want)
		}
	}
	if len(here) != len(want) {
		f.Fatalf("fences are %+v, want %+v", here, want)
	}
}

// everyMethod calls every method of a replica that can fail and returns what
// each returned.
func (f *fixture) everyMethod(r store.Replica) map[string]error {
	var unstable, extents error
	for _, err := range r.Unstable(f.ctx, top) {
		unstable = err
	}
	for _, err := range r.Extents(f.ctx, top, 0, ps, 0) {
		extents = err
	}
	return map[string]error{
		"Create":   r.Create(f.ctx, 0xbeef, 0),
		"Write":    r.Write(f.ctx, top, 0, pattern(0, 1, v(100)), v(100), 0),
		"Zero":     r.Zero(f.ctx, top, 0, ps, v(100), 0),
		"Read":     r.Read(f.ctx, chain(top), 0, make([]byte, ps), nil),
		"Sync":     r.Sync(f.ctx),
		"Adopt":    r.Adopt(f.ctx, top, extent(0, 1, store.Data, v(100)), pattern(0, 1, v(100))),
		"Stable":   r.Stable(f.ctx, top, v(100), v(100)),
		"Extents":  extents,
		"Unstable": unstable,
	}
}
