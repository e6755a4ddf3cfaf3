package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"torus/ring"
	"torus/store"
	"torus/store/faultstore"
)

// joins waits until every node is in sync, as long as a tender that was refused
// several times may take.
func joins(t *testing.T, v *Volume) {
	t.Helper()
	for range 600 {
		if allInSync(v) {
			return
		}
		time.Sleep(250 * time.Millisecond)
	}
	for _, n := range v.place.nodes {
		t.Errorf("node %v is %v: %v", n.id, n.view.Load().state, n.why)
	}
	t.FailNow()
}

func allInSync(v *Volume) bool {
	return !slices.ContainsFunc(v.place.nodes, func(n *node) bool { return n.view.Load().state != inSync })
}

// stateOf returns the state of a node once all wait.
func stateOf(v *Volume, id ring.NodeID) state {
	synctest.Wait()
	return v.place.node(id).view.Load().state
}

// goesAway has a request of v report that a node failed, and waits until that is
// recorded.
func goesAway(t *testing.T, v *Volume, id ring.NodeID) {
	t.Helper()
	n := v.place.node(id)
	v.failed(n, n.view.Load(), store.ErrUnreachable)
	if s := stateOf(v, id); s != away {
		t.Fatalf("node %v is %v, not away", id, s)
	}
}

// diverge opens a volume that has some history on all nodes, and then writes for
// the last node and for the others, each without the other: the former were not
// acknowledged, the latter were. It records the last node stale and returns
// options to open the volume, and how many bytes are unequal.
func diverge(t *testing.T, c *nodes, rng *rand.Rand, size int64) (o Options, unequal int64) {
	t.Helper()
	v, err := Open(context.Background(), c.options(1, size))
	must(t, err)
	change := func(do func(off, n int64, hole bool, p []byte)) {
		for range 20 + rng.IntN(40) {
			off := rng.Int64N(size/store.PageSize) * store.PageSize
			n := min(size-off, (1+rng.Int64N(8))*store.PageSize)
			do(off, n, rng.IntN(3) == 0, bytes.Repeat([]byte{byte(rng.Int())}, int(n)))
		}
	}
	change(func(off, n int64, hole bool, p []byte) {
		if hole {
			must(t, v.Trim(off, n, false))
		} else {
			write(t, v, p, off)
		}
	})
	must(t, v.settleNow())
	since := v.flight.given()
	must(t, v.Close())
	seq := since.Sequence()
	last := len(c.stores) - 1
	for _, stores := range [][]store.Store{c.stores[:last], c.stores[last:], c.stores[:last]} {
		change(func(off, n int64, hole bool, p []byte) {
			seq++
			for at := off; at < off+n; at += store.PageSize {
				for _, s := range stores {
					r, err := s.Attach(t.Context(), testVolume, 1)
					must(t, err)
					if id := ring.NodeID(slices.Index(c.stores, s) + 1); !slices.Contains(c.options(1, size).Place(ring.ChunkIndex(at/store.ChunkSize)), id) {
						continue
					}
					if hole {
						must(t, r.Zero(t.Context(), testHead, at, store.PageSize, store.NewVersion(1, seq), 0))
					} else {
						must(t, r.Write(t.Context(), testHead, at, p[at-off:][:store.PageSize], store.NewVersion(1, seq), 0))
					}
				}
			}
		})
	}
	id := ring.NodeID(last + 1)
	c.setStale(staleMap{id: {testHead: since}})
	o = c.options(1, size)
	for off := int64(0); off < size; off += store.ChunkSize {
		ids := o.Place(ring.ChunkIndex(off / store.ChunkSize))
		if !slices.Contains(ids, id) {
			continue
		}
		peer := ids[slices.IndexFunc(ids, func(n ring.NodeID) bool { return n != id })]
		pages := int(min(store.ChunkSize, size-off) / store.PageSize)
		is := c.pagesOf(t, o, peer, off, pages)
		for i, has := range c.pagesOf(t, o, id, off, pages) {
			if has != is[i] {
				unequal += store.PageSize
			}
		}
	}
	return c.options(2, size), unequal
}

