package volume

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"torus/ring"
	"torus/store"
	"torus/store/faultstore"
)

// Writes that all copies in sync refused for want of space, and that some node has
// all the same, or gets late: nothing of them may be seen later on (I6).

// inThree runs a test of a volume of three copies whose first page reads "old".
func inThree(t *testing.T, do func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 3, nil)
		f := faulty(c)
		v, err := Open(context.Background(), c.options(1, 4<<20))
		must(t, err)
		defer v.Close()
		write(t, v, []byte("old"), 0)
		do(t, c, v, f)
	})
}

// undone fails the test unless all copies come to be in sync, alike, and without
// the write that was refused.
func undone(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
	t.Helper()
	for _, s := range f {
		s.Clear()
	}
	joins(t, v)
	if got := string(read(t, v, 0, 4)); got != "old\x00" {
		t.Errorf("read %q", got)
	}
	c.alike(t, c.options(1, 4<<20))
	for _, n := range v.place.nodes {
		if len(n.lost) > 0 {
			t.Errorf("node %v is in sync with %v", n.id, n.lost)
		}
	}
}

func writeNew(v *Volume) *later {
	return begin(func() error { _, err := v.WriteAt([]byte(strings.Repeat("new!", 1024)), 0); return err })
}

// catches waits until a node that is away is caught up with, and held there.
func catches(t *testing.T, v *Volume, id ring.NodeID, want state) {
	t.Helper()
	for range 200 {
		if stateOf(v, id) == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("node %v is %v, not %v", id, stateOf(v, id), want)
}

// TestRefusedIsUndone: a node that was caught up with took a write, and refused it
// when it was sent again; those in sync all refuse it.
func TestRefusedIsUndone(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		goesAway(t, v, 3)
		inject(f[2], "syncs hang")
		catches(t, v, 3, joining)
		c.hookStale(func() error { return ErrNotDone })
		for i, n := range v.place.nodes[:2] {
			inject(f[i], "attaches fail with unreachable")
			v.failed(n, n.view.Load(), store.ErrUnreachable)
		}
		w := writeNew(v)
		w.waits(t, "a write while no copy is in sync")
		n := v.place.node(3)
		v.failed(n, n.view.Load(), store.ErrUnreachable) // before its sync ends
		f[2].Clear()
		inject(f[2], "writes fail with no-space")
		time.Sleep(5 * time.Second) // it comes back, and refuses
		w.waits(t, "the write")
		for i := range 2 {
			f[i].Clear()
			inject(f[i], "writes fail with no-space")
		}
		time.Sleep(5 * time.Second)
		w.ends(t, "the write", store.ErrNoSpace)
		c.hookStale(nil)
		undone(t, c, v, f)
	})
}

// TestRefusedAfterNoAnswer: a node in sync did not answer, was taken back, as
// nothing was recorded, and then refused like the others: it may have the write,
// and is done without before that is refused.
func TestRefusedAfterNoAnswer(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		c.hookStale(func() error { return ErrNotDone })
		inject(f[0], "writes apply and fail with unreachable once")
		inject(f[0], "writes fail with no-space after 1")
		inject(f[1], "writes fail with no-space once")
		inject(f[2], "writes fail with no-space once")
		w := writeNew(v)
		w.waits(t, "a write that a node did not answer")
		r := begin(func() error { _, err := v.ReadAt(make([]byte, 1), 0); return err })
		time.Sleep(10 * time.Second)
		w.waits(t, "a write that a node in sync may have")
		r.waits(t, "a read of it")
		c.hookStale(nil)
		time.Sleep(10 * time.Second)
		w.ends(t, "the write", store.ErrNoSpace)
		r.ends(t, "the read", nil)
		undone(t, c, v, f)
	})
}

// TestRefusedByLastCopy: where the last copy may have the write it is not refused,
// but held until there is space; other requests go on.
func TestRefusedByLastCopy(t *testing.T) {
	inBubble(t, 1, 1, func(t *testing.T, v *Volume, f []*faultstore.Store) {
		inject(f[0], "writes at [0,4096) apply and fail with unreachable once")
		inject(f[0], "writes at [0,4096) fail with no-space after 1 7 times")
		w := writeNew(v)
		time.Sleep(5 * time.Second)
		w.waits(t, "a write that the last copy may have")
		if s := v.Status(); !strings.Contains(s.Waiting, "space") {
			t.Errorf("status %+v", s)
		}
		began := time.Now()
		write(t, v, []byte("beside"), 8192)
		if took := time.Since(began); took > 0 {
			t.Errorf("another write took %v", took)
		}
		time.Sleep(5 * time.Second)
		w.ends(t, "the write", nil)
		if got := string(read(t, v, 0, 4)); got != "new!" || v.Status().Waiting != "" {
			t.Errorf("read %q, status %+v", got, v.Status())
		}
	})
}

