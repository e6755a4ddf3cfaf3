package volume

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
	"torus/store/faultstore"
)

// faulty wraps the stores of c, so that they can be made to fail.
func faulty(c *nodes) []*faultstore.Store {
	var all []*faultstore.Store
	for i, s := range c.stores {
		f := faultstore.New(s, faultstore.Options{})
		c.stores[i] = f
		all = append(all, f)
	}
	return all
}

// inBubble runs a test of a volume over faulty nodes where time stands still
// unless all wait. What hangs is let go before the volume is closed.
func inBubble(t *testing.T, count, copies int, do func(t *testing.T, v *Volume, f []*faultstore.Store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(count, copies, nil)
		f := faulty(c)
		o := c.options(1, 64<<20)
		o.SyncBytes = 1 << 20
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		defer func() {
			for _, s := range f {
				s.Clear()
			}
		}()
		do(t, v, f)
	})
}

// inject makes a store fail as text says.
func inject(s *faultstore.Store, text string) faultstore.Fault {
	f := faultstore.MustParse(text)
	s.Inject(f)
	return f
}

// later is a call under way.
type later struct {
	done atomic.Bool
	err  error // once done
}

// begin starts a call and returns when it is done or waits for something.
func begin(do func() error) *later {
	l := new(later)
	go func() {
		l.err = do()
		l.done.Store(true)
	}()
	synctest.Wait()
	return l
}

// waits fails the test if the call has been answered.
func (l *later) waits(t *testing.T, what string) {
	t.Helper()
	synctest.Wait()
	if l.done.Load() {
		t.Fatalf("%s was answered (%v)", what, l.err)
	}
}

// ends fails the test unless the call has been answered, with an error that is want.
func (l *later) ends(t *testing.T, what string, want error) {
	t.Helper()
	synctest.Wait()
	if !l.done.Load() || !errors.Is(l.err, want) {
		t.Fatalf("%s: answered %v, %v; want %v", what, l.done.Load(), l.err, want)
	}
}

// TestReadWaitsForWrite: what a write in flight may have brought is not shown
// before the write is answered (I6), with one copy and with three.
func TestReadWaitsForWrite(t *testing.T) {
	for _, copies := range []int{1, 3} {
		inBubble(t, copies, copies, func(t *testing.T, v *Volume, f []*faultstore.Store) {
			slow := f[copies-1] // the last copy of chunk 0; the first one is read
			inject(slow, "writes apply and hang")
			p, other := make([]byte, 10), make([]byte, 4096)
			w := begin(func() error { _, err := v.WriteAt([]byte("held"), 4090); return err })
			r := begin(func() error { _, err := v.ReadAt(p, 4085); return err })
			beside := begin(func() error { _, err := v.ReadAt(other, 8192); return err })
			w.waits(t, "the write")
			r.waits(t, "a read of what it brings")
			beside.ends(t, "a read beside it", nil)
			slow.Clear()
			w.ends(t, "the write", nil)
			r.ends(t, "the read", nil)
			if string(p[5:9]) != "held" {
				t.Errorf("read %q", p)
			}
			if n := v.Stats().ReadWaits; n != 1 {
				t.Errorf("%d reads waited", n)
			}
		})
	}
}

// TestReadWaitsForLaterWrite: also where the write began after the read did.
func TestReadWaitsForLaterWrite(t *testing.T) {
	inBubble(t, 1, 1, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		reads, writes := inject(f[0], "reads hang"), inject(f[0], "writes apply and hang")
		p := make([]byte, 4096)
		r := begin(func() error { _, err := v.ReadAt(p, 0); return err })
		w := begin(func() error { _, err := v.WriteAt(make([]byte, 6<<20), 0); return err }) // a wide one
		f[0].Remove(reads)
		r.waits(t, "the read")
		f[0].Remove(writes)
		w.ends(t, "the write", nil)
		r.ends(t, "the read", nil)
	})
}

