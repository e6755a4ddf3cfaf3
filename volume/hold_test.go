package volume

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"torus/ring"
	"torus/store"
	"torus/store/faultstore"
)

// What requests wait for, and what they don't, while copies fail and come back.

// TestRecordBeforeAck: nothing that a copy lacks is acknowledged before it is
// recorded that it does, whatever the request (I4).
func TestRecordBeforeAck(t *testing.T) {
	for what, test := range map[string]struct {
		fault string
		do    func(v *Volume) error
	}{
		"a page":        {"writes fail with unreachable", func(v *Volume) error { _, err := v.WriteAt(make([]byte, 4096), 0); return err }},
		"a part":        {"writes fail with unreachable", func(v *Volume) error { _, err := v.WriteAt([]byte("x"), 5); return err }},
		"a FUA write":   {"writes fail with unreachable", func(v *Volume) error { _, err := v.WriteAtSync(make([]byte, 4096), 0); return err }},
		"a trim":        {"zeroes fail with unreachable", func(v *Volume) error { return v.Trim(0, 1<<20, false) }},
		"zeroing":       {"writes fail with unreachable", func(v *Volume) error { return v.Zero(0, 1<<20, false, true) }},
		"a flush":       {"syncs fail with unreachable", (*Volume).Sync},
		"several calls": {"writes fail with unreachable after 1", func(v *Volume) error { _, err := v.WriteAt(make([]byte, 12<<20), 0); return err }},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			f := faulty(c)
			recorded := make(chan struct{})
			c.hookStale(func() error { <-recorded; return nil })
			v, err := Open(context.Background(), c.options(1, 64<<20))
			must(t, err)
			defer v.Close()
			write(t, v, make([]byte, 4096), 0)
			inject(f[1], test.fault)
			if what == "several calls" {
				v.place.place = func(c ring.ChunkIndex) []ring.NodeID { return [][]ring.NodeID{{1, 2, 3}, {2, 3}}[c%2] }
			}
			l := begin(func() error { return test.do(v) })
			time.Sleep(time.Minute)
			l.waits(t, what)
			close(recorded)
			l.ends(t, what, nil)
			if len(c.lacks()[2]) == 0 {
				t.Errorf("%s: acknowledged, and not recorded", what)
			}
			f[1].Clear()
			joins(t, v)
		})
	}
}

// TestUnknownOutcomeIsWaitedFor: while it is not known whether a node was recorded
// stale it is waited for, and not read, though it answers; so is one that surely
// was not, until it answers: then it is taken back.
func TestUnknownOutcomeIsWaitedFor(t *testing.T) {
	for _, test := range []struct {
		outcome error
		done    bool // the transaction is, all the same
		back    bool
	}{
		{errors.New("no answer"), false, false},
		{errors.New("no answer"), true, false},
		{ErrNotDone, false, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			f := faulty(c)
			v, err := Open(context.Background(), c.options(1, 4<<20))
			must(t, err)
			defer v.Close()
			write(t, v, []byte("not flushed"), 0)
			c.hookStale(func() error {
				if test.done {
					c.setStale(staleMap{1: {testHead: v.durable()}})
				}
				return test.outcome
			})
			inject(f[0], "writes fail with unreachable once")
			w := begin(func() error { _, err := v.WriteAt(make([]byte, 4096), 0); return err })
			w.waits(t, "the write")
			flush := begin(v.Sync)
			inject(f[0], "reads fail") // of which another copy would not be read
			time.Sleep(time.Minute)
			if test.back {
				w.ends(t, "the write", nil)
				flush.ends(t, "the flush", nil)
				if !allInSync(v) || len(c.lacks()) > 0 {
					t.Errorf("status %+v, recorded %v", v.Status(), c.lacks())
				}
				return
			}
			w.waits(t, "the write")
			flush.waits(t, "a flush of what the node had answered")
			read(t, v, 1<<20, 4096)
			if n, s := v.Stats().Failovers, stateOf(v, 1); n != 0 || s != failing {
				t.Errorf("read from it %d times, it is %v", n, s)
			}
			c.hookStale(nil)
			time.Sleep(10 * time.Second)
			w.ends(t, "the write", nil)
			flush.ends(t, "the flush", nil)
			f[0].Clear()
			joins(t, v)
			c.alike(t, c.options(1, 4<<20))
		})
	}
}

