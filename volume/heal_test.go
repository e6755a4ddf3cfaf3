package volume

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
	"torus/store/faultstore"
)

// A page that one copy has lost is rewritten from another as soon as somebody has come
// upon it.
func TestCorruptPageIsRewritten(t *testing.T) {
	inBubble(t, 3, 3, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, bytes.Repeat([]byte("data"), 4096), 0)
		inject(f[0], "reads at [4096,8192) corrupt")
		inject(f[1], "reads at [4096,8192) corrupt")
		for round := range 2 {
			if got := string(read(t, v, 4096, 4)); got != "data" {
				t.Errorf("round %d: read %q", round, got)
			}
			synctest.Wait()
		}
		if s := v.Stats(); s.Failovers != 2 || s.Healed != 2 {
			t.Errorf("%d failovers, %d pages rewritten; want 2 and 2", s.Failovers, s.Healed)
		}
	})
}

// What has been written to a page since another copy of it was read stays.
func TestRewritingLosesNoWrite(t *testing.T) {
	inBubble(t, 2, 2, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, bytes.Repeat([]byte("old!"), 1024), 0)
		inject(f[0], "reads at [0,4096) corrupt")
		held := inject(f[0], "adopts hang")
		read(t, v, 0, 4096)
		synctest.Wait()
		write(t, v, bytes.Repeat([]byte("new!"), 1024), 0)
		f[0].Remove(held)
		synctest.Wait()
		if got := string(read(t, v, 0, 4)); got != "new!" || v.Stats().Failovers != 1 {
			t.Errorf("read %q after %d failovers", got, v.Stats().Failovers)
		}
	})
}

// A write that is not acknowledged yet is not what a page is rewritten with: the copies
// may all refuse it still.
func TestRewritingAwaitsTheWrite(t *testing.T) {
	inBubble(t, 2, 2, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, bytes.Repeat([]byte("old!"), 1024), 0)
		held := inject(f[0], "writes hang")
		w := begin(func() error { _, err := v.WriteAt(bytes.Repeat([]byte("new!"), 1024), 0); return err })
		synctest.Wait() // the second node has it
		v.heal(badPage{v.place.node(1), testHead, 0})
		synctest.Wait()
		if n := v.Stats().Healed; n != 0 {
			t.Errorf("%d pages rewritten while the write was in flight", n)
		}
		f[0].Remove(held)
		synctest.Wait()
		if !w.done.Load() || w.err != nil || v.Stats().Healed != 1 {
			t.Errorf("write done %v, %v; %d pages rewritten", w.done.Load(), w.err, v.Stats().Healed)
		}
	})
}

// Nor does a page come back that was trimmed, and the hole forgotten, since another copy
// of it was read.
func TestRewritingLeavesTrimmed(t *testing.T) {
	inBubble(t, 3, 3, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, bytes.Repeat([]byte("old!"), 1024), 0)
		must(t, v.settleNow())
		held := inject(f[2], "reads hang")
		v.heal(badPage{v.place.node(1), testHead, 0})
		synctest.Wait() // the second node was read
		must(t, v.Trim(0, store.PageSize, false))
		must(t, v.settleNow())
		f[2].Remove(held)
		synctest.Wait()
		if got := read(t, v, 0, store.PageSize); !bytes.Equal(got, make([]byte, store.PageSize)) || v.Stats().Failovers != 0 {
			t.Errorf("the trimmed page begins with %q, %d failovers", got[:4], v.Stats().Failovers)
		}
	})
}

// What was rewritten is durable with the next flush, as what is written.
func TestRewrittenIsFlushed(t *testing.T) {
	inBubble(t, 2, 2, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, bytes.Repeat([]byte("data"), 1024), 0)
		must(t, v.Sync())
		inject(f[0], "reads at [0,4096) corrupt")
		read(t, v, 0, 4096)
		synctest.Wait()
		before := v.Stats().Syncs
		must(t, v.Sync())
		if s := v.Stats(); s.Healed != 1 || s.Syncs != before+1 {
			t.Errorf("%d pages rewritten, %d nodes synced; want 1 and 1", s.Healed, s.Syncs-before)
		}
	})
}

