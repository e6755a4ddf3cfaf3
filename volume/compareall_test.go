package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"torus/ring"
	"torus/store"
)

func TestRightful(t *testing.T) {
	data := func(v store.Version) store.Extent { return store.Extent{Kind: store.Data, Version: v} }
	hole := store.Extent{Kind: store.Hole, Version: 7}
	for name, c := range map[string]struct {
		copies []store.Extent
		marks  []store.Version
		want   store.Extent
	}{
		"equal":                               {[]store.Extent{data(3), data(3)}, []store.Version{5, 5}, data(3)},
		"above the mark":                      {[]store.Extent{data(3), data(6)}, []store.Version{5, 5}, data(6)},
		"above the mark, on one told less":    {[]store.Extent{data(3), data(6)}, []store.Version{5, 2}, data(6)},
		"taken back":                          {[]store.Extent{data(3), data(4)}, []store.Version{5, 2}, data(3)},
		"taken back, there was nothing":       {[]store.Extent{{}, data(4)}, []store.Version{5, 2}, store.Extent{}},
		"written over while it was stale":     {[]store.Extent{data(4), data(3)}, []store.Version{5, 2}, data(4)},
		"trimmed while it was stale":          {[]store.Extent{data(3), hole}, []store.Version{2, 8}, hole},
		"one has lost the marks with power":   {[]store.Extent{data(6), data(6)}, []store.Version{0, 5}, data(6)},
		"none was told anything":              {[]store.Extent{data(2), data(1)}, []store.Version{0, 0}, data(2)},
		"a hole that one of them has forgot":  {[]store.Extent{{}, hole}, []store.Version{8, 8}, hole},
		"only those told least have anything": {[]store.Extent{{}, {}, data(9)}, []store.Version{8, 8, 1}, data(9)},
	} {
		if got := rightful(c.copies, c.marks); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// lost are three nodes whose records are lost: node 3 was stale for a while, and
// stopped before it was brought up to date. The pages are, in order: written over,
// written there alone, that over nothing, under way when all ended, trimmed.
func lost(t *testing.T) *nodes {
	t.Helper()
	c := newNodes(3, 3, nil)
	var replicas []store.Replica
	for _, s := range c.stores {
		r, err := s.Attach(t.Context(), testVolume, 5)
		must(t, err)
		must(t, r.Create(t.Context(), testHead, 0))
		replicas = append(replicas, r)
	}
	put := func(page, sequence int, to ...int) {
		for _, n := range to {
			p := bytes.Repeat([]byte{byte(sequence)}, store.PageSize)
			must(t, replicas[n-1].Write(t.Context(), testHead, int64(page)*store.PageSize, p, store.NewVersion(5, uint64(sequence)), 0))
		}
	}
	put(0, 1, 1, 2, 3)
	put(1, 2, 1, 2, 3)
	put(4, 3, 1, 2, 3)
	for _, r := range replicas {
		must(t, r.Stable(t.Context(), testHead, store.NewVersion(5, 3), 0))
	}
	put(0, 4, 1, 2)
	put(1, 5, 3)
	put(2, 6, 3)
	for _, n := range []int{1, 2} {
		must(t, replicas[n-1].Zero(t.Context(), testHead, 4*store.PageSize, store.PageSize, store.NewVersion(5, 7), 0))
	}
	must(t, replicas[1].Sync(t.Context()))
	must(t, replicas[1].Stable(t.Context(), testHead, store.NewVersion(5, 8), 0)) // node 1 missed it
	put(3, 9, 1)
	return c
}

// lostOptions are those of a first attachment.
func (c *nodes) lostOptions(e store.Epoch) Options {
	o := c.options(e, store.ChunkSize)
	o.CompareAll, o.Served, o.KeepHoles = true, true, true
	return o
}

// checkLost fails unless all copies are as they should be.
func (c *nodes) checkLost(t *testing.T, o Options) {
	t.Helper()
	c.equal(t, o)
	for i, p := range c.pagesOf(t, o, 3, 0, 6) {
		want := []string{"data 5.4", "data 5.2", "absent 0.0", "data 5.9", "hole 5.7", "absent 0.0"}[i]
		if got := fmt.Sprint(p.kind, " ", p.version); got != want {
			t.Errorf("page %d is %s, want %s", i, got, want)
		}
	}
}

// The first attachment after the records were founded anew: what a copy has that was
// stale neither replaces what was acknowledged nor comes back.
func TestCompareAll(t *testing.T) {
	c := lost(t)
	for _, e := range []store.Epoch{2, 5} { // the records are older than the nodes, or as old
		var fenced *store.FencedError
		if _, err := Open(t.Context(), c.lostOptions(e)); !errors.As(err, &fenced) || fenced.Recorded != 5 {
			t.Fatalf("under epoch %v: %v", e, err)
		}
	}
	o := c.lostOptions(6)
	v := open(t, o)
	c.checkLost(t, o)
	if len(c.found.Copies) != 3 || len(c.found.Stale) != 0 {
		t.Errorf("recorded: %+v", c.found)
	}
	if got := read(t, v, 0, store.PageSize); got[0] != 4 {
		t.Errorf("it reads %d", got[0])
	}
}

// Killed amid, and begun again: the same comes of it.
func TestCompareAllAgain(t *testing.T) {
	c := lost(t)
	o := c.lostOptions(6)
	c.hookServing = func(Found) error { return errInterrupted }
	if _, err := Open(t.Context(), o); !errors.Is(err, errInterrupted) {
		t.Fatal(err)
	}
	c.hookServing = nil
	for _, d := range c.disks {
		d.PowerCut()
	}
	c.start()
	o = c.lostOptions(7)
	open(t, o)
	c.checkLost(t, o)
}

// A copy that is missing is waited for, whatever the others have; it may be the only
// one that was in sync. One that was given up is not, and is brought up to date later.
func TestCompareAllMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := lost(t)
		o := c.lostOptions(6)
		away := errors.New("no answer")
		o.Dial = func(_ context.Context, id ring.NodeID) (store.Store, error) {
			if id == 2 {
				return nil, away
			}
			return c.stores[id-1], nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := Open(ctx, o); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "node 0000000000000002: no answer") {
			t.Fatalf("without node 2: %v", err)
		}
		o.Epoch++
		o.Stale = []Stale{{Node: 2, Layer: testHead, Why: "given up"}}
		v := open(t, o)
		if len(c.found.Copies) != 2 {
			t.Errorf("recorded: %+v", c.found)
		}
		must(t, v.Close())
	})
}

// A copy that has lost what it had is not taken for one that never had anything.
func TestCompareAllEmpty(t *testing.T) {
	c := lost(t)
	c.stores[1] = newNodes(1, 1, nil).stores[0]
	for i, served := range []bool{true, false} { // the other copies tell
		o := c.lostOptions(store.Epoch(6 + i))
		o.Served = served
		if _, err := Open(t.Context(), o); !errors.Is(err, ErrNoCopy) || !strings.Contains(err.Error(), "node 0000000000000002 has nothing of the volume any more") {
			t.Errorf("with the store of node 2 empty: %v", err)
		}
	}
	fresh := newNodes(3, 3, nil)
	if _, err := Open(t.Context(), fresh.lostOptions(1)); !errors.Is(err, ErrNoCopy) {
		t.Errorf("with all stores empty: %v", err)
	}
	o := fresh.lostOptions(2)
	o.Served = false
	open(t, o) // a volume that was never served
	if got := fresh.pagesOf(t, o, 1, 0, 1); got[0].kind != store.Absent {
		t.Errorf("it has %v", got[0])
	}
}