// TestJoinEndsHold: what waits for min-copies does not keep from coming back the
// node that it waits for.
func TestJoinEndsHold(t *testing.T) {
	page := func(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }
	for name, test := range map[string]struct {
		held []func(v *Volume) error // in order
		lost bool                    // the node may have a write below the first of them
	}{
		"write": {held: []func(v *Volume) error{
			func(v *Volume) error { _, err := v.WriteAt(page('a'), 0); return err },
		}},
		"FUA, flush and trim": {held: []func(v *Volume) error{
			func(v *Volume) error { _, err := v.WriteAtSync(page('a'), 0); return err },
			(*Volume).Sync,
			func(v *Volume) error { return v.Trim(4096, 1<<20, false) },
		}},
		"merges": {held: []func(v *Volume) error{
			func(v *Volume) error { _, err := v.WriteAt(page('a'), 0); return err },
			func(v *Volume) error { _, err := v.WriteAt([]byte("merge"), 4093); return err },
			func(v *Volume) error { _, err := v.WriteAt([]byte("more"), 4095); return err },
			func(v *Volume) error { _, err := v.ReadAt(make([]byte, 8192), 0); return err },
		}},
		"lost write": {lost: true, held: []func(v *Volume) error{
			func(v *Volume) error { _, err := v.WriteAt(page('a'), 0); return err },
			func(v *Volume) error { _, err := v.WriteAt([]byte("merge"), 5); return err },
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(2, 2, nil)
			f := faulty(c)
			o := c.options(1, 4<<20)
			o.MinCopies = 2
			v, err := Open(context.Background(), o)
			must(t, err)
			defer v.Close()
			write(t, v, page('0'), 0)
			inject(f[1], "attaches fail with unreachable")
			goesAway(t, v, 2)
			if test.lost {
				v.copies.mu.Lock()
				v.place.node(2).mayHave(span{off: 0, end: 3 * 4096, version: v.flight.given()})
				v.copies.mu.Unlock()
			}
			var all []*later
			for _, do := range test.held {
				all = append(all, begin(func() error { return do(v) }))
			}
			time.Sleep(time.Minute)
			for i, l := range all {
				l.waits(t, name)
				if s := v.Status(); s.Waiting == "" {
					t.Errorf("%s %d: status %+v", name, i, s)
				}
			}
			f[1].Clear()
			joins(t, v)
			for _, l := range all {
				l.ends(t, name, nil)
			}
			c.alike(t, o)
		})
	}
}

// TestMinCopiesAreSeenOnce: a flush does not look at all sets of copies unless
// something has changed.
func TestMinCopiesAreSeenOnce(t *testing.T) {
	inBubble(t, 3, 3, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		must(t, v.Sync())
		was := v.copies.groups
		v.copies.groups = append(was[:len(was):len(was)], []ring.NodeID{})
		begin(v.Sync).ends(t, "a flush after another", nil)
		goesAway(t, v, 3)
		l := begin(v.Sync)
		l.waits(t, "a flush after a change")
		v.copies.mu.Lock()
		v.copies.groups = was
		v.copies.mu.Unlock()
		joins(t, v)
		l.ends(t, "the flush", nil)
	})
}

