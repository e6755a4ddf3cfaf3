package storetest

import (
	"iter"

	"torus/store"
)

const everything = store.MaxVolumeSize

var extentBehaviours = []behaviour{
	{"OfNothing", func(f *fixture) {
		f.wantExtents(f.Extents(f.ctx, top, 0, everything, 0))
	}},
	{"DataAndHolesInOrder", func(f *fixture) {
		f.write(top, 9, 1, v(3))
		f.zero(top, 4, 2, v(2))
		f.write(top, 0, 2, v(1))
		f.write(top, 2, 1, v(4))
		f.wantExtents(f.Extents(f.ctx, top, 0, everything, 0),
			extent(0, 2, store.Data, v(1)),
			extent(2, 1, store.Data, v(4)),
			extent(4, 2, store.Hole, v(2)),
			extent(9, 1, store.Data, v(3)))
	}},
	{"AboveSince", func(f *fixture) {
		for i := range int64(5) {
			f.write(top, i, 1, v(uint64(i)))
		}
		f.zero(top, 5, 2, v(3))
		f.zero(top, 8, 2, v(1))
		f.wantExtents(f.Extents(f.ctx, top, 0, everything, v(2)),
			extent(3, 1, store.Data, v(3)),
			extent(4, 1, store.Data, v(4)),
			extent(5, 2, store.Hole, v(3)))
	}},
	{"InTheRange", func(f *fixture) {
		f.write(top, 0, 10, v(1))
		f.zero(top, 10, 10, v(2))
		f.wantExtents(f.Extents(f.ctx, top, 8*ps, 5*ps, 0),
			extent(8, 2, store.Data, v(1)),
			extent(10, 3, store.Hole, v(2)))
		f.wantExtents(f.Extents(f.ctx, top, 20*ps, 5*ps, 0))
	}},
	{"OfOneLayer", func(f *fixture) {
		f.write(bottom, 0, 1, v(1))
		f.write(top, 1, 1, v(1))
		f.wantExtents(f.Extents(f.ctx, top, 0, everything, 0), extent(1, 1, store.Data, v(1)))
	}},
	{"AcrossChunks", func(f *fixture) {
		const c = store.PagesPerChunk
		f.write(top, c-1, 2, v(1))
		f.write(top, 5*c, 1, v(2))
		f.wantExtents(f.Extents(f.ctx, top, 0, everything, 0),
			extent(c-1, 2, store.Data, v(1)),
			extent(5*c, 1, store.Data, v(2)))
		f.wantExtents(f.Extents(f.ctx, top, store.ChunkSize, store.ChunkSize, 0),
			extent(c, 1, store.Data, v(1)))
	}},
	{"ManyRuns", func(f *fixture) {
		var want []store.Extent
		for i := range int64(700) {
			f.write(top, i*13, 2, v(uint64(i+1)))
			want = append(want, extent(i*13, 2, store.Data, v(uint64(i+1))))
		}
		f.wantExtents(f.Extents(f.ctx, top, 0, everything, 0), want...)
	}},
	{"HugeHole", func(f *fixture) {
		const pages = everything / ps
		f.write(top, 3000, 1, v(2))
		f.ok(f.Zero(f.ctx, top, 0, everything, v(1), 0))
		f.wantExtents(f.Extents(f.ctx, top, 0, everything, 0),
			extent(0, 3000, store.Hole, v(1)),
			extent(3000, 1, store.Data, v(2)),
			extent(3001, pages-3001, store.Hole, v(1)))
		f.wantExtents(f.Extents(f.ctx, top, everything/2, ps, 0),
			extent(pages/2, 1, store.Hole, v(1)))
	}},
	{"BreakEndsThem", func(f *fixture) {
		for i := range int64(10) {
			f.write(top, 2*i, 1, v(1))
		}
		n := 0
		for range f.Extents(f.ctx, top, 0, everything, 0) {
			if n++; n == 3 {
				break
			}
		}
		if n != 3 {
			f.Fatalf("%d extents before the break", n)
		}
	}},
	{"StoreMayBeUsedWithin", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.write(top, 2, 1, v(1))
		for e, err := range f.Extents(f.ctx, top, 0, everything, 0) {
			f.ok(err)
			f.write(bottom, e.Off/ps, 1, v(2))
			f.expect(chain(bottom), e.Off/ps, data(bottom, v(2)))
			f.attach(first)
		}
		f.expect(chain(bottom), 0, data(bottom, v(2)), absent, data(bottom, v(2)))
	}},
	{"MayBeRangedOverAgain", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		seq := f.Extents(f.ctx, top, 0, everything, 0)
		f.wantExtents(seq, extent(0, 1, store.Data, v(1)))
		f.wantExtents(seq, extent(0, 1, store.Data, v(1)))
	}},
	{"UnknownLayer", func(f *fixture) {
		f.yieldsOnly(f.Extents(f.ctx, nowhere, 0, everything, 0), store.ErrUnknownLayer)
		f.yieldsOnly(f.Unstable(f.ctx, nowhere), store.ErrUnknownLayer)
	}},
	{"UnstableBeforeStable", func(f *fixture) {
		f.write(top, 0, 2, v(1))
		f.zero(top, 1, 1, v(2))
		f.wantExtents(f.Unstable(f.ctx, top),
			extent(0, 1, store.Data, v(1)),
			extent(1, 1, store.Hole, v(2)))
	}},
	{"UnstableAfterStable", func(f *fixture) {
		f.write(top, 0, 4, v(1))
		f.write(top, 1, 1, v(3))
		f.zero(top, 2, 1, v(2))
		f.zero(top, 3, 1, v(4))
		f.ok(f.Stable(f.ctx, top, v(2), 0))
		f.wantExtents(f.Unstable(f.ctx, top),
			extent(1, 1, store.Data, v(3)),
			extent(3, 1, store.Hole, v(4)))
		f.ok(f.Stable(f.ctx, top, v(4), 0))
		f.wantExtents(f.Unstable(f.ctx, top))
	}},
	{"UnstableIsNotWhatIsUnsynced", func(f *fixture) {
		f.write(top, 0, 1, v(1), store.FlagSync)
		f.sync()
		f.wantExtents(f.Unstable(f.ctx, top), extent(0, 1, store.Data, v(1)))
	}},
	{"UnstableAfterKill", func(f *fixture) {
		f.write(top, 0, 2, v(1))
		f.sync()
		f.ok(f.Stable(f.ctx, top, v(1), 0))
		f.write(top, 1, 1, v(2))
		f.write(top, 5, 1, v(3))
		f.killAndOpen()
		f.unstableHas(extent(1, 1, store.Data, v(2)), extent(5, 1, store.Data, v(3)))
	}},
	{"UnstableAfterPowerCut", func(f *fixture) {
		f.write(top, 0, 2, v(1))
		f.sync()
		f.ok(f.Stable(f.ctx, top, v(1), 0))
		f.write(top, 1, 1, v(2))
		f.zero(top, 5, 1, v(3))
		f.sync()
		f.cutAndOpen()
		f.unstableHas(extent(1, 1, store.Data, v(2)), extent(5, 1, store.Hole, v(3)))
	}},
	{"UnstableAfterClose", func(f *fixture) {
		f.write(top, 0, 2, v(1))
		f.ok(f.Stable(f.ctx, top, v(1), 0))
		f.write(top, 1, 1, v(2))
		f.closeAndOpen()
		f.wantExtents(f.Unstable(f.ctx, top), extent(1, 1, store.Data, v(2)))
	}},
}

