package storetest

import (
	"bytes"
	"fmt"

	"torus/store"
)

var writeBehaviours = []behaviour{
	{"IsRead", func(f *fixture) {
		f.write(top, 5, 3, v(1))
		f.expect(chain(top), 4, absent, data(top, v(1)), data(top, v(1)), data(top, v(1)), absent)
	}},
	{"HigherVersionReplaces", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.write(top, 0, 1, v(2))
		f.expect(chain(top), 0, data(top, v(2)))
	}},
	{"LowerVersionIsAnsweredAndNotApplied", func(f *fixture) {
		f.write(top, 0, 1, v(2))
		f.write(top, 0, 1, v(1))
		f.expect(chain(top), 0, data(top, v(2)))
	}},
	{"EqualVersionIsAnsweredAndNotApplied", func(f *fixture) {
		f.write(top, 0, 1, v(2))
		f.ok(f.Write(f.ctx, top, 0, pattern(0, 1, v(9)), v(2), 0))
		f.expect(chain(top), 0, data(top, v(2)))
	}},
	{"HigherEpochIsHigherVersion", func(f *fixture) {
		f.write(top, 0, 1, store.NewVersion(first-1, store.MaxSequence))
		f.write(top, 0, 1, v(0))
		f.expect(chain(top), 0, data(top, v(0)))
	}},
	{"AppliesPageByPage", func(f *fixture) {
		f.write(top, 1, 1, v(5))
		f.write(top, 3, 1, v(2))
		f.write(top, 0, 5, v(3))
		f.expect(chain(top), 0,
			data(top, v(3)), data(top, v(5)), data(top, v(3)), data(top, v(3)), data(top, v(3)))
	}},
	{"VersionsOfLayersAreApart", func(f *fixture) {
		f.write(bottom, 0, 1, v(9))
		f.write(top, 0, 1, v(1))
		f.expect(chain(top, bottom), 0, data(top, v(1)))
		f.expect(chain(bottom), 0, data(bottom, v(9)))
	}},
	{"NotAboveStableIsAnsweredAndNotApplied", func(f *fixture) {
		f.ok(f.Stable(f.ctx, top, v(5), 0))
		f.write(top, 0, 1, v(5))
		f.write(top, 1, 1, v(4))
		f.write(top, 2, 1, v(6))
		f.expect(chain(top), 0, absent, absent, data(top, v(6)))
	}},
	{"NotAboveStableIsNotAppliedAfterAnAdoptedAbsence", func(f *fixture) {
		f.write(top, 0, 1, v(3))
		f.ok(f.Stable(f.ctx, top, v(5), 0))
		f.ok(f.attach(first+1).Adopt(f.ctx, top, extent(0, 1, store.Absent, 0), nil))
		f.Replica = f.attach(first + 1)
		f.write(top, 0, 1, v(3))
		f.expect(chain(top), 0, absent)
	}},
	{"StableIsOfOneLayer", func(f *fixture) {
		f.ok(f.Stable(f.ctx, mid, v(5), 0))
		f.write(top, 0, 1, v(1))
		f.expect(chain(top), 0, data(top, v(1)))
	}},
	{"BufferIsTheCallersAgain", func(f *fixture) {
		p := pattern(0, 4, v(1))
		f.ok(f.Write(f.ctx, top, 0, p, v(1), 0))
		clear(p)
		f.expect(chain(top), 0, data(top, v(1)), data(top, v(1)), data(top, v(1)), data(top, v(1)))
	}},
	{"BufferIsNotChanged", func(f *fixture) {
		p := pattern(0, 4, v(1))
		f.ok(f.Write(f.ctx, top, 0, p, v(1), store.FlagSync))
		if !bytes.Equal(p, pattern(0, 4, v(1))) {
			f.Fatal("the caller's bytes were changed")
		}
	}},
	{"AnyMemoryAlignment", func(f *fixture) {
		for shift := range 9 {
			page := int64(shift)
			room := make([]byte, ps+shift)
			copy(room[shift:], pattern(page, 1, v(1)))
			f.ok(f.Write(f.ctx, top, page*ps, room[shift:], v(1), 0))
			f.expect(chain(top), page, data(top, v(1)))
		}
	}},
	{"LargestRequest", func(f *fixture) {
		const pages = store.MaxIO / ps
		f.write(top, 7, pages, v(1))
		want := make([]store.PageInfo, pages)
		for i := range want {
			want[i] = data(top, v(1))
		}
		f.expect(chain(top), 7, want...)
	}},
	{"AcrossChunks", func(f *fixture) {
		f.write(top, store.PagesPerChunk-1, 2, v(1))
		f.expect(chain(top), store.PagesPerChunk-2, absent, data(top, v(1)), data(top, v(1)), absent)
	}},
	{"LastPageOfTheAddressSpace", func(f *fixture) {
		const last = store.MaxVolumeSize/ps - 1
		f.write(top, last, 1, v(1))
		f.expect(chain(top), last-1, absent, data(top, v(1)))
	}},
	{"HighestVersion", func(f *fixture) {
		f.Replica = f.attach(store.MaxEpoch)
		highest := store.NewVersion(store.MaxEpoch, store.MaxSequence)
		f.write(top, 0, 1, highest)
		f.expect(chain(top), 0, data(top, highest))
	}},
	{"ManyPages", func(f *fixture) {
		// More than one bucket, batch or table of anything.
		for i := range int64(300) {
			f.write(top, i*37, 1, v(uint64(i+1)))
		}
		for i := range int64(300) {
			f.expect(chain(top), i*37, data(top, v(uint64(i+1))))
		}
	}},
	{"UnknownLayer", func(f *fixture) {
		f.fails(f.Write(f.ctx, nowhere, 0, pattern(0, 1, v(1)), v(1), 0), store.ErrUnknownLayer)
	}},
	{"ErrorNamesLayerAndOffset", func(f *fixture) {
		err := f.Write(f.ctx, nowhere, 8*ps, pattern(0, 1, v(1)), v(1), 0)
		if text := fmt.Sprint(err); !bytes.Contains([]byte(text), []byte(nowhere.String())) ||
			!bytes.Contains([]byte(text), []byte("32768")) {
			f.Fatalf("the error %q does not name layer %v and offset 32768", text, nowhere)
		}
	}},
}