// TestResync: a node that missed writes, and has others that nobody acknowledged,
// gets what its peers have, and no more than differs.
func TestResync(t *testing.T) {
	for _, test := range []struct{ nodes, copies int }{{2, 2}, {3, 3}, {4, 2}} {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("%d of %d nodes, seed %#x", test.copies, test.nodes, seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 0))
				c := newNodes(test.nodes, test.copies, nil)
				o, unequal := diverge(t, c, rng, 3*store.ChunkSize+64<<10)
				v, err := Open(context.Background(), o)
				must(t, err)
				defer v.Close()
				joins(t, v)
				c.alike(t, o)
				if p := &v.place.nodes[test.nodes-1].progress; p.done.Load() != unequal || p.total.Load() != unequal {
					t.Errorf("%d of %d bytes were brought, %d differed", p.done.Load(), p.total.Load(), unequal)
				}
				if len(c.lacks()) != 0 {
					t.Errorf("recorded stale still: %v", c.lacks())
				}
			})
		})
	}
}

// TestResyncUnderWrites: what is written while a node is caught up with is on it
// too.
func TestResyncUnderWrites(t *testing.T) {
	seed := rand.Uint64()
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 0))
		const size = 2 * store.ChunkSize
		c := newNodes(3, 3, nil)
		diverge(t, c, rng, size)
		for _, f := range faulty(c) {
			inject(f, "reads,adopts,writes,extents delay 1ms")
		}
		o := c.options(2, size)
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; i < 100 || !allInSync(v) && i < 1e5; i++ {
				off := rng.Int64N(size - 3*store.PageSize)
				switch p := bytes.Repeat([]byte{byte(i)}, 1+rng.IntN(2*store.PageSize)); rng.IntN(4) {
				case 0:
					must(t, v.Trim(off, int64(len(p)), false))
				default:
					write(t, v, p, off)
				}
			}
		}()
		<-done
		joins(t, v)
		c.alike(t, o)
	})
	if t.Failed() {
		t.Logf("seed %#x", seed)
	}
}

// TestResyncAfterPlannedWrite: a write that began while a node was away, and is answered
// without it after it is caught up with, is compared too (10/3778).
func TestResyncAfterPlannedWrite(t *testing.T) {
	for what, do := range map[string]func(v *Volume) error{
		"a page": func(v *Volume) error {
			_, err := v.WriteAt(bytes.Repeat([]byte("w"), store.PageSize), 5*store.PageSize)
			return err
		},
		"a part": func(v *Volume) error { _, err := v.WriteAt([]byte("w"), 5*store.PageSize+7); return err },
		"much":   func(v *Volume) error { _, err := v.WriteAt(bytes.Repeat([]byte("w"), 6<<20), 0); return err },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			f := faulty(c)
			o := c.options(1, 64<<20)
			v, err := Open(context.Background(), o)
			must(t, err)
			defer v.Close()
			write(t, v, make([]byte, 8*store.PageSize), 0)
			inject(f[2], "requests fail with unreachable")
			write(t, v, []byte("it is away"), 0)
			held := []faultstore.Fault{inject(f[0], "writes hang"), inject(f[1], "writes hang")}
			w := begin(func() error { return do(v) })
			w.waits(t, what)
			f[2].Clear()
			v.Wake(3)
			time.Sleep(time.Second)
			w.waits(t, what)
			for i, h := range held {
				f[i].Remove(h)
			}
			w.ends(t, what, nil)
			joins(t, v)
			must(t, v.Sync())
			c.alike(t, o)
		})
	}
}