// TestSettledWhileStale: no hole is forgotten while a node may lack it (12/205), nor
// where a page that was adopted may come late, and bring back what the hole hid.
func TestSettledWhileStale(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		marks := func() (stable, settled store.Version) {
			for l, err := range f[0].Layers(t.Context()) {
				must(t, err)
				return l.Stable, l.Settled
			}
			return 0, 0
		}
		must(t, v.settleNow())
		if stable, settled := marks(); stable != settled || stable == 0 {
			t.Errorf("all in sync: stable %v, settled %v", stable, settled)
		}
		_, was := marks()
		inject(f[2], "attaches fail with unreachable")
		goesAway(t, v, 3)
		for _, when := range []string{"while a node is away", "after it was caught up with"} {
			must(t, v.Trim(0, 4096, false))
			must(t, v.settleNow())
			if stable, settled := marks(); stable != v.flight.given() || settled != was {
				t.Errorf("%s: stable %v of %v, settled %v", when, stable, v.flight.given(), settled)
			}
			f[2].Clear()
			joins(t, v)
		}
	})
}

// TestSinceIsWhatWasTold: a node that fails has all up to the mark that was told
// last, and not what was written since (10/583); a record that is there stays as
// low as it is (10/28125).
func TestSinceIsWhatWasTold(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		must(t, v.settleNow())
		told := v.flight.given()
		write(t, v, []byte("unsettled"), 8192)
		inject(f[2], "attaches fail with unreachable")
		goesAway(t, v, 3)
		write(t, v, []byte("missed"), 16384)
		must(t, v.settleNow())
		if got := c.lacks()[3][testHead]; got != told {
			t.Errorf("since %v, want %v", got, told)
		}
		f[2].Clear()
		joins(t, v)
		c.alike(t, c.options(1, 4<<20))
	})
}

// TestPendingKeepsItsLayers: a node that fails while it is not known whether its
// records are gone is caught up with in every layer, and all its records go.
func TestPendingKeepsItsLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 3, nil)
		v, err := Open(context.Background(), c.options(1, 1<<20))
		must(t, err)
		write(t, v, []byte("sealed"), 0)
		must(t, v.Close())
		c.setStale(staleMap{3: {testHead: 0, testHead + 1: 0}})
		o := c.options(2, 1<<20)
		o.Chain = []store.LayerID{testHead + 1, testHead}
		c.hookInSync(func() error { return errors.New("no answer") })
		v, err = Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		catches(t, v, 3, pending)
		n := v.place.node(3)
		v.failed(n, n.view.Load(), store.ErrUnreachable)
		c.hookInSync(nil)
		joins(t, v)
		if len(c.lacks()) > 0 {
			t.Errorf("recorded stale still: %v", c.lacks())
		}
	})
}

// inTwoLayers runs a test of a volume of three copies whose first page is in a sealed
// layer; of the copies so many of the head are recorded stale.
func inTwoLayers(t *testing.T, stale staleMap, do func(t *testing.T, c *nodes, v *Volume)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 3, nil)
		v, err := Open(context.Background(), c.options(1, 1<<20))
		must(t, err)
		write(t, v, []byte("sealed"), 0)
		must(t, v.Close())
		reopen := func(e store.Epoch) *Volume {
			o := c.options(e, 1<<20)
			o.Chain = []store.LayerID{testHead + 1, testHead}
			v, err := Open(context.Background(), o)
			must(t, err)
			return v
		}
		v = reopen(2)
		write(t, v, []byte("head"), 8192)
		must(t, v.Close())
		c.setStale(stale)
		v = reopen(3)
		defer v.Close()
		do(t, c, v)
	})
}

// TestLostLayer: a node that lacks some of the head has lost the layer below, in which it
// was in sync. It does not come back with an empty one, but is brought all.
func TestLostLayer(t *testing.T) {
	inTwoLayers(t, staleMap{3: {testHead + 1: 0}}, func(t *testing.T, c *nodes, v *Volume) {
		must(t, c.stores[2].Drop(t.Context(), testHead, store.AllChunks))
		joins(t, v)
		r, err := c.stores[2].Attach(t.Context(), testVolume, 3)
		must(t, err)
		got := make([]byte, store.PageSize)
		must(t, r.Read(t.Context(), []store.LayerID{testHead}, 0, got, nil))
		if string(got[:6]) != "sealed" {
			t.Errorf("it has %q", got[:6])
		}
		if len(c.lacks()) > 0 {
			t.Errorf("recorded stale still: %v", c.lacks())
		}
	})
}