// TestRefusedAndAdopted: a node that refused the write itself adopted it from one
// that was in sync, and went away right after.
func TestRefusedAndAdopted(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		goesAway(t, v, 3)
		list := inject(f[2], "extents hang")
		inject(f[2], "syncs hang")
		catches(t, v, 3, catching)
		inject(f[0], "writes apply and hang once")
		inject(f[0], "attaches fail with unreachable")
		inject(f[1], "writes fail with no-space")
		inject(f[2], "writes fail with no-space")
		w := writeNew(v)
		f[2].Remove(list)
		catches(t, v, 3, joining)
		w.waits(t, "the write")
		goesAway(t, v, 1)
		w.ends(t, "the write", store.ErrNoSpace)
		f[2].Clear()
		time.Sleep(time.Minute)
		if s := stateOf(v, 3); s == inSync {
			t.Error("node 3 was taken back with a write that was refused")
		}
		undone(t, c, v, f)
	})
}

// TestRefusedWhileJoining: a node that takes what those in sync refuse begins anew.
func TestRefusedWhileJoining(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		goesAway(t, v, 3)
		inject(f[2], "syncs hang")
		catches(t, v, 3, joining)
		inject(f[0], "writes fail with no-space once")
		inject(f[1], "writes fail with no-space once")
		writeNew(v).ends(t, "the write", store.ErrNoSpace)
		if s := stateOf(v, 3); s != away {
			t.Errorf("node 3 is %v", s)
		}
		undone(t, c, v, f)
	})
}

// TestAnsweredIsNotAskedAgain: a node that answered a write has it still when it is
// taken back as what it was.
func TestAnsweredIsNotAskedAgain(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		hang := inject(f[1], "writes hang once")
		w := writeNew(v)
		inject(f[0], "writes fail with no-space")
		c.hookStale(func() error { return ErrNotDone })
		n := v.place.node(1)
		v.failed(n, n.view.Load(), store.ErrUnreachable)
		catches(t, v, 1, inSync)
		c.hookStale(nil)
		f[1].Remove(hang)
		w.ends(t, "the write", nil)
		if !allInSync(v) || len(c.lacks()) > 0 {
			t.Errorf("status %+v, recorded %v", v.Status(), c.lacks())
		}
		must(t, v.Sync())
		c.equal(t, c.options(1, 4<<20))
	})
}

// TestRefusalIsDecidedOnce: a node that has the write, and was not in sync when the
// run was judged, may be so by now.
func TestRefusalIsDecidedOnce(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		goesAway(t, v, 3)
		n := v.place.node(3)
		at, _, err := v.attachStale(n)
		must(t, err)
		_, err = v.begins(n, at)
		must(t, err)
		s := newSender(v, span{off: 0, end: 4096, version: 9}, 0)
		defer s.release()
		s.pages(0, 4096, make([]byte, 4096), fillData)
		for i := range s.calls {
			k := &s.calls[i]
			k.view, k.made = k.node.view.Load(), true
			if k.seen = k.view; k.node == n {
				k.may = true
			} else {
				k.err = store.ErrNoSpace
			}
		}
		if !v.moves(n, at, catching, pending) {
			t.Fatal("node 3 is not caught up with")
		}
		if got := s.refuse(s.calls, &s.calls[0]); got != runWaits || s.refused != nil || len(n.lost) > 0 {
			t.Errorf("judged %v, refused %v, lost %v", got, s.refused, n.lost)
		}
		if got := s.judge(s.calls); got != runWaits || stateOf(v, 3) != pending {
			t.Errorf("judged %v, node 3 is %v", got, stateOf(v, 3))
		}
		if w := v.place.node(1).view.Load(); w.state == inSync {
			t.Error("a node that refused what a pending one has is in sync")
		}
		v.turn(n, away, nil)
	})
}

// TestRefusedBeforeCatching: what is refused between the rewriting and the moment
// from which the node is sent all writes is rewritten before it is taken back.
func TestRefusedBeforeCatching(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		goesAway(t, v, 3)
		inject(f[2], "attaches hang 1 times")
		time.Sleep(time.Second) // it is being attached, having nothing to rewrite
		given := v.flight.given()
		v.copies.mu.Lock()
		v.place.node(3).mayHave(span{off: 0, end: 4096, version: given})
		v.copies.mu.Unlock()
		undone(t, c, v, f)
		if v.flight.given() == given {
			t.Error("nothing was rewritten")
		}
	})
}

