package volume

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"torus/store"
)

// The model test: workers that each own some bytes of a volume write, trim,
// zero, read and flush, at any alignment, and know what must be there. Their
// bytes interleave inside pages, so that every page is merged into by several.
// Between and amid the work come crashes, take-overs and new heads.

const (
	modelSize    = 10<<20 + 12<<10 // two and a half chunks, and a bit
	modelWorkers = 6
	modelStripe  = 1500 // bytes owned in turn in the first modelShared bytes
	modelShared  = 96 << 10
)

// modelOp is one change that a worker made or tried.
type modelOp struct {
	off  int64
	p    []byte // what reads as this afterwards
	kind int    // of opWrite ...
	fua  bool
	done bool // was answered
}

const (
	opWrite = iota
	opTrim
	opZero
	opZeroNoHole
)

// modelWorker owns the bytes of its areas and knows their history since they
// were last flushed.
type modelWorker struct {
	rng   *rand.Rand
	areas [][2]int64
	base  []byte    // the volume's size; what the own bytes were at the last flush
	now   []byte    // what they are
	log   []modelOp // since
}

// newModelWorker deals out the bytes.
func newModelWorker(i int, rng *rand.Rand) *modelWorker {
	w := &modelWorker{rng: rng, base: make([]byte, modelSize), now: make([]byte, modelSize)}
	for off := int64(i * modelStripe); off+modelStripe <= modelShared; off += modelWorkers * modelStripe {
		w.areas = append(w.areas, [2]int64{off, off + modelStripe})
	}
	const rest = modelSize - modelShared
	lo := modelShared + int64(i)*rest/modelWorkers + int64(i*7)
	hi := modelShared + int64(i+1)*rest/modelWorkers + int64((i+1)*7)
	if i == modelWorkers-1 {
		hi = modelSize
	}
	w.areas = append(w.areas, [2]int64{lo, hi})
	return w
}

// pick chooses an own range, aligned in a third of all cases.
func (w *modelWorker) pick() (off, n int64) {
	a := w.areas[len(w.areas)-1]
	if w.rng.IntN(2) == 0 {
		a = w.areas[w.rng.IntN(len(w.areas))]
	}
	off = a[0] + w.rng.Int64N(a[1]-a[0])
	n = 1 + w.rng.Int64N(min(a[1]-off, []int64{200, 5000, 20000, 300000, 6 << 20}[min(w.rng.IntN(9), 4)]))
	if w.rng.IntN(3) == 0 && pageCeil(off)+store.PageSize <= a[1] {
		off = pageCeil(off)
		n = min(pageCeil(n), pageFloor(a[1]-off))
	}
	return off, n
}

// step does one thing; an error of the volume ends the worker.
func (w *modelWorker) step(v *Volume) error {
	switch k := w.rng.IntN(20); {
	case k == 0:
		covered := len(w.log)
		if err := v.Sync(); err != nil {
			return err
		}
		w.flushed(covered)
		return nil
	case k < 7:
		off, n := w.pick()
		p := make([]byte, n)
		if _, err := v.ReadAt(p, off); err != nil {
			return err
		}
		if i := firstDifference(p, w.now[off:off+n]); i >= 0 {
			return fmt.Errorf("MODEL: read %d+%d: byte %d is %#x, want %#x", off, n, off+int64(i), p[i], w.now[off+int64(i)])
		}
		return nil
	default:
		return w.change(v, k)
	}
}

// change makes one change and enters it in the log before it is tried.
func (w *modelWorker) change(v *Volume, k int) error {
	off, n := w.pick()
	op := modelOp{off: off, p: make([]byte, n), kind: opWrite, fua: w.rng.IntN(8) == 0}
	if k >= 17 {
		op.kind = k - 16
	} else {
		fill := byte(1 + w.rng.IntN(255))
		for i := range op.p {
			op.p[i] = fill + byte(i>>9)
		}
	}
	w.log = append(w.log, op)
	var err error
	switch {
	case op.kind == opTrim:
		err = v.Trim(off, n, op.fua)
	case op.kind != opWrite:
		err = v.Zero(off, n, op.fua, op.kind == opZeroNoHole)
	case op.fua:
		_, err = v.WriteAtSync(op.p, off)
	default:
		_, err = v.WriteAt(op.p, off)
	}
	if err != nil {
		return err
	}
	w.log[len(w.log)-1].done = true
	copy(w.now[off:], op.p)
	return nil
}

// flushed forgets the history up to n changes, which are durable now.
func (w *modelWorker) flushed(n int) {
	for _, op := range w.log[:n] {
		copy(w.base[op.off:], op.p)
	}
	w.log = w.log[n:]
}

// verify compares the volume with what it may hold after a crash: each part of a
// page as some change left it, not one before the last that must have survived.
// What it finds is what must be there from now on.
func (w *modelWorker) verify(v *Volume, powerCut bool) error {
	if !powerCut { // all that was answered is there
		done := len(w.log)
		if done > 0 && !w.log[done-1].done {
			done--
		}
		w.flushed(done)
	}
	for _, a := range w.areas {
		got := make([]byte, a[1]-a[0])
		if _, err := v.ReadAt(got, a[0]); err != nil {
			return err
		}
		for off := a[0]; off < a[1]; {
			end := min(pageFloor(off)+store.PageSize, a[1])
			have := got[off-a[0] : end-a[0]]
			if may := w.candidates(off, end); !slices.ContainsFunc(may, func(p []byte) bool { return bytes.Equal(p, have) }) {
				return fmt.Errorf("MODEL: [%d,%d) is none of %d candidates, begins %x, want %x", off, end, len(may), have[:1], may[0][:1])
			}
			off = end
		}
		copy(w.base[a[0]:], got)
		copy(w.now[a[0]:], got)
	}
	w.log = nil
	return nil
}