// TestExtentsWaitForTrim: a hole is shown no earlier than it would be read.
func TestExtentsWaitForTrim(t *testing.T) {
	inBubble(t, 1, 1, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, make([]byte, 1<<20), 0)
		inject(f[0], "zeroes apply and hang")
		w := begin(func() error { return v.Trim(0, 64<<20, false) })
		e := begin(func() error {
			for _, err := range v.Extents(8192, 4096) {
				return err
			}
			return nil
		})
		e.waits(t, "extents of what is being trimmed")
		f[0].Clear()
		w.ends(t, "the trim", nil)
		e.ends(t, "extents", nil)
	})
}

// TestWholePagesDontWait: a merge waits for what is below it, and nothing else.
func TestWholePagesDontWait(t *testing.T) {
	inBubble(t, 1, 1, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		hang := inject(f[0], "reads hang once")
		merge := begin(func() error { _, err := v.WriteAt([]byte("merged"), 4096); return err })
		page := begin(func() error { _, err := v.WriteAt(make([]byte, 4096), 4096); return err })
		merge.waits(t, "the merge, whose read hangs")
		page.ends(t, "a whole page over it", nil)
		second := begin(func() error { _, err := v.WriteAt([]byte("second"), 4100); return err })
		second.waits(t, "a merge behind the first")
		f[0].Remove(hang)
		merge.ends(t, "the merge", nil)
		second.ends(t, "the second merge", nil)
		// The page has the higher version, so it came after the first merge.
		if got := string(read(t, v, 4096, 10)); got != "\x00\x00\x00\x00second" {
			t.Errorf("read %q", got)
		}
	})
}

// TestSyncCoversAnswered: a sync under way does not count for what was answered
// after it began, and those who wait for the next share it (I3).
func TestSyncCoversAnswered(t *testing.T) {
	inBubble(t, 1, 1, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, []byte("first"), 0)
		hang := inject(f[0], "syncs hang once")
		inject(f[0], "syncs hang after 1")
		first := begin(v.Sync)
		write(t, v, []byte("second"), 0)
		var others []*later
		for range 10 {
			others = append(others, begin(v.Sync))
		}
		f[0].Remove(hang)
		first.ends(t, "the first sync", nil)
		for _, l := range others {
			l.waits(t, "a sync of what the first did not cover")
		}
		f[0].Clear()
		for _, l := range others {
			l.ends(t, "a later sync", nil)
		}
		if n := v.Stats().Syncs; n != 2 {
			t.Errorf("%d syncs, want 2", n)
		}
	})
}

// TestMarkStaysBelowFlight: the stable mark lies below every write in flight.
func TestMarkStaysBelowFlight(t *testing.T) {
	inBubble(t, 1, 1, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		mark := func() store.Version {
			for l, err := range f[0].Layers(t.Context()) {
				must(t, err)
				return l.Stable
			}
			return 0
		}
		write(t, v, []byte("1"), 0)
		hang := inject(f[0], "writes hang once")
		w := begin(func() error { _, err := v.WriteAt(make([]byte, 4096), 0); return err })
		write(t, v, make([]byte, 4096), 8192)
		must(t, v.settleNow())
		if got, want := mark(), store.NewVersion(1, 1); got != want {
			t.Errorf("mark %v, want %v", got, want)
		}
		f[0].Remove(hang)
		w.ends(t, "the write", nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got, want := mark(), store.NewVersion(1, 3); got != want {
			t.Errorf("mark %v, want %v", got, want)
		}
	})
}