// TestManyRefused: what is remembered of a node is bounded, also while it is being
// rewritten.
func TestManyRefused(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		goesAway(t, v, 3)
		n := v.place.node(3)
		more := func(count int) {
			v.copies.mu.Lock()
			defer v.copies.mu.Unlock()
			for i := range int64(count) {
				n.mayHave(span{off: i % 500 * 4096, end: i%500*4096 + 4096, version: v.flight.given()})
			}
			if len(n.lost) > maxLost {
				t.Errorf("%d are remembered", len(n.lost))
			}
		}
		hang := inject(f[0], "reads hang")
		more(maxLost)
		time.Sleep(2 * time.Second) // the first is being rewritten
		more(maxLost + 1)
		f[0].Remove(hang)
		undone(t, c, v, f)
	})
}

// TestRewriteGivesWay: what is being written is not written anew, as that may be
// held for the node, or be refused still: what the write brings would be shown.
func TestRewriteGivesWay(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		given := v.flight.given()
		// One that ends when what was there before it has been read.
		unwritten := inject(f[0], "writes hang once")
		inject(f[0], "reads apply and hang once")
		lower := writeNew(v)
		over := begin(func() error { return v.again(0, 4096) })
		f[0].Remove(unwritten)
		lower.ends(t, "the write", nil)
		f[0].Clear()
		over.ends(t, "rewriting over it", errHeld)
		if got := string(read(t, v, 0, 4)); got != "new!" {
			t.Errorf("read %q", got)
		}
		// One that begins later, and is read.
		hang := inject(f[0], "reads hang once")
		again := begin(func() error { return v.again(0, 4096) })
		inject(f[1], "writes apply and hang once")
		w := writeNew(v)
		f[0].Remove(hang)
		again.ends(t, "rewriting what is being written", errHeld)
		f[1].Clear()
		w.ends(t, "the write", nil)
		if _, err := v.rewrite(0, 4096, given); err != nil || v.flight.count() != 0 {
			t.Errorf("rewriting: %v, %d in flight", err, v.flight.count())
		}
	})
}

// TestMergeGivesWay: a write waits until a node is in sync that may have a refused one; a
// merge waits for that write, and covers what is to be written anew for the node.
func TestMergeGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(2, 2, nil)
		o := c.options(1, 4<<20)
		o.MinCopies = 2
		v, err := Open(context.Background(), o)
		must(t, err)
		write(t, v, []byte(strings.Repeat("old.", 3*1024)), 0)
		goesAway(t, v, 2)
		v.copies.mu.Lock()
		v.place.node(2).mayHave(span{off: 8192, end: 3 * 4096, version: v.flight.given()})
		v.copies.mu.Unlock()
		held := begin(func() error { _, err := v.WriteAt([]byte(strings.Repeat("held", 1024)), 0); return err })
		held.waits(t, "a write with a copy too few")
		merge := begin(func() error { _, err := v.WriteAt([]byte(strings.Repeat("m", 8192)), 4); return err })
		merge.waits(t, "a merge behind it")
		time.Sleep(time.Minute)
		held.ends(t, "the write", nil)
		merge.ends(t, "the merge", nil)
		must(t, v.Sync())
		got := string(read(t, v, 0, 3*4096))
		if want := "held" + strings.Repeat("m", 8192) + strings.Repeat("old.", 1023); got != want {
			t.Errorf("read %.8q ... %.8q, not %.8q ... %.8q", got, got[8192:], want, want[8192:])
		}
		must(t, v.Close())
		c.alike(t, c.options(1, 4<<20))
	})
}

// TestRewriteKeepsWhatIs: pages, holes, and what is newer than the lost write.
func TestRewriteKeepsWhatIs(t *testing.T) {
	inThree(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		const pages = 8
		write(t, v, []byte(strings.Repeat("data", pages*1024)), 0)
		must(t, v.Trim(2*4096, 4096, false))
		lost := v.flight.given()
		write(t, v, []byte(strings.Repeat("newer", 1000)), 4*4096) // and a part of the page behind
		before, bytes := c.pagesOf(t, c.options(1, 4<<20), 1, 0, pages), string(read(t, v, 0, pages*4096))
		goesAway(t, v, 3)
		v.copies.mu.Lock()
		v.place.node(3).mayHave(span{off: 0, end: pages * 4096, version: lost})
		v.copies.mu.Unlock()
		joins(t, v)
		c.alike(t, c.options(1, 4<<20))
		if got := string(read(t, v, 0, pages*4096)); got != bytes {
			t.Error("other bytes")
		}
		for i, p := range c.pagesOf(t, c.options(1, 4<<20), 3, 0, pages) {
			if kept := p.version == before[i].version; kept != (i == 4 || i == 5) || p.version <= lost {
				t.Errorf("page %d: %v, was %v; %v was lost", i, p.version, before[i].version, lost)
			}
			if (p.kind == store.Hole) != (i == 2) {
				t.Errorf("page %d is %v", i, p.kind)
			}
		}
	})
}
