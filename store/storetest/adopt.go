package storetest

import (
	"bytes"

	"torus/store"
)

// old is a version of an epoch before the fixture's.
func old(sequence uint64) store.Version { return store.NewVersion(first-1, sequence) }

var adoptBehaviours = []behaviour{
	{"WhereNothingWas", func(f *fixture) {
		f.adopt(0, 2, old(5))
		f.expect(chain(top), 0, data(top, old(5)), data(top, old(5)), absent)
	}},
	{"HigherVersion", func(f *fixture) {
		f.write(top, 0, 2, old(3))
		f.adopt(0, 1, old(5))
		f.expect(chain(top), 0, data(top, old(5)), data(top, old(3)))
	}},
	{"LowerVersion", func(f *fixture) {
		f.write(top, 0, 2, old(5))
		f.adopt(0, 1, old(3))
		for range 2 {
			f.expect(chain(top), 0, data(top, old(3)), data(top, old(5)))
			f.killAndOpen()
		}
	}},
	{"EqualVersionIsReplaced", func(f *fixture) {
		for _, version := range []store.Version{old(5), v(5)} {
			f.ok(f.Write(f.ctx, top, 0, tagged(0, 1, version, 1), version, 0))
			f.adopt(0, 1, version)
			f.expect(chain(top), 0, data(top, version))
		}
		f.killAndOpen()
		f.expect(chain(top), 0, data(top, v(5)))
	}},
	{"Absence", func(f *fixture) {
		f.write(bottom, 1, 1, old(1))
		f.write(top, 0, 3, old(5))
		f.ok(f.Adopt(f.ctx, top, extent(1, 1, store.Absent, 0), nil))
		for range 2 {
			f.expect(chain(top, bottom), 0, data(top, old(5)), data(bottom, old(1)), data(top, old(5)))
			f.wantLayer(store.LayerInfo{ID: top, Parent: mid, Bytes: 2 * ps})
			f.killAndOpen()
		}
	}},
	{"AbsenceThenALowerWrite", func(f *fixture) {
		f.write(top, 0, 1, old(5))
		f.ok(f.Adopt(f.ctx, top, extent(0, 1, store.Absent, 0), nil))
		f.write(top, 0, 1, old(3))
		f.expect(chain(top), 0, data(top, old(3)))
	}},
	{"AbsenceOfEverything", func(f *fixture) {
		f.write(top, 3, 2, old(5))
		f.zero(top, 7, 5000, old(6))
		f.ok(f.Adopt(f.ctx, top, store.Extent{N: everything, Kind: store.Absent}, nil))
		f.wantExtents(f.Extents(f.ctx, top, 0, everything, 0))
	}},
	{"AbsenceOfAHole", func(f *fixture) {
		f.write(bottom, 0, 1, old(1))
		f.zero(top, 0, 1, old(5))
		f.ok(f.Adopt(f.ctx, top, extent(0, 1, store.Absent, 0), nil))
		f.expect(chain(top, bottom), 0, data(bottom, old(1)))
	}},
	{"Hole", func(f *fixture) {
		f.write(top, 0, 2, old(5))
		f.ok(f.Adopt(f.ctx, top, extent(0, 1, store.Hole, old(3)), nil))
		for range 2 {
			f.expect(chain(top), 0, hole(top, old(3)), data(top, old(5)))
			f.killAndOpen()
		}
	}},
	{"HugeHole", func(f *fixture) {
		f.write(top, 0, 1, old(5))
		f.ok(f.Adopt(f.ctx, top, store.Extent{N: everything, Kind: store.Hole, Version: old(3)}, nil))
		f.expect(chain(top), 0, hole(top, old(3)), hole(top, old(3)))
	}},
	{"DataOverAHole", func(f *fixture) {
		f.zero(top, 0, 2, old(5))
		f.adopt(0, 1, old(3))
		f.expect(chain(top), 0, data(top, old(3)), hole(top, old(5)))
	}},
	{"HigherOfThePresentEpochStays", func(f *fixture) {
		f.write(top, 0, 1, v(5))
		f.zero(top, 2, 1, v(5))
		f.write(top, 3, 1, old(9))
		f.adopt(0, 4, v(4))
		f.expect(chain(top), 0, data(top, v(5)), data(top, v(4)), hole(top, v(5)), data(top, v(4)))
	}},
	{"PresentEpochStaysOverAnOldVersion", func(f *fixture) {
		f.write(top, 1, 1, v(0))
		f.write(top, 2, 1, old(9))
		f.adopt(0, 3, old(4))
		f.expect(chain(top), 0, data(top, old(4)), data(top, v(0)), data(top, old(4)))
	}},
	{"PresentEpochStaysOverAbsence", func(f *fixture) {
		f.write(top, 0, 1, v(5))
		f.write(top, 1, 1, old(5))
		f.ok(f.Adopt(f.ctx, top, extent(0, 2, store.Absent, 0), nil))
		f.expect(chain(top), 0, data(top, v(5)), absent)
	}},
	{"PresentEpochGivesWayToAHigherVersion", func(f *fixture) {
		f.write(top, 0, 1, v(5))
		f.adopt(0, 1, v(6))
		f.expect(chain(top), 0, data(top, v(6)))
	}},
	{"PresentEpochIsTheReplicas", func(f *fixture) {
		f.write(top, 0, 1, v(5))
		f.Replica = f.attach(first + 1)
		f.adopt(0, 1, v(4))
		f.expect(chain(top), 0, data(top, v(4)))
	}},
	{"NotAboveStable", func(f *fixture) {
		// The rule of N4 is for writes; a peer's page is always right.
		f.ok(f.Stable(f.ctx, top, v(9), 0))
		f.adopt(0, 1, old(4))
		f.expect(chain(top), 0, data(top, old(4)))
	}},
	{"SyncedSurvivesPowerCut", func(f *fixture) {
		f.write(top, 0, 3, old(5))
		f.sync()
		f.adopt(0, 1, old(3))
		f.ok(f.Adopt(f.ctx, top, extent(1, 1, store.Absent, 0), nil))
		f.sync()
		f.cutAndOpen()
		f.expect(chain(top), 0, data(top, old(3)), absent, data(top, old(5)))
	}},
	{"BufferIsTheCallersAgain", func(f *fixture) {
		p := pattern(0, 2, v(1))
		f.ok(f.Adopt(f.ctx, top, extent(0, 2, store.Data, v(1)), p))
		if !bytes.Equal(p, pattern(0, 2, v(1))) {
			f.Fatal("the caller's bytes were changed")
		}
		clear(p)
		f.expect(chain(top), 0, data(top, v(1)), data(top, v(1)))
	}},
	{"UnknownLayer", func(f *fixture) {
		f.fails(f.Adopt(f.ctx, nowhere, extent(0, 1, store.Absent, 0), nil), store.ErrUnknownLayer)
		f.fails(f.Adopt(f.ctx, nowhere, extent(0, 1, store.Data, v(1)), pattern(0, 1, v(1))), store.ErrUnknownLayer)
	}},
}

// adopt adopts n pages of the pattern in top.
func (f *fixture) adopt(page, n int64, version store.Version) {
	f.Helper()
	f.ok(f.Adopt(f.ctx, top, extent(page, n, store.Data, version), pattern(page, n, version)))
}