// TestWriteGoesOn: a write that some copies have and another not is acknowledged
// when that other one is recorded stale, and neither it nor a read of it before;
// a node that knows another holder stops the volume.
func TestWriteGoesOn(t *testing.T) {
	for _, fault := range []string{
		"writes fail once", "writes apply and fail once", "writes fail with no-space once", "writes fail with incarnation once",
		"writes fail with timeout once", "writes fail with unreachable once", "writes apply and fail with unreachable once",
		"writes fail with fenced once",
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			f := faulty(c)
			recorded := make(chan struct{})
			c.hookStale(func() error { <-recorded; return nil })
			v, err := Open(context.Background(), c.options(1, 4<<20))
			must(t, err)
			inject(f[2], fault)
			w := begin(func() error { _, err := v.WriteAt([]byte("new"), 0); return err })
			r := begin(func() error { _, err := v.ReadAt(make([]byte, 1), 0); return err })
			if strings.Contains(fault, "fenced") {
				w.ends(t, fault, ErrBroken)
				r.ends(t, "the read", ErrBroken)
			} else {
				w.waits(t, fault)
				r.waits(t, "a read of it")
				if got := read(t, v, 1<<20, 1)[0]; got != 0 {
					t.Errorf("%s: another page reads as %d", fault, got)
				}
			}
			close(recorded)
			if !strings.Contains(fault, "fenced") {
				w.ends(t, fault, nil)
				r.ends(t, "the read", nil)
				if len(c.lacks()[3]) == 0 {
					t.Errorf("%s: acknowledged, and not recorded", fault)
				}
				must(t, v.Sync())
				time.Sleep(10 * time.Second)
				if len(c.lacks()[3]) != 0 {
					t.Errorf("%s: recorded stale still", fault)
				}
				must(t, v.Close())
				c.equal(t, c.options(1, 4<<20))
				return
			}
			if err := v.Close(); !errors.Is(err, ErrBroken) {
				t.Errorf("%s: closed clean: %v", fault, err)
			}
		})
	}
}

// TestFlushGoesOn: a copy that fails to sync is recorded stale before the flush
// is answered.
func TestFlushGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 3, nil)
		f := faulty(c)
		v, err := Open(context.Background(), c.options(1, 4<<20))
		must(t, err)
		write(t, v, []byte("x"), 0)
		inject(f[1], "syncs fail once")
		must(t, v.Sync())
		if len(c.lacks()[2]) == 0 {
			t.Error("answered, and not recorded")
		}
		must(t, v.Close())
	})
}

// TestLastCopyWaits: the last copy in sync is never recorded; requests wait for
// it, and go on when it answers again.
func TestLastCopyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(1, 1, nil)
		f := faulty(c)
		v, err := Open(context.Background(), c.options(1, 4<<20))
		must(t, err)
		inject(f[0], "writes fail with unreachable once")
		w := begin(func() error { _, err := v.WriteAt([]byte("x"), 0); return err })
		w.waits(t, "the write")
		time.Sleep(time.Second)
		w.ends(t, "the write", nil)
		if len(c.lacks()) != 0 {
			t.Errorf("recorded stale: %v", c.lacks())
		}
		must(t, v.Close())
	})
}

// TestMinCopiesHold: a write is held while fewer copies than min-copies are in
// sync, and goes on when one comes back.
func TestMinCopiesHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(2, 2, nil)
		f := faulty(c)
		o := c.options(1, 4<<20)
		o.MinCopies = 2
		v, err := Open(context.Background(), o)
		must(t, err)
		inject(f[1], "writes fail with unreachable once")
		w := begin(func() error { _, err := v.WriteAt([]byte("x"), 0); return err })
		w.waits(t, "the write")
		if len(c.lacks()[2]) == 0 {
			t.Error("held, and not recorded")
		}
		m := begin(func() error { _, err := v.WriteAt([]byte("merge"), 5); return err })
		m.waits(t, "a merge behind it")
		time.Sleep(10 * time.Second)
		w.ends(t, "the write", nil)
		m.ends(t, "the merge", nil)
		must(t, v.Close())
	})
}

// TestNoSpace: where no copy took anything the error passes.
func TestNoSpace(t *testing.T) {
	for _, copies := range []int{1, 3} {
		inBubble(t, copies, copies, func(t *testing.T, v *Volume, f []*faultstore.Store) {
			write(t, v, []byte("before"), 0)
			for _, s := range f {
				inject(s, "writes fail with no-space once")
			}
			_, err := v.WriteAt([]byte("refused"), 0)
			if !errors.Is(err, store.ErrNoSpace) || errors.Is(err, ErrBroken) {
				t.Fatalf("%d copies: %v, want ErrNoSpace", copies, err)
			}
			if got := string(read(t, v, 0, 7)); got != "before\x00" {
				t.Errorf("%d copies: read %q", copies, got)
			}
			write(t, v, []byte("after"), 0)
			must(t, v.Sync())
			must(t, v.Close())
		})
	}
}

