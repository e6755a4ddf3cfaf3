package segment

import (
	"testing"
	"time"

	"torus/store"
)

// openLarge opens a store whose flushes take as much as usual, with layers 1 to n.
func openLarge(t *testing.T, n store.LayerID) (*Store, store.Replica) {
	t.Helper()
	st, err := Open(t.Context(), Options{Dir: memoryDir(t) + "/store", Reserve: 1 << 20, SegmentSize: 4 << 20,
		CacheBytes: 100 << 20, manual: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.kill)
	r, err := st.Attach(t.Context(), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	for l := store.LayerID(1); l <= n; l++ {
		if err := r.Create(t.Context(), l, 0); err != nil {
			t.Fatal(err)
		}
	}
	return st, r
}

// trim trims most of chunk i, which changes 62 buckets.
func trim(t *testing.T, r store.Replica, l store.LayerID, i int64) error {
	return r.Zero(t.Context(), l, i*store.ChunkSize+64<<10, store.ChunkSize-128<<10, store.NewVersion(1, uint64(i)+1), 0)
}

// Writers that have changed as much of the index as one flush takes do not wait
// for the background work: it may be waiting for the layers that they hold.
func TestWritersMakeRoom(t *testing.T) {
	const layers = 6
	st, r := openLarge(t, layers)
	first := st.tables.entry(1)
	first.exclusive.RLock() // a slow request
	forgotten := make(chan struct{})
	go func() { // as maintain does
		defer close(forgotten)
		st.forget()
	}()
	for first.exclusive.TryRLock() { // until forget waits for it
		first.exclusive.RUnlock()
		time.Sleep(time.Millisecond)
	}
	written := make(chan error, layers)
	for l := store.LayerID(2); l <= layers; l++ {
		go func() {
			var err error
			for i := int64(0); i < 110 && err == nil; i++ {
				err = trim(t, r, l, i)
			}
			written <- err
		}()
	}
	for range layers - 1 {
		select {
		case err := <-written:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("writers wait for room that they could make")
		}
	}
	first.exclusive.RUnlock()
	<-forgotten
	if n := st.index.dirtyCount.Load(); n > mostDirty+layers*62 {
		t.Errorf("%d buckets wait for one flush, at most %d and what is under way should", n, mostDirty)
	}
}

// What the collector moves fits into one flush, however many holes a segment states.
func TestCollectorMakesRoom(t *testing.T) {
	st, r := openLarge(t, 1)
	const trims = 500
	for i := range int64(trims) {
		if err := trim(t, r, 1, i); err != nil {
			t.Fatal(err)
		}
		if i%100 == 99 {
			if err := st.flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := alignedBuffer(1 << 20)
	for i := range int64(4) { // the segment is sealed
		if err := r.Write(t.Context(), 1, trims*store.ChunkSize+i<<20, p, store.NewVersion(1, uint64(i)+10000), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.flush(); err != nil {
		t.Fatal(err)
	}
	before := st.index.dirtyCount.Load()
	victim := st.segments.get(1)
	for _, g := range st.segments.all() {
		if g.stream == hot && g.sealed.Load() && g.tombs.Load() > 0 {
			victim = g
		}
	}
	if victim == nil || victim.tombs.Load() < trims*62*16/2 {
		t.Fatalf("no segment has the holes")
	}
	st.collector.paced, st.collector.requests = time.Now(), st.requests()
	if err := st.evacuate(victim); err != nil {
		t.Fatal(err)
	}
	if victim.tombs.Load() != 0 {
		t.Errorf("%d holes are left", victim.tombs.Load())
	}
	if n := st.index.dirtyCount.Load(); n > flushDirty+coldMoves {
		t.Errorf("%d buckets wait for one flush, %d before; at most %d should", n, before, flushDirty+coldMoves)
	}
	if err := st.flush(); err != nil {
		t.Error(err)
	}
}
