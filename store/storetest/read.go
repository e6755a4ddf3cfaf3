package storetest

import (
	"bytes"

	"torus/store"
)

var readBehaviours = []behaviour{
	{"NothingIsZeroes", func(f *fixture) {
		f.expect(chain(top, mid, bottom), 100, absent, absent)
	}},
	{"FirstLayerOfTheChainThatHasThePage", func(f *fixture) {
		f.write(bottom, 0, 4, v(1))
		f.write(mid, 1, 2, v(2))
		f.write(top, 2, 1, v(3))
		f.expect(chain(top, mid, bottom), 0,
			data(bottom, v(1)), data(mid, v(2)), data(top, v(3)), data(bottom, v(1)), absent)
	}},
	{"OrderOfTheChainDecidesNotVersion", func(f *fixture) {
		f.write(bottom, 0, 1, v(9))
		f.write(top, 0, 1, v(1))
		f.expect(chain(top, bottom), 0, data(top, v(1)))
		f.expect(chain(bottom, top), 0, data(bottom, v(9)))
	}},
	{"OnlyLayersOfTheChain", func(f *fixture) {
		f.write(bottom, 0, 1, v(1))
		f.expect(chain(top, mid), 0, absent)
	}},
	{"WithoutInfo", func(f *fixture) {
		f.write(mid, 0, 1, v(1))
		p := bytes.Repeat([]byte{0xee}, 2*ps)
		f.ok(f.Read(f.ctx, chain(top, mid), 0, p, nil))
		if !bytes.Equal(p, append(pattern(0, 1, v(1)), make([]byte, ps)...)) {
			f.Fatal("other bytes than were written")
		}
	}},
	{"InfoWithRoomToSpare", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		info := make([]store.PageInfo, 3)
		info[1] = data(mid, v(7))
		f.ok(f.Read(f.ctx, chain(top), 0, make([]byte, ps), info))
		if info[0] != data(top, v(1)) || info[1] != data(mid, v(7)) {
			f.Fatalf("info is %+v", info)
		}
	}},
	{"AnyMemoryAlignment", func(f *fixture) {
		f.write(top, 0, 2, v(1))
		for shift := range 9 {
			room := make([]byte, 2*ps+shift)
			f.ok(f.Read(f.ctx, chain(top), 0, room[shift:], nil))
			if !bytes.Equal(room[shift:], pattern(0, 2, v(1))) {
				f.Fatalf("other bytes than were written, read into memory shifted by %d", shift)
			}
		}
	}},
	{"UnknownLayerIsNotAbsence", func(f *fixture) {
		f.fails(f.Read(f.ctx, chain(nowhere), 0, make([]byte, ps), nil), store.ErrUnknownLayer)
	}},
	{"UnknownLayerBelowAnAbsentPage", func(f *fixture) {
		f.write(top, 0, 1, v(1))
		f.fails(f.Read(f.ctx, chain(top, nowhere), 0, make([]byte, 2*ps), nil), store.ErrUnknownLayer)
		f.fails(f.Read(f.ctx, chain(top, nowhere, bottom), ps, make([]byte, ps), nil), store.ErrUnknownLayer)
	}},
	{"Sealed", func(f *fixture) {
		f.write(bottom, 0, 2, v(1))
		f.write(mid, 1, 1, v(2))
		p := bytes.Repeat([]byte{0xee}, 3*ps)
		f.ok(f.store.ReadSealed(f.ctx, chain(mid, bottom), 0, p))
		want := bytes.Join([][]byte{pattern(0, 1, v(1)), pattern(1, 1, v(2)), make([]byte, ps)}, nil)
		if !bytes.Equal(p, want) {
			f.Fatal("other bytes than were written")
		}
	}},
	{"SealedNeedsNoEpoch", func(f *fixture) {
		f.write(bottom, 0, 1, v(1))
		f.attach(first + 5)
		f.ok(f.store.ReadSealed(f.ctx, chain(bottom), 0, make([]byte, ps)))
	}},
	{"SealedOfUnknownLayer", func(f *fixture) {
		f.fails(f.store.ReadSealed(f.ctx, chain(nowhere), 0, make([]byte, ps)), store.ErrUnknownLayer)
	}},
}
