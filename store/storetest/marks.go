package storetest

import "torus/store"

var markBehaviours = []behaviour{
	{"NeverGoBack", func(f *fixture) {
		f.ok(f.Stable(f.ctx, top, v(5), v(4)))
		f.ok(f.Stable(f.ctx, top, v(3), v(2)))
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid, Stable: v(5), Settled: v(4)})
		f.write(top, 0, 1, v(4))
		f.expect(chain(top), 0, absent)
	}},
	{"GoUpApart", func(f *fixture) {
		f.ok(f.Stable(f.ctx, top, v(5), v(4)))
		f.ok(f.Stable(f.ctx, top, v(7), v(2)))
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid, Stable: v(7), Settled: v(4)})
	}},
	{"AreOfOneLayer", func(f *fixture) {
		f.ok(f.Stable(f.ctx, top, v(5), v(4)))
		f.wantLayer(store.LayerInfo{ID: mid, Parent: bottom})
	}},
	{"SurviveClose", func(f *fixture) {
		f.ok(f.Stable(f.ctx, top, v(5), v(4)))
		f.closeAndOpen()
		f.wantLayer(store.LayerInfo{ID: top, Parent: mid, Stable: v(5), Settled: v(4)})
	}},
	{"AreNeverHigherThanTold", func(f *fixture) {
		f.ok(f.Stable(f.ctx, top, v(5), v(4)))
		f.cutAndOpen()
		if info := f.layers()[top]; info.Stable > v(5) || info.Settled > v(4) {
			f.Fatalf("told %v and %v, got %+v", v(5), v(4), info)
		}
	}},
	{"SettledHolesReadAsZeroes", func(f *fixture) {
		f.write(bottom, 0, 4, v(1))
		f.zero(bottom, 1, 2, v(2))
		f.sync()
		f.ok(f.Stable(f.ctx, bottom, v(2), v(2)))
		for range 2 {
			p, info := f.read(f.Replica, chain(top, bottom), 0, 4)
			for i, zero := range []bool{false, true, true, false} {
				if got := allZero(p[i*ps : (i+1)*ps]); got != zero {
					f.Fatalf("page %d, %+v: all zero is %v, want %v", i, info[i], got, zero)
				}
			}
			f.killAndOpen()
		}
	}},
	{"SettledHolesLetNoLateWriteIn", func(f *fixture) {
		f.zero(bottom, 0, 1, v(2))
		f.sync()
		f.ok(f.Stable(f.ctx, bottom, v(2), v(2)))
		f.write(bottom, 0, 1, v(1))
		if p, info := f.read(f.Replica, chain(bottom), 0, 1); !allZero(p) {
			f.Fatalf("the page is %+v", info)
		}
	}},
	{"HolesAboveSettledStay", func(f *fixture) {
		f.zero(bottom, 0, 1, v(3))
		f.sync()
		f.ok(f.Stable(f.ctx, bottom, v(3), v(2)))
		f.expect(chain(bottom), 0, hole(bottom, v(3)))
	}},
	{"HolesOverALowerLayerStay", func(f *fixture) {
		f.write(bottom, 0, 1, v(1))
		f.zero(top, 0, 1, v(2))
		f.sync()
		f.ok(f.Stable(f.ctx, top, v(2), v(2)))
		for range 2 {
			f.expect(chain(top, mid, bottom), 0, hole(top, v(2)))
			f.killAndOpen()
		}
	}},
	{"UnknownLayer", func(f *fixture) {
		f.fails(f.Stable(f.ctx, nowhere, v(1), 0), store.ErrUnknownLayer)
	}},
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
