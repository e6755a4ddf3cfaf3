package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"torus/ring"
	"torus/store"
)

func TestOpenRefuses(t *testing.T) {
	c := newNodes(3, 3, nil)
	for _, test := range []struct {
		name string
		set  func(*Options)
		want string // in the error
	}{
		{"epoch 0", func(o *Options) { o.Epoch = 0 }, "epoch 0"},
		{"epoch too high", func(o *Options) { o.Epoch = store.MaxEpoch + 1 }, "epoch 16777216"},
		{"no chain", func(o *Options) { o.Chain = nil }, "chain []"},
		{"layer 0", func(o *Options) { o.Chain = []store.LayerID{1, 0} }, "layer 0"},
		{"size 0", func(o *Options) { o.Size = 0 }, "size 0"},
		{"size odd", func(o *Options) { o.Size = 5000 }, "size 5000"},
		{"size above all", func(o *Options) { o.Size = store.MaxVolumeSize + store.PageSize }, "size 1125899906846720"},
		{"no stores", func(o *Options) { o.Stores = nil }, "no stores"},
		{"no placement", func(o *Options) { o.Place = nil }, "3 stores and no placement"},
		{"min-copies", func(o *Options) { o.MinCopies = 4 }, "min-copies 4"},
		{"min-copies below 1", func(o *Options) { o.MinCopies = -1 }, "min-copies -1"},
		{"sync bytes", func(o *Options) { o.SyncBytes = -1 }, "sync every -1 bytes"},
		{"unknown node", func(o *Options) {
			o.Place = func(ring.ChunkIndex) []ring.NodeID { return []ring.NodeID{9} }
		}, "node 0000000000000009"},
		{"unknown node later", func(o *Options) {
			o.Size, o.Place = 1<<40, func(c ring.ChunkIndex) []ring.NodeID {
				return []ring.NodeID{1, 2 + ring.NodeID(c>>14)}
			}
		}, "chunk 32768 is placed on node 0000000000000004, which has no store"},
		{"a node twice", func(o *Options) {
			o.Place = func(ring.ChunkIndex) []ring.NodeID { return []ring.NodeID{2, 1, 2} }
		}, "node 0000000000000002 twice"},
		{"too few copies", func(o *Options) {
			o.MinCopies, o.Place = 2, func(ring.ChunkIndex) []ring.NodeID { return []ring.NodeID{1} }
		}, "fewer than min-copies 2"},
	} {
		o := c.options(1, 1<<20)
		test.set(&o)
		_, err := Open(t.Context(), o)
		if !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want ErrInvalid naming %q", test.name, err, test.want)
		}
	}
}

// TestOpenUsedEpoch: versions would begin again, and new writes be taken for old.
func TestOpenUsedEpoch(t *testing.T) {
	for _, clean := range []bool{true, false} {
		o := newNodes(1, 1, nil).options(7, 1<<20)
		v := open(t, o)
		write(t, v, []byte("x"), 0)
		if clean {
			must(t, v.Close())
		}
		if _, err := Open(t.Context(), o); !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), "epoch 7 was used") {
			t.Errorf("closed %v: the epoch again: %v", clean, err)
		}
		o.Epoch = 6
		if _, err := Open(t.Context(), o); !errors.Is(err, store.ErrFenced) {
			t.Errorf("closed %v: a lower epoch: %v", clean, err)
		}
		o.Epoch = 8
		open(t, o)
	}
}

func TestBounds(t *testing.T) {
	const size = 3 * store.PageSize
	v := open(t, newNodes(1, 1, nil).options(1, size))
	want := bytes.Repeat([]byte("abcd"), size/4)
	write(t, v, want, 0)
	for _, test := range []struct {
		off int64
		len int
		n   int
		err error
	}{
		{0, size, size, nil},
		{0, size + 1, size, io.EOF},
		{size - 5, 5, 5, nil},
		{size - 5, 6, 5, io.EOF},
		{size, 0, 0, nil},
		{size, 1, 0, io.EOF},
		{size + 77, 1, 0, io.EOF},
		{1 << 62, 8192, 0, io.EOF},
		{5, 0, 0, nil},
		{-1, 4, 0, store.ErrInvalid},
	} {
		p := make([]byte, test.len)
		n, err := v.ReadAt(p, test.off)
		if n != test.n || !errors.Is(err, test.err) {
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v; want %d, %v", test.len, test.off, n, err, test.n, test.err)
		}
		if n > 0 && !bytes.Equal(p[:n], want[test.off:][:n]) {
			t.Errorf("ReadAt(%d bytes, %d): other bytes", test.len, test.off)
		}
	}
	for _, test := range []struct {
		off, n int64
		err    error
	}{
		{size - 4, 5, ErrRange}, {size, 1, ErrRange}, {size + 1, 0, ErrRange}, {1 << 62, 1 << 62, ErrRange},
		{-1, 4, store.ErrInvalid}, {size, 0, nil},
	} {
		errs := []error{v.Trim(test.off, test.n, false), v.Zero(test.off, test.n, false, true)}
		if test.n < 1<<20 {
			n, err := v.WriteAt(make([]byte, test.n), test.off)
			if n != 0 {
				t.Errorf("WriteAt(%d, %d) wrote %d", test.off, test.n, n)
			}
			errs = append(errs, err)
		}
		for _, err := range errs {
			if !errors.Is(err, test.err) {
				t.Errorf("change of %d+%d: %v, want %v", test.off, test.n, err, test.err)
			}
		}
	}
	if err := v.Trim(0, -1, false); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("Trim of -1 bytes: %v", err)
	}
	if got := read(t, v, 0, size); !bytes.Equal(got, want) {
		t.Error("refused requests changed the volume")
	}
}

