package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"torus/ring"
	"torus/store"
	"torus/store/faultstore"
)

// The histories: what exporters left on the nodes, made write by write under
// their epochs with the stores' own means, so that every copy can have missed
// anything that was not acknowledged, and lost anything that was not flushed.

const historySize = 2*store.ChunkSize + 16<<12

// history is what one exporter did and what each page may be afterwards.
type history struct {
	rng      *rand.Rand
	c        *nodes
	o        Options
	replicas []store.Replica
	seq      uint64

	acked   map[int64]store.Version            // by page: the highest that every copy answered
	flushed map[int64]store.Version            // the highest that a flush covered
	values  map[int64]map[store.Version]string // what each version ever given is; "" a hole
}

func newHistory(c *nodes, rng *rand.Rand) *history {
	return &history{
		rng: rng, c: c, o: c.options(1, historySize),
		acked: map[int64]store.Version{}, flushed: map[int64]store.Version{}, values: map[int64]map[store.Version]string{},
	}
}

// attach takes the nodes under the present epoch, as an exporter that serves.
func (h *history) attach(t *testing.T) {
	h.replicas, h.seq = nil, 0
	for _, s := range h.c.stores {
		r, err := s.Attach(t.Context(), testVolume, h.o.Epoch)
		must(t, err)
		must(t, r.Create(t.Context(), testHead, 0))
		h.replicas = append(h.replicas, r)
	}
}

// span picks some pages of one chunk, close together so that they meet.
func (h *history) span() (off, n int64) {
	chunk := h.rng.Int64N(3)
	off = chunk*store.ChunkSize + h.rng.Int64N(10)*store.PageSize
	return off, (1 + h.rng.Int64N(6)) * store.PageSize
}

// write does one write or zeroing on all copies, or if torn on any of them.
func (h *history) write(t *testing.T, torn bool) {
	off, n := h.span()
	h.seq++
	v := store.NewVersion(h.o.Epoch, h.seq)
	hole := h.rng.IntN(3) == 0
	p := bytes.Repeat(fmt.Appendf(nil, "%15v ", v), int(n/16))
	for _, id := range h.o.Place(ring.ChunkIndex(off / store.ChunkSize)) {
		if torn && h.rng.IntN(2) == 0 {
			continue
		}
		if r := h.replicas[id-1]; hole {
			must(t, r.Zero(t.Context(), testHead, off, n, v, 0))
		} else {
			must(t, r.Write(t.Context(), testHead, off, p, v, 0))
		}
	}
	for at := off; at < off+n; at += store.PageSize {
		if h.values[at] == nil {
			h.values[at] = map[store.Version]string{}
		}
		h.values[at][v] = string(p[:store.PageSize])
		if hole {
			h.values[at][v] = ""
		}
		if !torn {
			h.acked[at] = v
		}
	}
}

// flush syncs all nodes, and tells the mark to some of them.
func (h *history) flush(t *testing.T) {
	for _, r := range h.replicas {
		must(t, r.Sync(t.Context()))
	}
	for at, v := range h.acked {
		h.flushed[at] = v
	}
	mark := store.NewVersion(h.o.Epoch, h.seq)
	for _, r := range h.replicas {
		if h.rng.IntN(2) == 0 {
			must(t, r.Stable(t.Context(), testHead, mark, 0))
		}
	}
}

// work is an exporter's life, up to its end amid some writes.
func (h *history) work(t *testing.T) {
	h.attach(t)
	for range 5 + h.rng.IntN(30) {
		h.write(t, false)
		if h.rng.IntN(8) == 0 {
			h.flush(t)
		}
	}
	for range h.rng.IntN(6) {
		h.write(t, true)
	}
}

// crash ends nodes, by the power for some of them, and starts all.
func (h *history) crash() (cut []ring.NodeID) {
	one := h.rng.IntN(2) == 0
	for i, d := range h.c.disks {
		switch k := h.rng.IntN(3); {
		case k == 0 && !(one && len(cut) > 0):
			d.PowerCut()
			cut = append(cut, ring.NodeID(i+1))
		case k == 1:
			d.Kill()
		}
	}
	h.c.start()
	return cut
}