// A scrub finds what no client reads: pages that are corrupt on some copy, and copies
// that lack what all should have.
func TestScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(4, 3, nil)
		const size = 16 << 20
		v, err := Open(context.Background(), c.options(1, size))
		must(t, err)
		const written = 12<<20 + 5*store.PageSize
		write(t, v, bytes.Repeat([]byte("data"), written/4), 0)
		must(t, v.Trim(3*store.PageSize, store.PageSize, false))
		must(t, v.Close())

		f := faulty(c)
		o := c.options(2, size)
		o.Clean = true
		v, err = Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		inject(f[1], "reads at [8192,12288) corrupt")      // chunk 0 lies on nodes 1, 2, 3
		inject(f[3], "reads at [8392704,8400896) corrupt") // two pages of chunk 2, on nodes 3, 4, 1
		lacks, err := c.stores[2].Attach(context.Background(), testVolume, 2)
		must(t, err)
		must(t, lacks.Adopt(context.Background(), testHead, store.Extent{Off: 0, N: store.PageSize}, nil))

		found, err := v.Scrub(context.Background(), ScrubOptions{})
		must(t, err)
		if want := (Scrubbed{Done: size, Total: size, Bytes: 3 * (written - store.PageSize), Corrupt: 3, Unlike: 1}); found != want {
			t.Errorf("scrub found %+v, want %+v", found, want)
		}
		synctest.Wait()
		if n := v.Stats().Healed; n != 4 {
			t.Errorf("%d pages rewritten, want 4", n)
		}
		found, err = v.Scrub(context.Background(), ScrubOptions{})
		if want := (Scrubbed{Done: size, Total: size, Bytes: 3 * (written - store.PageSize)}); err != nil || found != want {
			t.Errorf("the second scrub found %+v, %v", found, err)
		}
		c.alike(t, o)
	})
}

// A scrub goes on where an earlier one ended, and says what no copy has whole.
func TestScrubGoesOn(t *testing.T) {
	inBubble(t, 2, 2, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, bytes.Repeat([]byte("data"), 4096), 0)
		for _, f := range f {
			inject(f, "reads at [8192,12288) corrupt")
		}
		var told []Scrubbed
		whole, err := v.Scrub(context.Background(), ScrubOptions{Tell: func(s Scrubbed) { told = append(told, s) }})
		if err != nil || whole.Lost != 1 || whole.Corrupt != 2 || len(told) == 0 || told[len(told)-1] != whole {
			t.Errorf("%+v, %v; told %+v", whole, err, told)
		}
		begun := whole
		begun.Bytes = 7
		if found, err := v.Scrub(context.Background(), ScrubOptions{Begun: begun}); err != nil || found != begun {
			t.Errorf("gone on at the end: %+v, %v", found, err)
		}
		begun.Total++ // of another chain, or size
		if found, err := v.Scrub(context.Background(), ScrubOptions{Begun: begun}); err != nil || found != whole {
			t.Errorf("not to be gone on with: %+v, %v", found, err)
		}
	})
}

// A scrub for idle time rests while clients are at work.
func TestScrubInIdleTime(t *testing.T) {
	inBubble(t, 2, 2, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, bytes.Repeat([]byte("data"), 4096), 0)
		scrub := begin(func() error {
			_, err := v.Scrub(context.Background(), ScrubOptions{Idle: func() bool { return true }})
			return err
		})
		for range 100 {
			time.Sleep(busyFor / 2)
			read(t, v, 0, 4096)
		}
		if scrub.done.Load() {
			t.Error("scrubbed while a client was at work")
		}
		time.Sleep(3 * busyFor)
		synctest.Wait()
		if !scrub.done.Load() || scrub.err != nil {
			t.Errorf("idle, and scrubbed %v, %v", scrub.done.Load(), scrub.err)
		}
	})
}

