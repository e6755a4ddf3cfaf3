package storetest

import (
	"errors"

	"torus/store"
)

var invalidBehaviours = []behaviour{
	{"Write", func(f *fixture) {
		for _, r := range badTransfers {
			f.refuses(r, f.Write(f.ctx, top, r.off, make([]byte, r.n), v(9), 0))
		}
	}},
	{"Zero", func(f *fixture) {
		for _, r := range badRanges {
			f.refuses(r, f.Zero(f.ctx, top, r.off, r.n, v(9), 0))
		}
	}},
	{"Read", func(f *fixture) {
		for _, r := range badTransfers {
			f.refuses(r, f.Read(f.ctx, chain(top), r.off, make([]byte, r.n), nil))
		}
	}},
	{"ReadInfoTooShort", func(f *fixture) {
		err := f.Read(f.ctx, chain(top), 0, make([]byte, 3*ps), make([]store.PageInfo, 2))
		f.fails(err, store.ErrInvalid)
	}},
	{"ReadSealed", func(f *fixture) {
		for _, r := range badTransfers {
			f.refuses(r, f.store.ReadSealed(f.ctx, chain(top), r.off, make([]byte, r.n)))
		}
	}},
	{"Extents", func(f *fixture) {
		for _, r := range badRanges {
			var got error
			for _, err := range f.Extents(f.ctx, top, r.off, r.n, 0) {
				got = err
			}
			f.refuses(r, got)
		}
	}},
	{"AdoptData", func(f *fixture) {
		for _, r := range badTransfers {
			e := store.Extent{Off: r.off, N: r.n, Kind: store.Data, Version: v(9)}
			f.refuses(r, f.Adopt(f.ctx, top, e, make([]byte, r.n)))
		}
	}},
	{"AdoptHoleAndAbsence", func(f *fixture) {
		for _, r := range badRanges {
			f.refuses(r, f.Adopt(f.ctx, top, store.Extent{Off: r.off, N: r.n, Kind: store.Hole, Version: v(9)}, nil))
			f.refuses(r, f.Adopt(f.ctx, top, store.Extent{Off: r.off, N: r.n, Kind: store.Absent}, nil))
		}
	}},
	{"AdoptBytesThatDontFit", func(f *fixture) {
		f.write(top, 0, 3, v(1))
		for _, try := range []struct {
			e store.Extent
			p []byte
		}{
			{extent(0, 2, store.Data, v(9)), make([]byte, ps)},
			{extent(0, 2, store.Data, v(9)), make([]byte, 3*ps)},
			{extent(0, 2, store.Data, v(9)), nil},
			{extent(0, 2, store.Hole, v(9)), make([]byte, 2*ps)},
			{extent(0, 2, store.Absent, 0), make([]byte, 2*ps)},
			{extent(0, 2, store.Hole+1, v(9)), nil},
		} {
			if err := f.Adopt(f.ctx, top, try.e, try.p); !errors.Is(err, store.ErrInvalid) {
				f.Errorf("adopt %v with %d bytes: got error %v, want %v", try.e, len(try.p), err, store.ErrInvalid)
			}
		}
		f.expect(chain(top), 0, data(top, v(1)), data(top, v(1)), data(top, v(1)))
	}},
	{"CreateOfNoLayer", func(f *fixture) {
		f.fails(f.Create(f.ctx, 0, 0), store.ErrInvalid)
		if n := len(f.layers()); n != 3 {
			f.Fatalf("%d layers are here, want 3", n)
		}
	}},
	{"SettledAboveStable", func(f *fixture) {
		f.fails(f.Stable(f.ctx, top, v(2), v(3)), store.ErrInvalid)
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid})
	}},
}

type byteRange struct{ off, n int64 }

// badRanges are wrong for everything that has an offset and a length.
var badRanges = []byteRange{
	{0, 0},
	{0, 1},
	{0, ps - 1},
	{0, ps + 512},
	{1, ps},
	{512, ps},
	{ps - 1, ps},
	{-ps, ps},
	{-1, ps},
	{0, -ps},
	{everything, ps},
	{everything - ps, 2 * ps},
	{1<<63 - ps, ps},
	{0, everything + ps},
	{ps, everything},
	{0, 1<<63 - ps},
}

// badTransfers are wrong where bytes are moved.
var badTransfers = func() []byteRange {
	bad := []byteRange{{0, store.MaxIO + ps}}
	for _, r := range badRanges {
		if 0 <= r.n && r.n <= store.MaxIO {
			bad = append(bad, r)
		}
	}
	return bad
}()

// refuses wants ErrInvalid, and nothing in the layer.
func (f *fixture) refuses(r byteRange, err error) {
	f.Helper()
	if !errors.Is(err, store.ErrInvalid) {
		f.Errorf("offset %d, length %d: got error %v, want %v", r.off, r.n, err, store.ErrInvalid)
	}
	if here := f.collect(f.Replica.Extents(f.ctx, top, 0, everything, 0)); len(here) != 0 {
		f.Fatalf("offset %d, length %d left %v", r.off, r.n, here)
	}
}