// TestNoSpaceInPart: chunks of other nodes are written, whole and durably so.
func TestNoSpaceInPart(t *testing.T) {
	inBubble(t, 3, 1, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		inject(f[1], "writes fail with no-space")
		p := []byte(strings.Repeat("x", 12<<20))
		if _, err := v.WriteAt(p, 0); !errors.Is(err, store.ErrNoSpace) || errors.Is(err, ErrBroken) {
			t.Fatalf("%v, want ErrNoSpace", err)
		}
		for chunk, want := range []byte{'x', 0, 'x'} {
			if got := read(t, v, int64(chunk)*store.ChunkSize+5000, 1)[0]; got != want {
				t.Errorf("chunk %d reads as %q, want %q", chunk, got, want)
			}
		}
		must(t, v.settleNow())
		if n := v.Stats().Syncs; n != 2 {
			t.Errorf("%d nodes synced before the mark passed the write, want 2", n)
		}
	})
}

// TestCorruptPage: read from another copy while there is one; the last one's
// error is for that page only, and writing it whole heals it (I5, I9).
func TestCorruptPage(t *testing.T) {
	for _, copies := range []int{1, 3} {
		inBubble(t, copies, copies, func(t *testing.T, v *Volume, f []*faultstore.Store) {
			write(t, v, []byte(strings.Repeat("data", 4096)), 0)
			for _, s := range f {
				inject(s, "adopts fail with no-space") // or it would be healed
			}
			for i, s := range f {
				got := string(read(t, v, 4096, 4))
				if n := v.Stats().Failovers; got != "data" || n != int64(i*(i+1)/2) {
					t.Errorf("%d of %d copies corrupt: read %q, %d failovers", i, copies, got, n)
				}
				inject(s, "reads at [4096,8192) corrupt")
			}
			_, err := v.ReadAt(make([]byte, 4), 4096)
			if !errors.Is(err, store.ErrCorrupt) || errors.Is(err, ErrBroken) {
				t.Errorf("all copies corrupt: %v", err)
			}
			if _, err := v.WriteAt([]byte("part"), 4096); !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("a merge into it: %v", err)
			}
			if got := string(read(t, v, 8192, 4)); got != "data" {
				t.Errorf("the next page reads as %q", got)
			}
			write(t, v, make([]byte, 4096), 4096)
			if got := read(t, v, 4096, 1)[0]; got != 0 {
				t.Errorf("written anew it reads as %d", got)
			}
			must(t, v.Close())
		})
	}
}

// TestMarkFailure: a mark that is not told does no harm; an end of the
// attachment that shows there is one.
func TestMarkFailure(t *testing.T) {
	inBubble(t, 3, 3, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, []byte("x"), 0)
		inject(f[0], "stables fail once")
		must(t, v.settleNow())
		write(t, v, []byte("x"), 0)
		inject(f[1], "stables fail with fenced once")
		if err := v.settleNow(); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "node 0000000000000002") {
			t.Errorf("settling: %v", err)
		}
	})
}

// TestOverdueSyncHoldsWriters: a disk that does not get its syncs done is not
// written ahead of without bound.
func TestOverdueSyncHoldsWriters(t *testing.T) {
	inBubble(t, 1, 1, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		inject(f[0], "syncs hang")
		written := 0
		w := begin(func() error {
			for ; written < 64; written++ {
				if _, err := v.WriteAt(make([]byte, 256<<10), 0); err != nil {
					return err
				}
			}
			return nil
		})
		w.waits(t, "the last write")
		if want := overdue * (1 << 20) / (256 << 10); written != want-1 {
			t.Errorf("%d writes went ahead, want %d", written, want-1)
		}
		f[0].Clear()
		w.ends(t, "the writes", nil)
	})
}
