package segment

import (
	"context"
	"math/rand/v2"
	"testing"

	"torus/store"
)

// A bucket that is changed while a flush ends belongs to the next one: after a
// flush with nothing written beside it, no bucket is dirty. One that was left
// behind would be lost with the next crash, since the log's position goes on.
func TestFlushLeavesNothingBehind(t *testing.T) {
	m := newMachine(t)
	m.options.manual = true
	m.options.SegmentSize = 256 << 20
	st := m.Open(t).(*Store)
	r, err := st.Attach(context.Background(), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Create(context.Background(), 1, 0); err != nil {
		t.Fatal(err)
	}
	// Each bucket is written twice, some time apart, and then never again: a later
	// write would put it into a list after all.
	const buckets, apart = 20000, 3000
	done := make(chan error)
	go func() {
		p := alignedBuffer(store.PageSize)
		var err error
		for i := int64(0); i < buckets+apart && err == nil; i++ {
			for page, n := range []int64{i, i - 1 - rand.Int64N(apart)} {
				if n >= 0 && n < buckets && err == nil {
					off := (n*bucketPages + int64(page)) * store.PageSize
					err = r.Write(context.Background(), 1, off, p, store.NewVersion(1, uint64(i)+1), 0)
				}
			}
		}
		done <- err
	}()
	for writing := true; writing; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			writing = false
		default:
		}
		if err := st.flush(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range st.index.shards {
		for k, b := range st.index.shards[i].buckets {
			if b.dirty != 0 || b.frozen != nil {
				t.Fatalf("bucket %v is dirty since generation %d, and in no list", k, b.dirty)
			}
		}
	}
	if n := st.index.dirtyCount.Load(); n != 0 {
		t.Errorf("%d buckets count as dirty", n)
	}
}