// TestLosesLayerAsItStops: while it is recorded that a node stops it turns out to have lost
// a layer. The record says that it lacks all.
func TestLosesLayerAsItStops(t *testing.T) {
	inTwoLayers(t, nil, func(t *testing.T, c *nodes, v *Volume) {
		begun, done := make(chan struct{}), make(chan struct{})
		c.hookStale(func() error { close(begun); <-done; return nil })
		v.LetGo(3)
		<-begun
		c.hookStale(nil)
		n := v.place.node(3)
		v.failed(n, n.view.Load(), store.ErrUnknownLayer)
		close(done)
		synctest.Wait()
		if got := c.lacks()[3]; stateOf(v, 3) != away || len(got) != 2 || got[testHead] != 0 || got[testHead+1] != 0 {
			t.Errorf("node 3 is %v, recorded %v", stateOf(v, 3), got)
		}
	})
}

// TestPendingFailsAndPeerIsReborn: a node that may be recorded stale can't serve
// alone, and the other one has perhaps lost what was not flushed: the volume ends.
func TestPendingFailsAndPeerIsReborn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(2, 2, nil)
		f := faulty(c)
		v, err := Open(context.Background(), c.options(1, 1<<20))
		must(t, err)
		goesAway(t, v, 2)
		c.hookInSync(func() error { return errors.New("no answer") })
		catches(t, v, 2, pending)
		c.hookStale(func() error { return ErrNotDone })
		n := v.place.node(2)
		v.failed(n, n.view.Load(), store.ErrUnreachable)
		w := begin(func() error { _, err := v.WriteAt(make([]byte, 4096), 0); return err })
		time.Sleep(time.Minute)
		w.waits(t, "a write while the node can't be recorded")
		inject(f[0], "syncs fail once")
		if r, err := f[0].Attach(t.Context(), testVolume, 1); err != nil || r.Sync(t.Context()) == nil {
			t.Fatalf("node 1 has its incarnation still: %v", err)
		}
		r := begin(func() error { _, err := v.ReadAt(make([]byte, 1), 8192); return err })
		time.Sleep(time.Minute)
		w.ends(t, "the write", ErrBroken)
		r.ends(t, "a read", ErrBroken)
		if err := v.Close(); !errors.Is(err, store.ErrIncarnation) {
			t.Errorf("closed: %v", err)
		}
	})
}

// TestLapsedReadAsksAll: when the lease has perhaps run out a read is answered only
// if every copy in sync is under our epoch still (10/31251); a stale one may not be.
func TestLapsedReadAsksAll(t *testing.T) {
	for _, away := range []bool{false, true} { // the node that another holder has taken
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			f := faulty(c)
			o := c.options(1, 4<<20)
			held := true
			o.Held = func() bool { return held }
			v, err := Open(context.Background(), o)
			must(t, err)
			defer v.Close()
			write(t, v, []byte("here"), 0)
			extents := func() error {
				for _, err := range v.Extents(0, 4096) {
					return err
				}
				return nil
			}
			if away {
				goesAway(t, v, 3)
			}
			_, err = f[2].Attach(t.Context(), testVolume, 2)
			must(t, err)
			if got := string(read(t, v, 0, 4)); got != "here" {
				t.Errorf("under the lease: read %q", got)
			}
			must(t, extents())
			held = false
			if away {
				read(t, v, 0, 4)
				must(t, extents())
				return
			}
			if _, err := v.ReadAt(make([]byte, 4), 0); !errors.Is(err, ErrBroken) {
				t.Errorf("another holder has node 3: %v", err)
			}
		})
	}
}