// check compares what all copies have with what may be there. From then on it is
// what must be there: it may have been read, and Open made it durable.
func (h *history) check(t *testing.T, cut []ring.NodeID) {
	t.Helper()
	const touched = 16 // pages of each chunk
	for off := int64(0); off < h.o.Size; off += store.ChunkSize {
		ids := h.o.Place(ring.ChunkIndex(off / store.ChunkSize))
		least := h.acked
		if !slices.ContainsFunc(ids, func(id ring.NodeID) bool { return !slices.Contains(cut, id) }) {
			least = h.flushed
			if !h.c.found.UnflushedGone {
				t.Fatalf("nodes %v lost their power, and all is said to be there", cut)
			}
		}
		pages := h.c.pagesOf(t, h.o, ids[0], off, touched)
		for _, id := range ids[1:] {
			if i := firstUnequal(pages, h.c.pagesOf(t, h.o, id, off, touched)); i >= 0 {
				t.Fatalf("page at %d differs between nodes %v and %v", off+int64(i)<<12, ids[0], id)
			}
		}
		for i, p := range pages {
			h.checkPage(t, off+int64(i)<<12, p, least[off+int64(i)<<12])
		}
	}
}

func (h *history) checkPage(t *testing.T, off int64, got page, least store.Version) {
	t.Helper()
	want, given := h.values[off][got.version]
	if got.kind == store.Absent && least > 0 { // a hole that was forgotten
		for v, value := range h.values[off] {
			if v >= least && value == "" && (!given || v < got.version) {
				got.version, given = v, true
			}
		}
	}
	if got.version < least || got.version > 0 && !given {
		t.Fatalf("page at %d has %v %v, want version %v or one above it", off, got.kind, got.version, least)
	}
	if want == "" {
		want = string(make([]byte, store.PageSize))
	}
	if got.data != want {
		t.Fatalf("page at %d, version %v, begins %q, want %q", off, got.version, got.data[:16], want[:16])
	}
	h.acked[off], h.flushed[off] = got.version, got.version
}

// firstUnequal returns the index of the first page that differs, or -1.
func firstUnequal(a, b []page) int {
	for i := range a {
		if a[i] != b[i] && !forgotten(a[i], b[i]) {
			return i
		}
	}
	return -1
}

// forgotten reports whether a and b are a settled hole that one node has forgotten
// and another has not: both read as zeroes.
func forgotten(a, b page) bool {
	return a.kind == store.Absent && b.kind == store.Hole || a.kind == store.Hole && b.kind == store.Absent
}

// TestReconcileHistories: whatever exporters left, and whichever nodes were
// killed or lost their power, what Open makes of it is one value on all copies:
// of each page what was acknowledged, or was flushed where every copy lost its
// power, or a write that began after it. A power cut after Open takes nothing. It
// gets there with the records, and without, by comparing all.
func TestReconcileHistories(t *testing.T) {
	runs := 60
	if os.Getenv("TORUS_LONG_TESTS") != "" {
		runs = 2000
	}
	for range runs {
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 0))
		count := 2 + rng.IntN(3)
		c := newNodes(count, 2+rng.IntN(min(count, 3)-1), rng)
		h := newHistory(c, rng)
		open(t, h.o) // which records the nodes
		t.Run(fmt.Sprintf("%d nodes, seed %#x", count, seed), func(t *testing.T) {
			for range 5 {
				h.o.Epoch++
				h.work(t)
				cut := h.crash()
				h.o = c.options(h.o.Epoch+1, historySize)
				h.o.Records, h.o.CompareAll = h.interrupted(rng), rng.IntN(3) == 0
				for {
					v, err := Open(t.Context(), h.o)
					if err == nil {
						defer v.Close()
						break
					}
					if !errors.Is(err, errInterrupted) {
						t.Fatal(err)
					}
					// It was not recorded, so nothing was read: any part may go again.
					cut = append(cut, h.crash()...)
					h.o = c.options(h.o.Epoch+1, historySize)
				}
				if h.o.CompareAll { // which does not know what lost its power
					c.found.UnflushedGone = true
				}
				h.check(t, cut)
				for _, d := range c.disks {
					d.PowerCut()
				}
				c.start()
				h.c.recorded = nil // as if nothing had happened: none is worth more than another
				h.o = c.options(h.o.Epoch+1, historySize)
				defer open(t, h.o).Close()
				c.found.UnflushedGone = true
				h.check(t, nil)
			}
		})
	}
}