var zeroBehaviours = []behaviour{
	{"ReadsAsZeroes", func(f *fixture) {
		f.write(top, 0, 3, v(1))
		f.zero(top, 1, 1, v(2))
		f.expect(chain(top), 0, data(top, v(1)), hole(top, v(2)), data(top, v(1)))
	}},
	{"HidesLowerLayers", func(f *fixture) {
		f.write(bottom, 0, 2, v(8))
		f.zero(top, 0, 1, v(9))
		f.expect(chain(top, mid, bottom), 0, hole(top, v(9)), data(bottom, v(8)))
	}},
	{"IsAHoleWhereNothingWas", func(f *fixture) {
		f.zero(top, 3, 1, v(1))
		f.expect(chain(top), 2, absent, hole(top, v(1)), absent)
	}},
	{"LowerVersionIsAnsweredAndNotApplied", func(f *fixture) {
		f.write(top, 0, 1, v(3))
		f.zero(top, 0, 1, v(2))
		f.zero(top, 0, 1, v(3))
		f.expect(chain(top), 0, data(top, v(3)))
	}},
	{"HoldsAgainstLowerWrites", func(f *fixture) {
		f.zero(top, 0, 1, v(3))
		f.write(top, 0, 1, v(2))
		f.expect(chain(top), 0, hole(top, v(3)))
	}},
	{"HigherWriteReplaces", func(f *fixture) {
		f.zero(top, 0, 3, v(3))
		f.write(top, 1, 1, v(4))
		f.expect(chain(top), 0, hole(top, v(3)), data(top, v(4)), hole(top, v(3)))
	}},
	{"AppliesPageByPage", func(f *fixture) {
		f.write(top, 1, 1, v(5))
		f.write(top, 2, 1, v(1))
		f.zero(top, 0, 4, v(3))
		f.expect(chain(top), 0, hole(top, v(3)), data(top, v(5)), hole(top, v(3)), hole(top, v(3)))
	}},
	{"NotAboveStableIsAnsweredAndNotApplied", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.ok(f.Stable(f.ctx, top, v(5), 0))
		f.zero(top, 0, 2, v(5))
		f.expect(chain(top), 0, data(top, v(1)), absent)
	}},
	{"WholeChunkAndEdges", func(f *fixture) {
		const c = store.PagesPerChunk
		f.write(top, c-2, 4, v(1))
		f.write(top, 2*c-1, 2, v(1))
		f.zero(top, c-1, c+2, v(2))
		f.expect(chain(top), c-2, data(top, v(1)), hole(top, v(2)), hole(top, v(2)), hole(top, v(2)))
		f.expect(chain(top), 2*c-1, hole(top, v(2)), hole(top, v(2)), absent)
	}},
	{"PageInsideAHugeHole", func(f *fixture) {
		const c = store.PagesPerChunk
		f.zero(top, 0, 64*c, v(1))
		f.write(top, 20*c+7, 1, v(2))
		f.expect(chain(top), 20*c+6, hole(top, v(1)), data(top, v(2)), hole(top, v(1)))
		f.zero(top, 0, 64*c, v(3))
		f.expect(chain(top), 20*c+6, hole(top, v(3)), hole(top, v(3)), hole(top, v(3)))
	}},
	{"WholeAddressSpaceIsCheap", func(f *fixture) {
		const last = store.MaxVolumeSize/ps - 1
		f.write(top, 5, 1, v(3))
		f.write(top, last, 1, v(1))
		f.ok(f.Zero(f.ctx, top, 0, store.MaxVolumeSize, v(2), 0))
		f.expect(chain(top), 4, hole(top, v(2)), data(top, v(3)), hole(top, v(2)))
		f.expect(chain(top), last/2, hole(top, v(2)))
		f.expect(chain(top), last, hole(top, v(2)))
		f.killAndOpen()
		f.expect(chain(top), 4, hole(top, v(2)), data(top, v(3)), hole(top, v(2)))
		f.expect(chain(top), last, hole(top, v(2)))
	}},
	{"UnknownLayer", func(f *fixture) {
		f.fails(f.Zero(f.ctx, nowhere, 0, ps, v(1), 0), store.ErrUnknownLayer)
	}},
}
