package storetest

import (
	"bytes"
	"slices"

	"torus/store"
)

// checkRead reads through a random part of the chain.
func (w *walk) checkRead() {
	w.Helper()
	var layers []*modelLayer
	for _, l := range w.layers {
		if l.known && w.rng.IntN(3) > 0 {
			layers = append(layers, l)
		}
	}
	if len(layers) == 0 {
		return
	}
	from, to := w.someRange()
	w.checkPages(layers, from, to)
}

// checkPages wants each page to be what the first layer that has it says.
func (w *walk) checkPages(layers []*modelLayer, from, to int64) {
	w.Helper()
	var ids []store.LayerID
	for _, l := range layers {
		ids = append(ids, l.id)
	}
	p, info := w.read(w.Replica, ids, windowFirst+from, to-from)
	for i := from; i < to; i++ {
		want, layer, mayBeAbsent := value{}, store.LayerID(0), false
		for _, l := range layers {
			if now := l.pages[i].now; now.kind != store.Absent {
				want, layer, mayBeAbsent = now, l.id, l.forgettable(now)
				break
			}
		}
		got := info[i-from]
		if got == absent && mayBeAbsent {
			want, layer = value{}, 0
		}
		if got != (store.PageInfo{Layer: layer, Kind: want.kind, Version: want.version}) {
			w.Fatalf("page %d of the window through %v is %+v, want %+v of layer %v", i, ids, got, want, layer)
		}
		if !bytes.Equal(p[(i-from)*ps:(i-from+1)*ps], want.bytes(windowFirst+i)) {
			w.Fatalf("page %d of the window through %v, %+v, has other bytes", i, ids, want)
		}
	}
}

func (w *walk) checkExtents() {
	w.Helper()
	l := w.layer()
	from, to := w.someRange()
	since := store.Version(0)
	if w.rng.IntN(3) > 0 {
		since = w.given[w.rng.IntN(len(w.given))]
	}
	w.note("extents %v [%d,%d) since %v", l.id, from, to, since)
	seq := w.Extents(w.ctx, l.id, (windowFirst+from)*ps, (to-from)*ps, since)
	if !l.known {
		w.yieldsOnly(seq, store.ErrUnknownLayer)
		return
	}
	w.wantPages(l, w.collect(seq), from, to, since)
}

func (w *walk) checkUnstable() {
	w.Helper()
	l := w.layer()
	w.note("unstable %v", l.id)
	seq := w.Unstable(w.ctx, l.id)
	if !l.known {
		w.yieldsOnly(seq, store.ErrUnknownLayer)
		return
	}
	w.wantPages(l, w.collect(seq), 0, windowPages, l.stable)
}

// wantPages wants got to be what the window's pages [from, to) have above
// since; what lies beyond the window, of huge holes, is not looked at.
func (w *walk) wantPages(l *modelLayer, got []store.Extent, from, to int64, since store.Version) {
	w.Helper()
	var here [windowPages]value
	for _, e := range got {
		for i := int64(0); i < windowPages; i++ {
			if off := (windowFirst + i) * ps; e.Off <= off && off < e.End() {
				here[i] = value{kind: e.Kind, version: e.Version}
			}
		}
	}
	for i := range here {
		want := l.pages[i].now
		want.tag = 0
		if int64(i) < from || int64(i) >= to || want.version <= since {
			want = value{}
		}
		if here[i] != want && (here[i] != value{} || !l.forgettable(want)) {
			w.Fatalf("page %d of the window: the extents say %+v, want %+v; all are %v", i, here[i], want, got)
		}
	}
}

func (w *walk) checkLayers() {
	w.Helper()
	here := w.fixture.layers()
	for _, l := range w.layers {
		got, listed := here[l.id]
		if listed != l.known {
			w.Fatalf("layer %v is listed: %v, want %v", l.id, listed, l.known)
		}
		if l.known && got != l.info() {
			w.Fatalf("layer is %+v, want %+v", got, l.info())
		}
	}
}

func (w *walk) checkAll() {
	w.Helper()
	w.checkLayers()
	for _, l := range w.layers {
		if l.known {
			w.checkPages([]*modelLayer{l}, 0, windowPages)
		}
	}
	w.wantFences(store.Fence{Volume: volume, Epoch: w.epoch})
}

// crash ends the store in one of three ways, opens it again and checks all.
func (w *walk) crash(how string) {
	w.Helper()
	w.note("%s", how)
	incarnation, was := w.Incarnation(), w.Replica
	switch how {
	case "kill":
		w.machine.Kill(w.T)
	case "power cut":
		w.machine.PowerCut(w.T)
	case "close":
		w.ok(w.store.Close())
	}
	w.store = w.machine.Open(w.T)
	_, err := w.store.Attach(w.ctx, volume, w.epoch-1)
	w.fails(err, store.ErrFenced)
	w.Replica = w.attach(w.epoch)
	if (w.Incarnation() != incarnation) != (how == "power cut") {
		w.Fatalf("after a %s the incarnation is %v, was %v", how, w.Incarnation(), incarnation)
	}
	if was.Sync(w.ctx) == nil {
		w.Fatal("a replica from before the crash still works")
	}
	if how != "close" {
		w.learnMarks()
	}
	if how == "power cut" {
		w.learnPages()
	}
	for _, l := range w.layers {
		l.knowMarks(l.stable, l.settled)
	}
	w.eachPage(func(_ *modelLayer, p *modelPage) { p.becomeSure() }) // N5
	w.checkAll()
}

// learnMarks accepts any marks that were told since they were last certain.
func (w *walk) learnMarks() {
	w.Helper()
	here := w.fixture.layers()
	for _, l := range w.layers {
		got := here[l.id]
		if !l.known {
			continue
		}
		if !slices.Contains(l.stables, got.Stable) || !slices.Contains(l.settleds, got.Settled) {
			w.Fatalf("layer is %+v, stable was one of %v, settled one of %v", got, l.stables, l.settleds)
		}
		l.knowMarks(got.Stable, got.Settled)
	}
}

// learnPages accepts for each page anything that the cut may have left.
func (w *walk) learnPages() {
	w.Helper()
	for _, l := range w.layers {
		if !l.known {
			continue
		}
		p, info := w.read(w.Replica, chain(l.id), windowFirst, windowPages)
		for i := range l.pages {
			w.learnPage(l, int64(i), info[i], p[i*ps:(i+1)*ps])
		}
	}
}

func (w *walk) learnPage(l *modelLayer, i int64, info store.PageInfo, p []byte) {
	w.Helper()
	for _, may := range l.pages[i].cut {
		matches := may.kind == info.Kind && may.version == info.Version ||
			l.forgettable(may) && info == absent
		if matches && bytes.Equal(p, may.bytes(windowFirst+i)) {
			if info == absent {
				may = value{}
			}
			l.pages[i].becomeAt(may)
			return
		}
	}
	w.Fatalf("page %d of the window of layer %v is %+v after the cut, with its bytes none of %+v",
		i, l.id, info, l.pages[i].cut)
}