var errInterrupted = errors.New("interrupted")

// interrupted are records that now and then fail.
func (h *history) interrupted(rng *rand.Rand) Records {
	record := h.o.Records
	return onServing{record, func(ctx context.Context, f Found) error {
		if rng.IntN(3) == 0 {
			return errInterrupted
		}
		return record.Serving(ctx, f)
	}}
}

// onServing are records whose Serving is a function.
type onServing struct {
	Records
	serving func(context.Context, Found) error
}

func (r onServing) Serving(ctx context.Context, f Found) error { return r.serving(ctx, f) }

// unequal leaves on three nodes, each page n in version 1.n: page 0 on the first
// node only, a hole over page 1 there, a page 2 that two have, and page 3 alike;
// pages 1 and 2 lie over something that all have. It returns options to open it.
func unequal(t *testing.T, c *nodes) Options {
	t.Helper()
	v := open(t, c.options(1, 1<<20))
	write(t, v, bytes.Repeat([]byte("base"), 4096), 0)
	must(t, v.Trim(0, 4096, false))
	replicas := make([]store.Replica, len(c.stores))
	for i, s := range c.stores {
		r, err := s.Attach(t.Context(), testVolume, 1)
		must(t, err)
		replicas[i] = r
		must(t, r.Write(t.Context(), testHead, 3*store.PageSize, pageFull('3'), store.NewVersion(1, 13), 0))
	}
	must(t, replicas[0].Write(t.Context(), testHead, 0, pageFull('0'), store.NewVersion(1, 10), 0))
	must(t, replicas[0].Zero(t.Context(), testHead, store.PageSize, store.PageSize, store.NewVersion(1, 11), 0))
	for _, r := range replicas[1:] {
		must(t, r.Write(t.Context(), testHead, 2*store.PageSize, pageFull('2'), store.NewVersion(1, 12), 0))
	}
	return c.options(2, 1<<20)
}

func pageFull(b byte) []byte { return bytes.Repeat([]byte{b}, store.PageSize) }

// TestReconcile: the highest version of a page goes to all its copies, data and
// holes (I6, I7), and no more is moved than differs.
func TestReconcile(t *testing.T) {
	c := newNodes(3, 3, nil)
	o := unequal(t, c)
	v := open(t, o)
	for i, want := range []byte{'0', 0, '2', '3'} {
		if got := read(t, v, int64(i)*store.PageSize, store.PageSize); !bytes.Equal(got, pageFull(want)) {
			t.Errorf("page %d reads as %q", i, got[:1])
		}
	}
	c.equal(t, o)
	if got := c.found.Repaired; got != (2+2+1)*store.PageSize {
		t.Errorf("%d bytes were brought to copies", got)
	}
	if c.found.UnflushedGone || c.found.Reborn != nil || len(c.found.Copies) != 3 {
		t.Errorf("found %+v", c.found)
	}
	for i, s := range c.stores { // nothing is left to compare
		for l, err := range s.Layers(t.Context()) {
			must(t, err)
			// No hole is forgotten while a late Adopt may come.
			if stable, settled := store.NewVersion(2, 0), store.NewVersion(1, 0); l.Stable != stable || l.Settled != settled {
				t.Errorf("node %d has the marks %v and %v, want %v and %v", i+1, l.Stable, l.Settled, stable, settled)
			}
		}
	}
}

// TestReconcileMissedMark: what one node was told to be stable is equal on all,
// also on one that lists it because it was not told.
func TestReconcileMissedMark(t *testing.T) {
	c := newNodes(3, 3, nil)
	f := faulty(c)
	v := open(t, c.options(1, 1<<20))
	inject(f[1], "stables fail")
	write(t, v, make([]byte, 64<<10), 0)
	must(t, v.settleNow())
	f[0].Inject(faultstore.MustParse("reads,adopts fail"))
	open(t, c.options(2, 1<<20))
	if c.found.Repaired != 0 {
		t.Errorf("%d bytes were brought to copies", c.found.Repaired)
	}
}