// collect returns all extents, joined where neighbours are alike, and fails
// the test where they are not in order or malformed.
func (f *fixture) collect(seq iter.Seq2[store.Extent, error]) []store.Extent {
	f.Helper()
	var joined []store.Extent
	for e, err := range seq {
		f.ok(err)
		if e.N <= 0 || e.N%ps != 0 || e.Off%ps != 0 || (e.Kind != store.Data && e.Kind != store.Hole) {
			f.Fatalf("extent %v is malformed", e)
		}
		if len(joined) == 0 {
			joined = append(joined, e)
			continue
		}
		last := &joined[len(joined)-1]
		switch {
		case e.Off < last.End():
			f.Fatalf("extent %v comes after %v", e, *last)
		case e.Off == last.End() && e.Kind == last.Kind && e.Version == last.Version:
			last.N += e.N
		default:
			joined = append(joined, e)
		}
	}
	return joined
}

func (f *fixture) wantExtents(seq iter.Seq2[store.Extent, error], want ...store.Extent) {
	f.Helper()
	got := f.collect(seq)
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			f.Fatalf("extents differ at number %d: got %v, want %v", i, got, want)
		}
	}
}

// unstableHas wants these extents of top among the unstable ones. There may be
// more: after a crash the store knows the mark that it has, made durable
// lazily, which may be a lower one.
func (f *fixture) unstableHas(want ...store.Extent) {
	f.Helper()
	got := f.collect(f.Unstable(f.ctx, top))
	for _, w := range want {
		found := false
		for _, g := range got {
			found = found || g == w
		}
		if !found {
			f.Fatalf("unstable are %v, want %v among them", got, w)
		}
	}
}

func (f *fixture) yieldsOnly(seq iter.Seq2[store.Extent, error], want error) {
	f.Helper()
	n := 0
	for _, err := range seq {
		f.fails(err, want)
		n++
	}
	if n != 1 {
		f.Fatalf("got %d values, want one, the error %v", n, want)
	}
}
