package storetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"torus/store"
)

// The model test reads these: which seed to run again (one, instead of some at
// random), and how many operations.
const (
	seedVariable  = "TORUS_STORE_SEED"
	stepsVariable = "TORUS_STORE_STEPS"
)

// runModel does random operations, crashes among them, on the store and on a
// model that knows which values each page may have.
func runModel(t *testing.T, newMachine func(t *testing.T) Machine) {
	seeds := []uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()}
	if seed, set := fromEnvironment(t, seedVariable); set {
		seeds = []uint64{seed}
	}
	steps, set := fromEnvironment(t, stepsVariable)
	if !set {
		steps = 400
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			w := newWalk(newFixture(t, newMachine(t)), seed)
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("again with %s=%d %s=%d; the last steps:", seedVariable, seed, stepsVariable, steps)
					for _, step := range w.trace[max(0, len(w.trace)-60):] {
						t.Log(step)
					}
				}
			})
			for range steps {
				w.step()
			}
			w.checkAll()
			w.crash("power cut")
		})
	}
}

func fromEnvironment(t *testing.T, name string) (uint64, bool) {
	text, set := os.LookupEnv(name)
	if !set {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n, true
}

// The model knows a window of pages around the end of a chunk.
const (
	windowPages = 32
	windowFirst = store.PagesPerChunk - windowPages/2
)

// A value is what a page may be; the tag tells apart the bytes of one version.
type value struct {
	kind    store.Kind
	version store.Version
	tag     uint64
}

func (v value) bytes(page int64) []byte {
	if v.kind != store.Data {
		return make([]byte, ps)
	}
	return tagged(page, 1, v.version, v.tag)
}

// A modelPage is what the page is, and all that a power cut may make of it.
type modelPage struct {
	now value
	cut []value
}

func (p *modelPage) become(v value)   { p.now = v; p.cut = append(p.cut, v) }
func (p *modelPage) becomeSure()      { p.cut = []value{p.now} }
func (p *modelPage) becomeAt(v value) { p.now = v; p.becomeSure() }
func (p *modelPage) applies(v store.Version, stable store.Version) bool {
	return v > p.now.version && v > stable
}

// A modelLayer is a layer as it should be.
type modelLayer struct {
	id, parent      store.LayerID
	known           bool
	pages           [windowPages]modelPage
	stable, settled store.Version
	// What the marks may be after a crash: all that they were since they were
	// last certain.
	stables, settleds []store.Version
}

func newModelLayer(id, parent store.LayerID) *modelLayer {
	l := &modelLayer{id: id, parent: parent, known: true}
	for i := range l.pages {
		l.pages[i].becomeSure()
	}
	l.knowMarks(0, 0)
	return l
}

func (l *modelLayer) knowMarks(stable, settled store.Version) {
	l.stable, l.settled = stable, settled
	l.stables, l.settleds = []store.Version{stable}, []store.Version{settled}
}

func (l *modelLayer) raise(stable, settled store.Version) {
	l.stable, l.settled = max(l.stable, stable), max(l.settled, settled)
	l.stables, l.settleds = append(l.stables, l.stable), append(l.settleds, l.settled)
}

// forgettable says whether the store may have made absent what is v.
func (l *modelLayer) forgettable(v value) bool {
	return l.parent == 0 && v.kind == store.Hole && v.version <= l.settled
}

// info is how the store should list the layer.
func (l *modelLayer) info() store.LayerInfo {
	info := store.LayerInfo{ID: l.id, Parent: l.parent, Stable: l.stable, Settled: l.settled}
	for _, p := range l.pages {
		if p.now.kind == store.Data {
			info.Bytes += ps
		}
	}
	return info
}

// A walk is a model beside a store, and the way they went.
type walk struct {
	*fixture
	rng      *rand.Rand
	epoch    store.Epoch
	sequence uint64
	given    []store.Version // every version used
	layers   []*modelLayer   // in order of the chain
	trace    []string
}

func newWalk(f *fixture, seed uint64) *walk {
	return &walk{
		fixture: f,
		rng:     rand.New(rand.NewPCG(seed, 0)),
		epoch:   first,
		given:   []store.Version{v(0)},
		layers:  []*modelLayer{newModelLayer(top, mid), newModelLayer(mid, bottom), newModelLayer(bottom, 0)},
	}
}

func (w *walk) note(format string, a ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%4d ", len(w.trace))+fmt.Sprintf(format, a...))
}

// step does one random operation.
func (w *walk) step() {
	w.Helper()
	ops := []struct {
		weight int
		do     func()
	}{
		{30, w.writeSome}, {8, w.zeroSome}, {1, w.zeroAll}, {8, w.adoptSome},
		{25, w.checkRead}, {5, w.checkExtents}, {5, w.checkUnstable}, {3, w.checkLayers},
		{5, w.syncAll}, {5, w.tellMarks}, {2, w.dropChunk}, {1, w.dropLayer}, {2, w.attachNext},
		{1, func() { w.crash("kill") }}, {2, func() { w.crash("power cut") }}, {1, func() { w.crash("close") }},
	}
	sum := 0
	for _, op := range ops {
		sum += op.weight
	}
	n := w.rng.IntN(sum)
	for _, op := range ops {
		if n -= op.weight; n < 0 {
			op.do()
			return
		}
	}
}

func (w *walk) layer() *modelLayer { return w.layers[w.rng.IntN(len(w.layers))] }

// someRange is mostly a few pages, counted from the start of the window.
func (w *walk) someRange() (from, to int64) {
	from = w.rng.Int64N(windowPages)
	to = min(windowPages, from+1+w.rng.Int64N(8))
	return from, to
}

// version is mostly a new one, sometimes one that was used.
func (w *walk) version() store.Version {
	if w.rng.IntN(4) == 0 {
		return w.given[w.rng.IntN(len(w.given))]
	}
	w.sequence++
	version := store.NewVersion(w.epoch, w.sequence)
	w.given = append(w.given, version)
	return version
}

func (w *walk) flags() store.Flags {
	if w.rng.IntN(5) == 0 {
		return store.FlagSync
	}
	return 0
}

// done wants ErrUnknownLayer of a layer that isn't known, else nil, and returns
// whether it was known.
func (w *walk) done(l *modelLayer, err error) bool {
	w.Helper()
	if !l.known {
		w.fails(err, store.ErrUnknownLayer)
		return false
	}
	w.ok(err)
	return true
}

func (w *walk) writeSome() {
	w.Helper()
	l, version, flags := w.layer(), w.version(), w.flags()
	from, to := w.someRange()
	w.note("write %v [%d,%d) %v flags %d", l.id, from, to, version, flags)
	err := w.Write(w.ctx, l.id, (windowFirst+from)*ps, pattern(windowFirst+from, to-from, version), version, flags)
	if w.done(l, err) {
		w.apply(l, from, to, value{kind: store.Data, version: version}, flags)
	}
}

func (w *walk) zeroSome() {
	w.Helper()
	l, version, flags := w.layer(), w.version(), w.flags()
	from, to := w.someRange()
	w.note("zero %v [%d,%d) %v flags %d", l.id, from, to, version, flags)
	if w.done(l, w.Zero(w.ctx, l.id, (windowFirst+from)*ps, (to-from)*ps, version, flags)) {
		w.apply(l, from, to, value{kind: store.Hole, version: version}, flags)
	}
}

func (w *walk) zeroAll() {
	w.Helper()
	l, version, flags := w.layer(), w.version(), w.flags()
	w.note("zero %v whole %v flags %d", l.id, version, flags)
	if w.done(l, w.Zero(w.ctx, l.id, 0, everything, version, flags)) {
		w.apply(l, 0, windowPages, value{kind: store.Hole, version: version}, flags)
	}
}

// apply is the rule of Write and Zero.
func (w *walk) apply(l *modelLayer, from, to int64, v value, flags store.Flags) {
	for i := from; i < to; i++ {
		if p := &l.pages[i]; p.applies(v.version, l.stable) {
			p.become(v)
		}
		if flags&store.FlagSync != 0 {
			l.pages[i].becomeSure()
		}
	}
}

func (w *walk) adoptSome() {
	w.Helper()
	l := w.layer()
	from, to := w.someRange()
	v := value{kind: store.Kind(w.rng.IntN(3))}
	if v.kind != store.Absent {
		v.version = w.version()
	}
	if v.kind == store.Data {
		v.tag = w.rng.Uint64N(3)
	}
	for _, p := range l.pages[from:to] {
		if l.forgettable(p.now) {
			return // whether its version counts depends on whether it was forgotten
		}
	}
	w.note("adopt %v [%d,%d) %+v", l.id, from, to, v)
	var p []byte
	if v.kind == store.Data {
		p = tagged(windowFirst+from, to-from, v.version, v.tag)
	}
	if !w.done(l, w.Adopt(w.ctx, l.id, extent(windowFirst+from, to-from, v.kind, v.version), p)) {
		return
	}
	for i := from; i < to; i++ {
		if here := l.pages[i].now.version; here <= v.version || here.Epoch() != w.epoch {
			l.pages[i].become(v)
		}
	}
}

func (w *walk) syncAll() {
	w.Helper()
	w.note("sync")
	w.sync()
	w.eachPage(func(_ *modelLayer, p *modelPage) { p.becomeSure() })
}

func (w *walk) eachPage(do func(*modelLayer, *modelPage)) {
	for _, l := range w.layers {
		for i := range l.pages {
			do(l, &l.pages[i])
		}
	}
}

func (w *walk) tellMarks() {
	w.Helper()
	l := w.layer()
	stable := w.given[w.rng.IntN(len(w.given))]
	settled := min(stable, w.given[w.rng.IntN(len(w.given))])
	w.note("stable %v %v settled %v", l.id, stable, settled)
	if w.done(l, w.Stable(w.ctx, l.id, stable, settled)) {
		l.raise(stable, settled)
	}
}

func (w *walk) dropChunk() {
	w.Helper()
	l, chunk := w.layer(), w.rng.IntN(2)
	w.note("drop %v chunk %d", l.id, chunk)
	w.ok(w.store.Drop(w.ctx, l.id, store.Chunks{First: uint32(chunk), End: uint32(chunk) + 1}))
	for i := range windowPages / 2 {
		l.pages[chunk*windowPages/2+i].becomeAt(value{})
	}
}

func (w *walk) dropLayer() {
	w.Helper()
	l := w.layer()
	if l.known {
		w.note("drop %v", l.id)
		w.ok(w.store.Drop(w.ctx, l.id, store.AllChunks))
		*l = *newModelLayer(l.id, l.parent)
		l.known = false
	}
	if w.rng.IntN(3) > 0 {
		w.note("create %v", l.id)
		w.ok(w.Create(w.ctx, l.id, l.parent))
		l.known = true
	}
}

func (w *walk) attachNext() {
	w.Helper()
	was := w.Replica
	w.epoch++
	w.sequence = 0
	w.note("attach %d", w.epoch)
	w.Replica = w.attach(w.epoch)
	w.fails(was.Write(w.ctx, top, windowFirst*ps, make([]byte, ps), store.NewVersion(w.epoch, 0), 0), store.ErrFenced)
}