// TestReconcileLong: what is more than a piece, over chunks of different copies.
func TestReconcileLong(t *testing.T) {
	c := newNodes(4, 2, nil)
	o := c.options(1, 64<<20)
	open(t, o)
	p := make([]byte, 12<<20)
	for i := range p {
		p[i] = byte(i >> 12 * 7)
	}
	for i, s := range c.stores {
		r, err := s.Attach(t.Context(), testVolume, 1)
		must(t, err)
		for chunk := int64(0); chunk < 16; chunk++ {
			first := o.Place(ring.ChunkIndex(chunk))[chunk%2] == ring.NodeID(i+1)
			switch off := chunk * store.ChunkSize; {
			case first && chunk < 3:
				must(t, r.Write(t.Context(), testHead, off, p[off:][:store.ChunkSize], store.NewVersion(1, 1), 0))
			case first:
				must(t, r.Zero(t.Context(), testHead, off, store.ChunkSize, store.NewVersion(1, 2), 0))
			}
		}
	}
	o = c.options(2, 64<<20)
	v := open(t, o)
	c.equal(t, o)
	if got := c.found.Repaired; got != o.Size {
		t.Errorf("%d bytes were brought to copies, want %d", got, o.Size)
	}
	if !bytes.Equal(read(t, v, 0, int64(len(p))), p) {
		t.Error("not what was written")
	}
}