// TestLapsedReadWaits: so it waits for a copy that does not answer, until that is
// recorded stale.
func TestLapsedReadWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 3, nil)
		f := faulty(c)
		recorded := make(chan struct{})
		c.hookStale(func() error { <-recorded; return nil })
		o := c.options(1, 4<<20)
		o.Held = func() bool { return false }
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		inject(f[2], "reads fail with unreachable")
		r := begin(func() error { _, err := v.ReadAt(make([]byte, 8192), 0); return err })
		e := begin(func() error {
			for _, err := range v.Extents(0, 4096) {
				return err
			}
			return nil
		})
		r.waits(t, "a read after the lease")
		e.waits(t, "extents after the lease")
		close(recorded)
		r.ends(t, "the read", nil)
		e.ends(t, "extents", nil)
	})
}

// TestReadIsNotDisturbed: a read waits for writes, and is done again only if the copy
// that answered it is not what it was.
func TestReadIsNotDisturbed(t *testing.T) {
	for _, changes := range []ring.NodeID{6, 1} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(6, 2, nil)
			f := faulty(c)
			v, err := Open(context.Background(), c.options(1, 24<<20))
			must(t, err)
			defer v.Close()
			write(t, v, bytes.Repeat([]byte("o"), 8192), 0)
			hang := inject(f[1], "writes apply and hang once")
			w := begin(func() error { _, err := v.WriteAt(bytes.Repeat([]byte("n"), 4096), 0); return err })
			once := inject(f[0], "reads delay 1s after 1") // to be seen if there is a second one
			began := time.Now()
			r := begin(func() error { read(t, v, 5, 100); return nil })
			r.waits(t, "a read of what is being written")
			inject(f[changes-1], "attaches fail with unreachable")
			goesAway(t, v, changes)
			f[1].Remove(hang)
			w.ends(t, "the write", nil)
			r.ends(t, "the read", nil)
			if took := time.Since(began); took > 0 {
				t.Errorf("node %v changed: the read took %v", changes, took)
			}
			f[0].Remove(once)
			f[changes-1].Clear()
			joins(t, v)
		})
	}
}

// TestReadOfRefused: what a read has from a node that is away by then, and that was
// refused since, is not shown (I6).
func TestReadOfRefused(t *testing.T) {
	for _, n := range []int{4, 4096, 3 * 4096} { // a part, whole pages, and pieces
		inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
			inject(f[0], "writes apply and hang once")
			inject(f[1], "writes fail with no-space once")
			inject(f[2], "writes fail with no-space once")
			w := writeNew(v)
			p := make([]byte, n)
			off := int64(0)
			if n > 2*4096 {
				off = 1
			}
			r := begin(func() error { _, err := v.ReadAt(p, off); return err })
			r.waits(t, "a read of what is being written")
			if n > 2*4096 && string(p[:2]) != "ew" {
				t.Fatalf("it was read from another copy: %q", p[:2])
			}
			goesAway(t, v, 1)
			w.ends(t, "the write", store.ErrNoSpace)
			r.ends(t, "the read", nil)
			if want := "old\x00"[off:]; string(p[:len(want)]) != want {
				t.Errorf("read %q", p[:len(want)])
			}
			undone(t, c, v, f)
		})
	}
}

// TestReadOfRefusedInPart: the same where only the last piece is from that node.
func TestReadOfRefusedInPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(4, 2, nil)
		f := faulty(c)
		v, err := Open(context.Background(), c.options(1, 16<<20))
		must(t, err)
		defer v.Close()
		const off = store.ChunkSize // its copies: nodes 2, 3; before it: 1, 2
		inject(f[1], "writes apply and hang once")
		inject(f[2], "writes fail with no-space once")
		w := begin(func() error { _, err := v.WriteAt(bytes.Repeat([]byte("n"), 4096), off); return err })
		p := make([]byte, 8192)
		r := begin(func() error { _, err := v.ReadAt(p, off-4096); return err })
		r.waits(t, "a read of what is being written")
		if p[4096] != 'n' {
			t.Fatalf("it was read from another copy: %q", p[4096])
		}
		goesAway(t, v, 2)
		w.ends(t, "the write", store.ErrNoSpace)
		r.ends(t, "the read", nil)
		if p[4096] != 0 {
			t.Errorf("read %q", p[4096])
		}
		f[1].Clear()
		joins(t, v)
		c.alike(t, c.options(1, 16<<20))
	})
}