func TestReadOnly(t *testing.T) {
	c := newNodes(1, 1, nil)
	v := open(t, c.options(1, 1<<20))
	write(t, v, []byte("kept"), 100)
	must(t, v.Close())
	o := c.options(2, 1<<20)
	o.ReadOnly = true
	v = open(t, o)
	_, err := v.WriteAt([]byte("x"), 0)
	_, errSync := v.WriteAtSync([]byte("x"), 0)
	for _, err := range []error{err, errSync, v.Trim(0, 4096, false), v.Zero(0, 4096, true, true)} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%v, want ErrReadOnly", err)
		}
	}
	if got := string(read(t, v, 100, 4)); got != "kept" {
		t.Errorf("read %q", got)
	}
	must(t, v.Sync())
	must(t, v.Close())
}

// TestClosed: after Close everything is ErrClosed, and nothing goes on running.
func TestClosed(t *testing.T) {
	before := runtime.NumGoroutine()
	c := newNodes(3, 3, nil)
	v := open(t, c.options(1, 64<<20))
	write(t, v, make([]byte, 20<<20), 5)
	must(t, v.Close())
	_, errRead := v.ReadAt(make([]byte, 1), 0)
	_, errWrite := v.WriteAt(make([]byte, 1), 0)
	_, errFUA := v.WriteAtSync(make([]byte, 1), 0)
	errs := []error{errRead, errWrite, errFUA, v.Sync(), v.Trim(0, 1, false), v.Zero(0, 1, false, false), v.Close()}
	for _, err := range v.Extents(0, 1) {
		errs = append(errs, err)
	}
	if len(errs) != 8 {
		t.Fatalf("%d errors", len(errs))
	}
	for i, err := range errs {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("call %d: %v, want ErrClosed", i, err)
		}
	}
	// The last goroutines of a fan-out may still be on their way out.
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i == 1000 {
			t.Fatalf("%d goroutines, before there were %d", runtime.NumGoroutine(), before)
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
	for _, s := range c.stores {
		for l, err := range s.Layers(t.Context()) {
			must(t, err)
			if l.Stable != store.NewVersion(1, 1) || l.Settled != l.Stable {
				t.Errorf("a clean close left the marks at %v, %v", l.Stable, l.Settled)
			}
		}
	}
}

// TestFencedByAnother: a volume that has been taken over says so, and only that.
func TestFencedByAnother(t *testing.T) {
	c := newNodes(3, 3, nil)
	old := open(t, c.options(1, 1<<20))
	write(t, old, []byte("old"), 0)
	other := open(t, c.options(2, 1<<20))
	write(t, other, []byte("new"), 0)
	if _, err := old.ReadAt(make([]byte, 3), 0); !errors.Is(err, store.ErrFenced) || !errors.Is(err, ErrBroken) {
		t.Errorf("read: %v", err)
	}
	if _, err := old.WriteAt([]byte("mad"), 0); !errors.Is(err, store.ErrFenced) || !errors.Is(err, ErrBroken) {
		t.Errorf("write: %v", err)
	}
	if err := old.Close(); !errors.Is(err, ErrBroken) {
		t.Errorf("close: %v", err)
	}
	if got := string(read(t, other, 0, 3)); got != "new" {
		t.Errorf("read %q", got)
	}
}

