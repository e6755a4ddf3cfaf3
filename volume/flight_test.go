package volume

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"torus/store"
)

// begins enters a write and fails the test if there is no version.
func begins(t *testing.T, f *flight, off, end int64) store.Version {
	t.Helper()
	v, err := f.begin(off, end, 0)
	must(t, err)
	return v
}

func TestFlightLow(t *testing.T) {
	f := newFlight(3)
	at := func(sequence uint64) store.Version { return store.NewVersion(3, sequence) }
	check := func(want store.Version) {
		t.Helper()
		if got := f.low(); got != want {
			t.Fatalf("low is %v, want %v", got, want)
		}
	}
	check(at(0))
	a := begins(t, f, 0, 4096)                // 1: narrow
	b := begins(t, f, 0, store.MaxVolumeSize) // 2: wide
	c := begins(t, f, 0, 4096)                // 3: the same shard as 1
	check(at(0))
	f.finish(0, 4096, c)
	check(at(0))
	f.finish(0, 4096, a)
	check(at(1))
	f.finish(0, store.MaxVolumeSize, b)
	check(at(3))
	if n := f.count(); n != 0 {
		t.Fatalf("%d in flight", n)
	}
}

// TestFlightAwait: whom a request waits for, by place and by version.
func TestFlightAwait(t *testing.T) {
	const page, region, end = store.PageSize, regionSize, store.MaxVolumeSize
	for _, test := range []struct {
		name      string
		off, end  int64 // of the write, version 1
		from, to  int64 // of what waits
		last      uint64
		mustAwait bool
	}{
		{"same page", 0, page, 0, page, 1, true},
		{"page before", 0, page, page, 2 * page, 1, false},
		{"page behind", page, 2 * page, 0, page, 1, false},
		{"lower version only", 0, page, 0, page, 0, false},
		{"same shard, other region", 0, page, flightShards * region, flightShards*region + page, 1, false},
		{"wide write, narrow read", 0, 2 * region, region, region + page, 1, true},
		{"wide write beside", 0, 2 * region, 2 * region, 2*region + page, 1, false},
		{"narrow write, wide read", 5 * region, 5*region + page, 0, 6 * region, 1, true},
		{"narrow write, all read", end - page, end, 0, end, 1, true},
		{"whole volume trimmed", 0, end, end - page, end, 1, true},
		{"both wide, one page shared", 0, 3*region + page, 3 * region, 9 * region, 1, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFlight(1)
			v := begins(t, f, test.off, test.end)
			returned := false
			go func() {
				f.await(test.from, test.to, store.NewVersion(1, test.last))
				returned = true
			}()
			synctest.Wait()
			if returned == test.mustAwait {
				t.Errorf("%s: waited %v, want %v", test.name, !returned, test.mustAwait)
			}
			f.finish(test.off, test.end, v)
			synctest.Wait()
			if !returned {
				t.Errorf("%s: still waits for a write that has ended", test.name)
			}
		})
	}
}

// TestFlightLaterWrites: those that begin later don't prolong a wait.
func TestFlightLaterWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight(1)
		v := begins(t, f, 0, 4096)
		returned := false
		go func() {
			f.await(0, 4096, f.given())
			returned = true
		}()
		synctest.Wait()
		later := begins(t, f, 0, 4096)
		f.finish(0, 4096, v)
		synctest.Wait()
		if !returned {
			t.Error("waits for a write that began later")
		}
		f.finish(0, 4096, later)
	})
}

// TestFlightLowRaces: a mark never passes a write that is in flight, however
// the drawing of versions and the look at them interleave.
func TestFlightLowRaces(t *testing.T) {
	f := newFlight(1)
	var wg sync.WaitGroup
	for g := range int64(4) {
		wg.Go(func() {
			for i := range int64(5000) {
				off := (g + i) * regionSize
				end := off + 4096 + i%2*regionSize
				v, err := f.begin(off, end, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if low := f.low(); low >= v {
					t.Errorf("mark %v with %v in flight", low, v)
				}
				f.finish(off, end, v)
			}
		})
	}
	wg.Wait()
	if low := f.low(); low != store.NewVersion(1, 20000) {
		t.Errorf("in the end the mark is %v", low)
	}
}

// TestSequenceEnds: a volume without versions refuses writes and serves reads.
func TestSequenceEnds(t *testing.T) {
	v := open(t, newNodes(1, 1, nil).options(1, 1<<20))
	write(t, v, []byte("last"), 0)
	v.flight.last.Store(v.flight.end)
	if _, err := v.WriteAt([]byte("more"), 0); !errors.Is(err, ErrSequence) {
		t.Errorf("WriteAt: %v, want ErrSequence", err)
	}
	if err := v.Trim(0, 4096, false); !errors.Is(err, ErrSequence) {
		t.Errorf("Trim: %v, want ErrSequence", err)
	}
	if got := string(read(t, v, 0, 4)); got != "last" {
		t.Errorf("read %q", got)
	}
	must(t, v.Sync())
}

// A merge of which nothing was sent is put behind a write that asks for that, and reads
// anew; one that sends is not, nor is any other write.
func TestPostpone(t *testing.T) {
	v := open(t, newNodes(1, 1, nil).options(1, 4<<20))
	f := v.flight
	merge, err := f.beginMerge(0, 2*regionSize)
	must(t, err)
	beside, err := f.beginMerge(3*regionSize, 3*regionSize+4096)
	must(t, err)
	now := func() store.Version { v, err := f.begin(4096, 8192, 0); must(t, err); return v }
	own := now()
	if !f.postpone(4096, 8192, own) || f.others(4096, 8192, own) {
		t.Error("a merge of which nothing was sent is in the way")
	}
	later := f.sends(0, 2*regionSize, merge, merge)
	if later <= own {
		t.Errorf("%v is sent, begun before %v", later, own)
	}
	if got := f.sends(3*regionSize, 3*regionSize+4096, beside, beside); got != beside {
		t.Errorf("another is sent with %v, not %v", got, beside)
	}
	f.finish(4096, 8192, own)
	if got := f.sends(0, 2*regionSize, merge, later); got != later {
		t.Errorf("is sent with %v, not %v", got, later)
	}
	own = now()
	if f.postpone(4096, 8192, own) || !f.others(4096, 8192, own) || f.low() >= later {
		t.Error("a merge that is being sent is not seen")
	}
	f.finish(4096, 8192, own)
	f.finish(0, 2*regionSize, merge)
	f.finish(3*regionSize, 3*regionSize+4096, beside)
	if n := f.count(); n != 0 {
		t.Errorf("%d in flight", n)
	}
}