// TestCloseWhileHeld: requests that wait for a copy end with Close, after a while,
// and unclean.
func TestCloseWhileHeld(t *testing.T) {
	for _, fault := range []string{"min-copies", "record"} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(2, 2, nil)
			f := faulty(c)
			o := c.options(1, 4<<20)
			if fault == "min-copies" {
				o.MinCopies = 2
			} else {
				c.hookStale(func() error { return errors.New("no answer") })
			}
			v, err := Open(context.Background(), o)
			must(t, err)
			inject(f[1], "requests fail with unreachable")
			w := begin(func() error { _, err := v.WriteAt([]byte("x"), 0); return err })
			s := begin(v.Sync)
			time.Sleep(time.Minute)
			w.waits(t, "the write")
			began := time.Now()
			if err := v.Close(); !errors.Is(err, errClosing) || time.Since(began) != closePatience {
				t.Errorf("%s: closed after %v: %v", fault, time.Since(began), err)
			}
			w.ends(t, "the write", ErrBroken)
			if s.ends(t, "the flush", s.err); (s.err != nil) != (fault == "min-copies") {
				t.Errorf("the flush: %v", s.err)
			}
			if err := v.Close(); !errors.Is(err, ErrClosed) {
				t.Errorf("closed again: %v", err)
			}
		})
	}
}

// TestCloseCleanWhileAway: what a node lacks is on record, so a volume ends clean
// without it; one whose record is not known to be there is waited for.
func TestCloseCleanWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 3, nil)
		f := faulty(c)
		v, err := Open(context.Background(), c.options(1, 4<<20))
		must(t, err)
		inject(f[2], "requests fail with unreachable")
		write(t, v, []byte("missed"), 0)
		began := time.Now()
		if err := v.Close(); err != nil || time.Since(began) > 0 {
			t.Errorf("closed after %v: %v", time.Since(began), err)
		}
		f[2].Clear()
		o := c.options(2, 4<<20)
		o.Clean = true
		v, err = Open(context.Background(), o)
		must(t, err)
		joins(t, v)
		c.alike(t, o)

		recorded := make(chan struct{})
		c.hookStale(func() error { <-recorded; return nil })
		n := v.place.node(3)
		v.failed(n, n.view.Load(), store.ErrUnreachable)
		l := begin(v.Close)
		time.Sleep(closePatience / 2)
		l.waits(t, "Close while it is not known whether a copy is recorded")
		close(recorded)
		l.ends(t, "Close", nil)
	})
}