// TestSyncIsFree: nodes are asked only when something is unsynced there, and
// callers that come together share.
func TestSyncIsFree(t *testing.T) {
	c := newNodes(3, 1, nil)
	v := open(t, c.options(1, 64<<20))
	syncs := func(want int64) {
		t.Helper()
		must(t, v.Sync())
		if got := v.Stats().Syncs; got != want {
			t.Fatalf("%d syncs, want %d", got, want)
		}
	}
	syncs(0)
	write(t, v, []byte("x"), 0)
	syncs(1) // the one node that has the chunk
	syncs(1)
	if _, err := v.WriteAtSync([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	syncs(1)
	must(t, v.Trim(0, 8192, true))
	syncs(1)
	must(t, v.Trim(0, 12<<20, false))
	syncs(4)
}

// TestSyncAtOpen: the first mark of an attachment declares durable what those
// before it left unsynced, so it must be.
func TestSyncAtOpen(t *testing.T) {
	for seed := range uint64(20) {
		c := newNodes(1, 1, rand.New(rand.NewPCG(seed, 0)))
		first := open(t, c.options(1, 1<<20))
		write(t, first, []byte("left"), 0)
		second := open(t, c.options(2, 1<<20)) // the first one's process is gone
		if _, err := second.WriteAtSync([]byte("x"), 8192); err != nil {
			t.Fatal(err)
		}
		must(t, second.settleNow())
		c.disks[0].PowerCut()
		c.start()
		third := open(t, c.options(3, 1<<20))
		if got := string(read(t, third, 0, 4)); got != "left" {
			t.Fatalf("seed %d: what was declared stable reads as %q", seed, got)
		}
	}
}

// TestBackgroundSync: unsynced writes are synced, and their marks told, in time.
func TestBackgroundSync(t *testing.T) {
	stable := func(t *testing.T, s store.Store) store.Version {
		for l, err := range s.Layers(t.Context()) {
			must(t, err)
			return l.Stable
		}
		return 0
	}
	test := func(name string, do func(t *testing.T, v *Volume, s store.Store)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newNodes(1, 1, nil)
				o := c.options(1, 64<<20)
				o.SyncBytes, o.SyncEvery = 1<<20, 5*time.Second
				o.Clean = true // or Open tells a mark
				v, err := Open(context.Background(), o)
				must(t, err)
				do(t, v, c.stores[0])
				must(t, v.Close())
			})
		})
	}
	test("after a time", func(t *testing.T, v *Volume, s store.Store) {
		write(t, v, []byte("x"), 0)
		time.Sleep(5*time.Second - time.Nanosecond)
		synctest.Wait()
		if n := v.Stats().Syncs; n != 0 || stable(t, s) != 0 {
			t.Errorf("too early: %d syncs, stable %v", n, stable(t, s))
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n := v.Stats().Syncs; n != 1 || stable(t, s) != store.NewVersion(1, 1) {
			t.Errorf("too late: %d syncs, stable %v", n, stable(t, s))
		}
		time.Sleep(time.Hour)
		if n := v.Stats().Syncs; n != 1 {
			t.Errorf("idle, but %d syncs", n)
		}
		if n := v.Stats().Unstable; n != 0 {
			t.Errorf("%d bytes unstable", n)
		}
	})
	test("after bytes", func(t *testing.T, v *Volume, s store.Store) {
		for i := range int64(255) {
			write(t, v, make([]byte, 4096), i*4096)
		}
		synctest.Wait()
		if n := v.Stats().Syncs; n != 0 {
			t.Errorf("too early: %d syncs", n)
		}
		write(t, v, make([]byte, 4096), 0)
		synctest.Wait()
		if n := v.Stats().Syncs; n != 1 || stable(t, s) != store.NewVersion(1, 256) {
			t.Errorf("too late: %d syncs, stable %v", n, stable(t, s))
		}
	})
	test("without a sync where all is durable", func(t *testing.T, v *Volume, s store.Store) {
		_, err := v.WriteAtSync([]byte("x"), 0)
		must(t, err)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := v.Stats().Syncs; n != 0 || stable(t, s) != store.NewVersion(1, 1) {
			t.Errorf("%d syncs, stable %v", n, stable(t, s))
		}
	})
}

// TestMergeRaces: writers of the bytes of one page, each a merge, beside whole
// pages written over all of them: no byte is lost, and none comes back.
func TestMergeRaces(t *testing.T) {
	for _, copies := range []int{1, 3} {
		v := open(t, newNodes(copies, copies, nil).options(1, 8<<20))
		const at = store.ChunkSize - store.PageSize // the page before a chunk's end, and the next
		var wg sync.WaitGroup
		for i := range int64(8) {
			wg.Go(func() {
				for n := range 300 {
					off := at + i*1000
					p := bytes.Repeat([]byte{byte(n)}, 1000)
					if _, err := v.WriteAt(p, off); err != nil {
						t.Error(err)
						return
					}
					got := make([]byte, 1000)
					if _, err := v.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
						t.Errorf("copies %d writer %d: wrote %d, read %d, %v", copies, i, n, got[0], err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

// TestWholePageBesideMerge: a whole page answered while a merge is under way is
// not lost to it.
func TestWholePageBesideMerge(t *testing.T) {
	v := open(t, newNodes(1, 1, nil).options(1, 1<<20))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := v.WriteAt([]byte{1}, 0); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	p, got := make([]byte, store.PageSize), make([]byte, store.PageSize)
	for n := range 5000 {
		for i := range p {
			p[i] = byte(n)
		}
		write(t, v, p, 0)
		if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got[1:], p[1:]) {
			t.Fatalf("write %d: read %d back, %v", n, got[1], err)
		}
	}
	close(stop)
	wg.Wait()
}