// TestResyncEmptyDisk: a node with another store than was recorded has nothing,
// and gets all, though its record says otherwise.
func TestResyncEmptyDisk(t *testing.T) {
	for _, recorded := range []bool{true, false} { // that it is stale
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			diverge(t, c, rand.New(rand.NewPCG(1, 2)), 1<<20)
			c.stores[2] = newNodes(1, 1, nil).stores[0]
			if !recorded {
				c.setStale(nil)
			}
			o := c.options(2, 1<<20)
			v, err := Open(context.Background(), o)
			must(t, err)
			defer v.Close()
			joins(t, v)
			c.alike(t, o)
			if len(c.lacks()) != 0 || c.recorded[3].Identity == 0 {
				t.Errorf("recorded %v, stale %v", c.recorded, c.lacks())
			}
		})
	}
}

// TestResyncInterrupted: whatever fails on the way, on the node or on the copy it
// is brought up to date from, the next attempt ends what that one began.
func TestResyncInterrupted(t *testing.T) {
	for _, fault := range []string{
		"adopts fail with unreachable", "adopts apply and fail with unreachable after 3", "adopts fail with failed after 1",
		"extents fail with unreachable", "reads fail with unreachable", "reads fail with unreachable after 1", "syncs fail with unreachable",
		"creates fail with unreachable", "attaches fail with unreachable", "stats fail with unreachable",
		"adopts tear with unreachable", "adopts fail with incarnation", "stables fail with unreachable",
	} {
		for node := range 3 {
			synctest.Test(t, func(t *testing.T) {
				c := newNodes(3, 3, nil)
				o, _ := diverge(t, c, rand.New(rand.NewPCG(3, uint64(node))), 1<<20)
				f := faulty(c)
				o = c.options(2, 1<<20)
				attached := onServing{o.Records, func(ctx context.Context, found Found) error {
					f[node].Inject(faultstore.MustParse(fault + " once"))
					return o.Records.Serving(ctx, found)
				}}
				opened := o
				opened.Records = attached
				v, err := Open(context.Background(), opened)
				must(t, err)
				defer v.Close()
				joins(t, v)
				f[node].Clear()
				c.alike(t, o)
			})
		}
	}
}

// TestResyncCorruptSource: a page that one peer has corrupt comes from another;
// one that none has sound is not made up, and the copy stays stale.
func TestResyncCorruptSource(t *testing.T) {
	for corrupt := range 3 {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			diverge(t, c, rand.New(rand.NewPCG(7, 7)), 1<<20)
			f := faulty(c)
			o := c.options(2, 1<<20)
			for i := range corrupt {
				inject(f[i], "reads corrupt")
			}
			v, err := Open(context.Background(), o)
			must(t, err)
			defer v.Close()
			if corrupt < 2 {
				joins(t, v)
				f[0].Clear()
				c.alike(t, o)
				return
			}
			time.Sleep(time.Minute)
			if s, why := stateOf(v, 3), v.place.node(3).why; s == inSync || !errors.Is(why, store.ErrCorrupt) {
				t.Errorf("node 3 is %v, %v", s, why)
			}
			f[0].Clear()
			joins(t, v)
		})
	}
}

// TestFlushWhileJoining: a node is synced itself before its record goes, and each
// flush from then on includes it (10/2299).
func TestFlushWhileJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 3, nil)
		diverge(t, c, rand.New(rand.NewPCG(5, 5)), 1<<20)
		f := faulty(c)
		hang := inject(f[2], "syncs hang")
		o := c.options(2, 1<<20)
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		time.Sleep(5 * time.Second)
		if s := stateOf(v, 3); s != joining || len(c.lacks()) == 0 {
			t.Fatalf("node 3 is %v, its record %v", s, c.lacks())
		}
		write(t, v, []byte("x"), 0)
		flush := begin(v.Sync)
		flush.waits(t, "a flush of what a joining node has")
		f[2].Remove(hang)
		flush.ends(t, "the flush", nil)
		joins(t, v)
	})
}