// TestSweep: runs end where any list has a border, and say what each list has.
func TestSweep(t *testing.T) {
	e := func(first, end int64, v store.Version) store.Extent {
		return store.Extent{Off: first << 12, N: (end - first) << 12, Kind: store.Hole, Version: v}
	}
	s := sweep{lists: [][]store.Extent{
		{e(0, 6, 10), e(8, 9, 13)},
		{e(3, 4, 11), e(4, 7, 12), e(1<<20, 1<<21, 14)},
		nil,
	}}
	var got []string
	state := make([]store.Extent, 3)
	for {
		off, end, ok := s.next(state)
		if !ok {
			break
		}
		got = append(got, fmt.Sprintf("%d-%d: %d %d %d", off>>12, end>>12, state[0].Version, state[1].Version, state[2].Version))
	}
	want := []string{"0-3: 10 0 0", "3-4: 10 11 0", "4-6: 10 12 0", "6-7: 0 12 0", "8-9: 13 0 0", "1048576-2097152: 0 14 0"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestCleanIsNotReconciled: there is nothing to compare, and nothing is asked.
func TestCleanIsNotReconciled(t *testing.T) {
	c := newNodes(3, 3, nil)
	v := open(t, c.options(1, 1<<20))
	write(t, v, []byte("x"), 0)
	must(t, v.Close())
	for _, f := range faulty(c) {
		inject(f, "reads,adopts,stables fail")
	}
	o := c.options(2, 1<<20)
	o.Clean = true
	if _, err := Open(t.Context(), o); err != nil {
		t.Error(err)
	}
}

// TestOpenServesWhenRecorded: only once the copies are equal and durable is it
// recorded, and only once it is recorded served, or said to be stable.
func TestOpenServesWhenRecorded(t *testing.T) {
	c := newNodes(3, 3, rand.New(rand.NewPCG(1, 1)))
	o := unequal(t, c)
	refused := errors.New("somebody else has it")
	o.Records = onServing{o.Records, func(context.Context, Found) error {
		c.equal(t, o)
		return refused
	}}
	if _, err := Open(t.Context(), o); !errors.Is(err, refused) {
		t.Fatalf("opened without a record: %v", err)
	}
	for i, s := range c.stores {
		for l, err := range s.Layers(t.Context()) {
			must(t, err)
			if l.Stable.Epoch() >= o.Epoch {
				t.Errorf("node %d was told that %v is stable", i+1, l.Stable)
			}
		}
	}
	for _, d := range c.disks {
		d.PowerCut()
	}
	c.start()
	again := c.options(3, 1<<20)
	v := open(t, again)
	if got := read(t, v, 0, store.PageSize); !bytes.Equal(got, pageFull('0')) {
		t.Errorf("what was synced before the record reads as %q", got[:1])
	}
}

// TestOtherStoreRefused: a store in the place of the one that had the copy has
// nothing of it (N3), clean or not; also one that was never recorded. Where no
// other copy is in sync, that is said at once.
func TestOtherStoreRefused(t *testing.T) {
	for _, clean := range []bool{true, false} {
		for _, known := range []bool{true, false} {
			c := newNodes(2, 2, nil)
			v := open(t, c.options(1, 1<<20))
			write(t, v, []byte("x"), 0)
			must(t, v.Close())
			c.stores[1] = newNodes(1, 1, nil).stores[0]
			o := c.options(2, 1<<20)
			o.Clean = clean
			if !known {
				o.Recorded = map[ring.NodeID]Copy{1: o.Recorded[1]}
			}
			o.Stale = []Stale{{Node: 1, Layer: testHead}}
			_, err := Open(t.Context(), o)
			if !errors.Is(err, ErrOtherStore) || !errors.Is(err, ErrNoCopy) || !strings.Contains(err.Error(), "node 0000000000000002") {
				t.Errorf("clean %v, recorded %v: %v", clean, known, err)
			}
			o.Stale, o.Records = nil, nil
			if _, err := Open(t.Context(), o); !errors.Is(err, ErrOtherStore) {
				t.Errorf("clean %v, recorded %v, no records: %v", clean, known, err)
			}
		}
	}
}

// TestReconcileCorrupt: a corrupt page is repaired from a copy that has the same
// version; if none has, from the highest that is sound, which says that nothing
// is gone if that copy never had the other. Corrupt everywhere it is an error,
// for that page only (I9).
func TestReconcileCorrupt(t *testing.T) {
	for _, test := range []struct {
		name    string
		corrupt []int // nodes, by index, that have page `page` corrupt
		page    int64
		cut     []int  // nodes that lost their power
		want    string // what all copies have then; "" an error
		gone    bool
	}{
		{"one of two sources", []int{1}, 2, nil, "2", false},
		{"both sources", []int{1, 2}, 2, nil, "b", false},
		{"the only source", []int{0}, 0, nil, "\x00", false},
		{"the only source, others lost their power", []int{0}, 0, []int{1, 2}, "\x00", true},
		{"sources and others", []int{0, 1, 2}, 2, nil, "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			o := unequal(t, c)
			for _, i := range test.cut {
				c.disks[i].PowerCut()
				c.stores[i] = c.disks[i].Open()
			}
			f := faulty(c)
			o.Stores = c.options(2, 1<<20).Stores
			for _, i := range test.corrupt {
				inject(f[i], fmt.Sprintf("reads at [%d,%d) corrupt", test.page<<12, (test.page+1)<<12))
			}
			v, err := Open(t.Context(), o)
			must(t, err)
			defer v.Close()
			if c.found.UnflushedGone != test.gone {
				t.Errorf("unflushed writes gone: %v", c.found.UnflushedGone)
			}
			p := make([]byte, store.PageSize)
			if _, err := v.ReadAt(p, test.page<<12); test.want == "" {
				if !errors.Is(err, store.ErrCorrupt) || errors.Is(err, ErrBroken) {
					t.Errorf("read: %v", err)
				}
				if got := read(t, v, 0, 1); got[0] != '0' {
					t.Errorf("another page reads as %q", got)
				}
				write(t, v, pageFull('n'), test.page<<12)
				must(t, v.Close())
				return
			} else if err != nil || string(p[:1]) != test.want {
				t.Errorf("read %q, %v", p[:1], err)
			}
			c.equal(t, o) // through the faults: adopting has healed them
		})
	}
}

// TestReconcileInterrupted: whatever fails on a node on the way, the others are
// brought to one value without it, which is recorded, and the next Open ends what
// this one began.
func TestReconcileInterrupted(t *testing.T) {
	for _, fault := range []string{
		"adopts fail", "adopts fail after 2", "adopts tear", "adopts apply and fail after 1", "adopts crash after 1",
		"reads fail", "unstables fail", "syncs fail", "syncs apply and fail", "creates fail", "stats fail",
	} {
		for node := range 3 {
			seed := rand.Uint64()
			synctest.Test(t, func(t *testing.T) {
				c := newNodes(3, 3, rand.New(rand.NewPCG(seed, 0)))
				o := unequal(t, c)
				inner := slices.Clone(c.stores)
				f := faulty(c)
				o.Stores = c.options(2, 1<<20).Stores
				inject(f[node], fault)
				v, err := Open(context.Background(), o)
				must(t, err)
				_, out := c.lacks()[ring.NodeID(node+1)]
				if !out && !(node > 0 && fault == "reads fail") && !strings.Contains(fault, "after") { // that node had nothing to do
					t.Errorf("%s on node %d: stale are %v", fault, node+1, c.lacks())
				}
				v.cancel() // as if the process had ended
				v.settle.end()
				v.tenders.Wait()
				c.stores = inner
				c.disks[node].PowerCut()
				c.stores[node] = c.disks[node].Open()
				again := c.options(3, 1<<20)
				v, err = Open(context.Background(), again)
				must(t, err)
				defer v.Close()
				joins(t, v)
				c.equal(t, again)
				if got := read(t, v, 3*store.PageSize, 1); got[0] != '3' || c.found.UnflushedGone {
					t.Errorf("%s on node %d, seed %#x: what was acknowledged reads as %q", fault, node+1, seed, got)
				}
			})
		}
	}
}

// TestAttachBeginsAgain: a node that does not answer yet, or is started anew
// meanwhile, is tried again, from the start, and as long as ctx allows.
func TestAttachBeginsAgain(t *testing.T) {
	for _, fault := range []string{
		"attaches fail with unreachable 3 times", "adopts fail with unreachable once", "reads fail with unreachable once",
		"unstables fail with incarnation once", "adopts apply and fail with incarnation once", "syncs fail with unreachable once",
	} {
		c := newNodes(3, 3, nil)
		o := unequal(t, c)
		f := faulty(c)
		o.Stores = c.options(2, 1<<20).Stores
		inject(f[0], fault)
		inject(f[1], fault)
		v, err := Open(t.Context(), o)
		if err != nil {
			t.Errorf("%s: %v", fault, err)
			continue
		}
		c.equal(t, o)
		must(t, v.Close())
	}
	c := newNodes(3, 3, nil)
	o := c.options(1, 1<<20)
	f := faultstore.New(c.stores[2], faultstore.Options{})
	o.Stores[3] = f
	inject(f, "attaches fail with unreachable")
	ctx, cancel := context.WithCancel(t.Context())
	o.Logger = cancelAtWarning(cancel)
	_, err := Open(ctx, o)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, store.ErrUnreachable) || !strings.Contains(err.Error(), "node 0000000000000003") {
		t.Errorf("never reached: %v", err)
	}
	inject(f, "attaches fail with fenced")
	f.Remove(faultstore.MustParse("attaches fail with unreachable"))
	if _, err := Open(t.Context(), o); !errors.Is(err, store.ErrFenced) {
		t.Errorf("fenced: %v", err)
	}
}

// TestOpenOverOpen: a second Open, under a higher epoch, ends the one that is
// under way, before or behind its record; what they did together is one value.
func TestOpenOverOpen(t *testing.T) {
	for _, fault := range []string{"adopts hang once", "unstables hang once", "syncs hang once", "stables hang once"} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			unequal(t, c)
			f := faulty(c)
			hang := inject(f[1], fault)
			first, second := c.options(2, 1<<20), c.options(3, 1<<20)
			under := begin(func() error {
				v, err := Open(context.Background(), first)
				if err == nil {
					v.Close()
				}
				return err
			})
			under.waits(t, fault+": the first")
			v, err := Open(context.Background(), second)
			must(t, err)
			write(t, v, []byte("second"), 0)
			f[1].Remove(hang)
			under.ends(t, fault+": the first", store.ErrFenced)
			c.equal(t, second)
			if got := string(read(t, v, 0, 7)); got != "second0" {
				t.Errorf("%s: read %q", fault, got)
			}
			must(t, v.Close())
		})
	}
}