// A scrub leaves alone what clients write meanwhile, ends with its context, and does not
// keep Close waiting.
func TestScrubBesideWrites(t *testing.T) {
	inBubble(t, 3, 3, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, bytes.Repeat([]byte("data"), 1<<20), 0)
		must(t, v.settleNow())
		held := inject(f[0], "writes hang")
		w := begin(func() error { _, err := v.WriteAt(bytes.Repeat([]byte("new!"), 1024), 0); return err })
		synctest.Wait()
		if found, err := v.Scrub(context.Background(), ScrubOptions{}); err != nil || found.Unlike != 0 || found.Corrupt != 0 {
			t.Errorf("beside a write under way: %+v, %v", found, err)
		}
		f[0].Remove(held)
		synctest.Wait()
		must(t, w.err)
		inject(f[1], "reads delay 1s")
		scrub := begin(func() error { _, err := v.Scrub(context.Background(), ScrubOptions{}); return err })
		synctest.Wait()
		must(t, v.Close())
		synctest.Wait()
		if !scrub.done.Load() || scrub.err == nil {
			t.Errorf("after Close the scrub is done: %v, %v", scrub.done.Load(), scrub.err)
		}
	})
}

// A page that is trimmed, and the hole forgotten, between the reads of two copies is no
// difference.
func TestScrubBesideForgottenHoles(t *testing.T) {
	inBubble(t, 2, 2, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		write(t, v, bytes.Repeat([]byte("data"), 1024), 0)
		must(t, v.settleNow())
		held := inject(f[1], "reads hang")
		var found Scrubbed
		scrub := begin(func() (err error) { found, err = v.Scrub(context.Background(), ScrubOptions{}); return err })
		synctest.Wait() // the first node was read
		must(t, v.Trim(0, store.PageSize, false))
		must(t, v.settleNow())
		f[1].Remove(held)
		synctest.Wait()
		if !scrub.done.Load() || scrub.err != nil || found.Unlike != 0 {
			t.Errorf("scrubbed %v, %v: %+v", scrub.done.Load(), scrub.err, found)
		}
	})
}

// A copy that fails for a moment is read all the same: what another has corrupt is not
// lost.
func TestScrubAwaitsCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(2, 2, nil)
		f := faulty(c)
		c.hookStale(func() error { return ErrNotDone })
		v, err := Open(context.Background(), c.options(1, 64<<20))
		must(t, err)
		defer v.Close()
		write(t, v, bytes.Repeat([]byte("data"), 1024), 0)
		inject(f[0], "reads at [0,4096) corrupt")
		inject(f[1], "reads fail with timeout once")
		found, err := v.Scrub(context.Background(), ScrubOptions{})
		if err != nil || found.Lost != 0 || found.Corrupt != 1 || found.Bytes != 2*store.PageSize {
			t.Errorf("%+v, %v", found, err)
		}
		synctest.Wait()
		if n := v.Stats().Healed; n != 1 {
			t.Errorf("%d pages rewritten, want 1", n)
		}
	})
}

// A scrub that waits for the last copy in sync ends with its context.
func TestScrubEndsWhileCopiesFail(t *testing.T) {
	for _, op := range []string{"reads", "extents"} {
		inBubble(t, 2, 2, func(t *testing.T, v *Volume, f []*faultstore.Store) {
			write(t, v, bytes.Repeat([]byte("data"), 1024), 0)
			for _, f := range f {
				inject(f, op+" fail with timeout")
				inject(f, "attaches fail with timeout")
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			scrub := begin(func() error { _, err := v.Scrub(ctx, ScrubOptions{}); return err })
			time.Sleep(time.Minute)
			scrub.waits(t, "a scrub without a copy to read")
			cancel()
			synctest.Wait()
			if !scrub.done.Load() || !errors.Is(scrub.err, context.Canceled) {
				t.Errorf("%s: ended %v, %v", op, scrub.done.Load(), scrub.err)
			}
		})
	}
}