// TestLetGo: a node that says that it stops is recorded before it does, and no
// request waits for that; but not the last copy, nor one that min-copies needs.
func TestLetGo(t *testing.T) {
	for _, test := range []struct {
		copies, min int
		goes        bool
	}{{3, 1, true}, {3, 2, true}, {3, 3, false}, {1, 1, false}} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(test.copies, test.copies, nil)
			f := faulty(c)
			o := c.options(1, 1<<20)
			o.MinCopies = test.min
			v, err := Open(context.Background(), o)
			must(t, err)
			defer v.Close()
			id := ring.NodeID(test.copies)
			began := time.Now()
			v.LetGo(id)
			write(t, v, []byte("x"), 0)
			must(t, v.Sync())
			if s := stateOf(v, id); (s == away) != test.goes || (c.lacks()[id] != nil) != test.goes {
				t.Fatalf("%d copies, min %d: node %v is %v, recorded %v", test.copies, test.min, id, s, c.lacks())
			}
			if test.goes {
				inject(f[id-1], "requests fail with unreachable")
			}
			write(t, v, []byte("y"), 4096)
			must(t, v.Sync())
			if took := time.Since(began); took != 0 {
				t.Errorf("requests took %v", took)
			}
			f[id-1].Clear()
			v.Wake(id)
			joins(t, v)
			c.alike(t, o)
		})
	}
}

// TestLetGoForAWhile: a node that said that it stops answers for as long as that
// takes it. It is not brought back meanwhile, or requests would wait for it after
// all; but it is when it does not stop.
func TestLetGoForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(2, 2, nil)
		v, err := Open(context.Background(), c.options(1, 1<<20))
		must(t, err)
		defer v.Close()
		v.LetGo(2)
		synctest.Wait()
		write(t, v, []byte("x"), 0)
		time.Sleep(stopsFor - time.Second)
		if s := stateOf(v, 2); s != away {
			t.Errorf("it is %v, want away", s)
		}
		time.Sleep(2 * time.Second)
		if s := stateOf(v, 2); s != inSync {
			t.Errorf("later it is %v, want in sync", s)
		}
	})
}

// TestLateClear: while it is not known whether a node's record is gone, the node
// is waited for and not read; if it fails then, it does not go back without a new
// record, though the old one was deleted late (4/39330).
func TestLateClear(t *testing.T) {
	for _, late := range []bool{false, true} { // the transaction is done in the end
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			diverge(t, c, rand.New(rand.NewPCG(9, 9)), 1<<20)
			o := c.options(2, 1<<20)
			c.hookInSync(func() error { return errors.New("no answer") })
			v, err := Open(context.Background(), o)
			must(t, err)
			defer v.Close()
			time.Sleep(time.Minute)
			if s := v.Status(); s.Copies[2].State != "pending" || s.Copies[0].State != "in sync" {
				t.Fatalf("status %+v", s)
			}
			if late {
				c.setStale(nil)
			}
			n := v.place.node(3)
			c.hookStale(func() error { return errors.New("no answer either") })
			v.failed(n, n.view.Load(), store.ErrUnreachable)
			time.Sleep(time.Minute)
			if s := stateOf(v, 3); s != failing {
				t.Fatalf("not recorded, node 3 is %v", s)
			}
			c.hookStale(nil)
			c.hookInSync(nil)
			joins(t, v)
			if len(c.lacks()) != 0 || !allInSync(v) {
				t.Errorf("recorded %v, status %+v", c.lacks(), v.Status())
			}
		})
	}
}

// TestCloseWhileCatching: closing waits for no resync, and ends clean.
func TestCloseWhileCatching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 3, nil)
		diverge(t, c, rand.New(rand.NewPCG(9, 9)), 1<<20)
		f := faulty(c)
		inject(f[2], "syncs hang")
		v, err := Open(context.Background(), c.options(2, 1<<20))
		must(t, err)
		time.Sleep(5 * time.Second)
		if s := stateOf(v, 3); s != joining {
			t.Fatalf("node 3 is %v", s)
		}
		write(t, v, []byte("x"), 0)
		began := time.Now()
		if err := v.Close(); err != nil || time.Since(began) > 0 {
			t.Errorf("closed after %v: %v", time.Since(began), err)
		}
		if c.lacks()[3] == nil {
			t.Errorf("recorded %v", c.lacks())
		}
	})
}