// candidates returns what [off, end), inside a page, may be after a crash.
func (w *modelWorker) candidates(off, end int64) [][]byte {
	may := [][]byte{w.base[off:end]}
	state := slices.Clone(w.base[off:end])
	for _, op := range w.log {
		from, to := max(off, op.off), min(end, op.off+int64(len(op.p)))
		if from >= to {
			continue
		}
		copy(state[from-off:to-off], op.p[from-op.off:])
		if op.fua && op.done {
			may = nil
		}
		may = append(may, slices.Clone(state))
	}
	return may
}

// firstDifference returns the index of the first byte that differs, or -1.
func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// checkExtents compares Extents with the contents: no gaps, merged, and what it
// calls a hole is zero.
func checkExtents(t *testing.T, v *Volume) {
	t.Helper()
	at, last := int64(0), store.Absent
	for e, err := range v.Extents(0, v.Size()) {
		must(t, err)
		if e.Off != at || e.N <= 0 || e.Kind == last || e.Kind != store.Data && e.Kind != store.Hole {
			t.Fatalf("extent %v at %d after %v", e, at, last)
		}
		if e.Kind == store.Hole {
			if p := read(t, v, e.Off, e.N); firstDifference(p, make([]byte, e.N)) >= 0 {
				t.Fatalf("%v is not zero", e)
			}
		}
		at, last = e.Off+e.N, e.Kind
	}
	if at != v.Size() {
		t.Fatalf("extents end at %d, not %d", at, v.Size())
	}
}

// event is what ends a round of the model test.
type event int

const (
	cleanClose event = iota
	newHead          // closed cleanly, opened with another head over it
	takeOver         // another attachment while the old one works
	kill             // all stores die amid the work
	killOne          // one does
	cutOne           // the machine of one
	powerCut         // the machines of all
	events
)

// errGone: the exporter ends with the nodes, and records nothing any more.
var errGone = errors.New("the exporter is gone")

func (e event) String() string {
	return [...]string{"clean close", "new head", "take-over", "kill", "kill of one", "power cut of one", "power cut"}[e]
}

func testModel(t *testing.T, count, copies int, events event) {
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	c := newNodes(count, copies, rng)
	workers := make([]*modelWorker, modelWorkers)
	for i := range workers {
		workers[i] = newModelWorker(i, rand.New(rand.NewPCG(seed, uint64(i)+1)))
	}
	o := c.options(1, modelSize)
	o.SyncBytes = 4 << 20
	v := open(t, o)
	rounds := 12
	if testing.Short() {
		rounds = 6
	}
	for round := range rounds {
		ev := event(rng.IntN(int(events)))
		v = modelRound(t, c, &o, v, workers, ev, 100+rng.IntN(400))
		if may := ev == powerCut || ev == cutOne && copies == 1; c.found.UnflushedGone && !may {
			t.Fatalf("seed %#x round %d: unflushed writes may be gone after %v", seed, round, ev)
		}
		c.alike(t, o)
		var failed []error
		for _, w := range workers {
			failed = append(failed, w.verify(v, c.found.UnflushedGone))
		}
		for i, err := range failed {
			if err != nil {
				t.Fatalf("seed %#x round %d worker %d after %v: %v", seed, round, i, ev, err)
			}
		}
		checkExtents(t, v)
	}
}

// modelRound lets the workers work until the event, at about so many steps, and
// returns the volume as it was opened after it.
func modelRound(t *testing.T, c *nodes, o *Options, v *Volume, workers []*modelWorker, ev event, steps int) *Volume {
	t.Helper()
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(steps))
	reached := make(chan struct{})
	amid := ev >= takeOver
	errs := make([]error, len(workers))
	for i, w := range workers {
		wg.Go(func() {
			for amid || left.Load() > 0 {
				if left.Add(-1) == 0 {
					close(reached)
				}
				if errs[i] = w.step(v); errs[i] != nil {
					return
				}
			}
		})
	}
	<-reached
	o.Epoch++
	o.Recorded, o.Clean = c.recorded, false
	victim := c.disks[steps%min(len(c.disks), 4)] // three chunks of two copies are on the first four
	var next *Volume
	switch ev {
	case cleanClose, newHead:
		wg.Wait()
		must(t, v.Close())
		o.Clean = true
		if ev == newHead {
			o.Chain = append([]store.LayerID{o.Chain[0] + 1}, o.Chain...)
		}
	case takeOver:
		next = open(t, *o)
	case kill:
		v.stop(errGone)
		for _, d := range c.disks {
			d.Kill()
		}
	case killOne:
		v.stop(errGone)
		victim.Kill()
	case cutOne:
		v.stop(errGone)
		victim.PowerCut()
	case powerCut:
		v.stop(errGone)
		for _, d := range c.disks {
			d.PowerCut()
		}
	}
	wg.Wait()
	v.Close() // after a crash it can't end clean, but its goroutines must
	for i, err := range errs {
		if (err != nil) != amid || err != nil && bytes.HasPrefix([]byte(err.Error()), []byte("MODEL")) {
			t.Fatalf("worker %d before %v: %v", i, ev, err)
		}
	}
	if next != nil {
		return next
	}
	if amid {
		c.start()
	}
	fresh := c.options(o.Epoch, o.Size)
	o.Stores = fresh.Stores
	return open(t, *o)
}

func TestModelOneStore(t *testing.T)     { testModel(t, 1, 1, events) }
func TestModelThreeStores(t *testing.T)  { testModel(t, 3, 3, events) }
func TestModelSpreadCopies(t *testing.T) { testModel(t, 5, 2, events) }