// TestChunksOfManyNodes: chunks have different copies; nodes that share none fail
// apart, and only what lies on a node that is waited for waits.
func TestChunksOfManyNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(6, 2, nil) // chunk i lies on nodes i+1, i+2
		f := faulty(c)
		o := c.options(1, 6*store.ChunkSize)
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		all := func(b byte) error {
			_, err := v.WriteAt(bytes.Repeat([]byte{b}, 6*store.ChunkSize-2), 1)
			return err
		}
		must(t, all('a'))
		for _, id := range []ring.NodeID{1, 4} {
			inject(f[id-1], "requests fail with unreachable")
		}
		begin(func() error { return all('b') }).ends(t, "a write over nodes 1 and 4", nil)
		if len(c.lacks()) != 2 || len(c.lacks()[1]) == 0 || len(c.lacks()[4]) == 0 {
			t.Fatalf("recorded %v", c.lacks())
		}
		inject(f[1], "requests fail with unreachable") // node 2: the last copy of chunk 0
		whole := begin(func() error { return all('c') })
		whole.waits(t, "a write over the last copy of chunk 0")
		beside := begin(func() error { _, err := v.WriteAt([]byte("x"), 2*store.ChunkSize+5000); return err })
		beside.waits(t, "a merge behind it")
		if len(c.lacks()) != 2 {
			t.Fatalf("recorded %v", c.lacks())
		}
		f[1].Clear()
		time.Sleep(10 * time.Second)
		whole.ends(t, "the write", nil)
		beside.ends(t, "the merge", nil)
		inject(f[1], "requests fail with unreachable")
		begin(func() error { _, err := v.WriteAt([]byte("y"), 5*store.ChunkSize-1); return err }).ends(t, "a write beside node 2", nil)
		for _, s := range f {
			s.Clear()
		}
		joins(t, v)
		c.alike(t, o)
		p := read(t, v, 0, 6*store.ChunkSize)
		if p[1] != 'c' || p[2*store.ChunkSize+5000] != 'x' || p[5*store.ChunkSize-1] != 'y' || p[6*store.ChunkSize-2] != 'c' {
			t.Errorf("read %q, %q, %q, %q", p[1], p[2*store.ChunkSize+5000], p[5*store.ChunkSize-1], p[6*store.ChunkSize-2])
		}
	})
}

// despiteFull does a request again where all copies were full at once.
func despiteFull(do func() error) (err error) {
	for range 10 {
		if err = do(); !errors.Is(err, store.ErrNoSpace) {
			break
		}
	}
	return err
}

// TestManyNodesComeAndGo: writes, trims, flushes and reads of all alignments over
// seven nodes that fail and come back all the time leave what they should.
func TestManyNodesComeAndGo(t *testing.T) {
	seed := rand.Uint64()
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 0))
		const size = 7*store.ChunkSize + 3*4096
		c := newNodes(7, 3, nil)
		f := faulty(c)
		o := c.options(1, size)
		o.SyncBytes = 1 << 20
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		want := make([]byte, size)
		for i := range 100 {
			if rng.IntN(3) == 0 {
				n := rng.IntN(len(f))
				switch ops := []string{"writes", "reads", "syncs", "zeroes", "stables", "requests"}[rng.IntN(6)]; rng.IntN(4) {
				case 0:
					inject(f[n], ops+" fail with unreachable 3 times")
				case 1:
					inject(f[n], ops+" delay 100ms 5 times")
				case 2:
					inject(f[n], "writes,zeroes apply and fail with timeout 2 times")
				case 3:
					inject(f[n], "writes fail with no-space once")
				}
			}
			// Near the ends of chunks, so that most have several sets of copies.
			off := max(0, min(size-1, rng.Int64N(8)*store.ChunkSize-rng.Int64N(3*4096)))
			n := min(size-off, 1+rng.Int64N(4*4096))
			if rng.IntN(10) == 0 {
				n = size - off
			}
			switch rng.IntN(6) {
			case 0:
				must(t, despiteFull(func() error { return v.Trim(off, n, rng.IntN(2) == 0) }))
				clear(want[off : off+n])
			case 1:
				must(t, v.Sync())
			case 2:
				if !bytes.Equal(read(t, v, off, n), want[off:off+n]) {
					t.Fatalf("at %d+%d, request %d: other bytes", off, n, i)
				}
			default:
				p := bytes.Repeat([]byte{byte(i)}, int(n))
				must(t, despiteFull(func() error { _, err := v.WriteAt(p, off); return err }))
				copy(want[off:], p)
			}
		}
		for _, s := range f {
			s.Clear()
		}
		joins(t, v)
		if !bytes.Equal(read(t, v, 0, size), want) {
			t.Error("in the end: other bytes")
		}
		c.alike(t, o)
	})
	if t.Failed() {
		t.Logf("seed %#x", seed)
	}
}