// TestPauses: a node that fails when it is caught up with is tried ever more
// seldom, until it has lasted for a minute; one that does not answer at all is
// called on every 5 s, and one that is said to be there soon.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 3, nil)
		f := faulty(c)
		o := c.options(1, 1<<20)
		var mu sync.Mutex
		var calls []time.Time
		o.Dial = func(_ context.Context, id ring.NodeID) (store.Store, error) {
			mu.Lock()
			defer mu.Unlock()
			if id == 3 {
				calls = append(calls, time.Now())
			}
			return c.stores[id-1], nil
		}
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		pauses := func(what string, then func(), want ...time.Duration) {
			t.Helper()
			goesAway(t, v, 3)
			last := time.Now()
			mu.Lock()
			calls = nil
			mu.Unlock()
			if then != nil {
				then()
			}
			sum := time.Duration(0)
			for _, d := range want {
				sum += d
			}
			time.Sleep(sum)
			synctest.Wait()
			mu.Lock()
			calls := slices.Clone(calls)
			mu.Unlock()
			for i, d := range want {
				if len(calls) <= i || calls[i].Sub(last) != d {
					t.Fatalf("%s: called at %v, want pauses of %v", what, calls, want)
				}
				last = calls[i]
			}
			if len(calls) != len(want) {
				t.Fatalf("%s: called %d times, want pauses of %v", what, len(calls), want)
			}
			f[2].Clear()
			joins(t, v)
		}
		const s = time.Second
		fails := func(text string) func() { return func() { inject(f[2], text) } }
		pauses("no answer", fails("attaches fail with unreachable"), s/2, s, 2*s, 4*s, 5*s, 5*s)
		pauses("it is there", func() { v.Wake(3) }, s)
		pauses("caught up with in vain", fails("syncs fail with unreachable"), s/2, s, 2*s, 4*s, 8*s, 16*s, 30*s, 30*s)
		pauses("it fails at once", nil, 30*s)
		time.Sleep(lasting)
		pauses("it lasted", fails("syncs fail with unreachable"), s/2, s)
	})
}

// TestResyncCrash: the node, the copy that it is brought up to date from, or the
// exporter ends amid a resync, by a signal or with the machine's power; the copies
// are equal in the end, also in what was on no disk yet.
func TestResyncCrash(t *testing.T) {
	for _, who := range []string{"node", "source", "exporter"} {
		for _, power := range []bool{false, true} {
			for after := range 6 {
				synctest.Test(t, func(t *testing.T) {
					c := newNodes(3, 3, rand.New(rand.NewPCG(11, uint64(after))))
					diverge(t, c, rand.New(rand.NewPCG(13, uint64(after))), 1<<20)
					f := faulty(c)
					inject(f[2], fmt.Sprintf("adopts hang after %d", 1+3*after))
					dial := func(_ context.Context, id ring.NodeID) (store.Store, error) { return c.stores[id-1], nil }
					o := c.options(2, 1<<20)
					o.Dial = dial
					v, err := Open(context.Background(), o)
					must(t, err)
					time.Sleep(time.Second)
					if s := stateOf(v, 3); s != catching {
						t.Fatalf("node 3 is %v", s)
					}
					restart := func(i int) {
						d := c.disks[i]
						if d.Kill(); power {
							d.PowerCut()
						}
						c.stores[i] = d.Open()
						f[i].Clear()
					}
					switch who {
					case "node":
						restart(2)
					case "source":
						restart(0)
						f[2].Clear()
					case "exporter":
						v.stop(errGone)
						f[2].Clear()
						v.Close()
						o = c.options(3, 1<<20)
						o.Dial = dial
						v, err = Open(context.Background(), o)
						must(t, err)
					}
					defer func() { v.Close() }()
					write(t, v, []byte("x"), 0)
					joins(t, v)
					must(t, v.Sync())
					c.alike(t, o)
					if len(c.stale) != 0 {
						t.Errorf("recorded stale still: %v", c.stale)
					}
				})
			}
		}
	}
}
