package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"torus/ring"
	"torus/store"
	"torus/store/faultstore"
)

// Copies of a target ring. Node n's is ^n; of a volume of one chunk only node 3 has one.

// nodeOf returns the node on which a copy lies.
func nodeOf(id ring.NodeID) ring.NodeID {
	if id>>63 != 0 {
		return ^id
	}
	return id
}

// moving are options as of c.options for a volume each chunk of which has a copy of the
// target as well, on the node behind those of the ring.
func (c *nodes) moving(e store.Epoch, size int64) Options {
	o := c.options(e, size)
	all, places := o.Stores, make([][]ring.NodeID, (size+store.ChunkSize-1)/store.ChunkSize)
	o.Stores, o.Targets = map[ring.NodeID]store.Store{}, map[ring.NodeID]ring.NodeID{}
	for chunk := range places {
		n := ring.NodeID((chunk+c.copies)%len(c.stores) + 1)
		places[chunk] = append(slices.Clone(o.Place(ring.ChunkIndex(chunk))), ^n)
		o.Targets[^n] = n
		for _, id := range places[chunk] {
			o.Stores[id] = all[nodeOf(id)]
		}
	}
	o.Place = func(c ring.ChunkIndex) []ring.NodeID { return places[c] }
	return o
}

// begun makes a volume of two copies on three nodes that has some data, and begins to
// move it: the target's copies have nothing and are recorded so.
func begun(t *testing.T, rng *rand.Rand, size int64) *nodes {
	t.Helper()
	c := newNodes(3, 2, rng)
	v, err := Open(context.Background(), c.options(1, size))
	must(t, err)
	for off := int64(0); off < size; off += store.ChunkSize {
		write(t, v, bytes.Repeat([]byte{byte(1 + off/store.ChunkSize)}, 3*store.PageSize), off)
	}
	must(t, v.Close())
	stale := staleMap{}
	for id := range c.moving(2, size).Targets {
		stale[id] = map[store.LayerID]store.Version{testHead: 0}
	}
	c.setStale(stale)
	return c
}

// inMove runs a test of a volume of one chunk whose target's copy has joined.
func inMove(t *testing.T, do func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := begun(t, nil, store.ChunkSize)
		f := faulty(c)
		v, err := Open(context.Background(), c.moving(2, store.ChunkSize))
		must(t, err)
		defer v.Close()
		joins(t, v)
		do(t, c, v, f)
	})
}

const onThree = ^ring.NodeID(3)

func writePage(v *Volume) *later {
	return begin(func() error { _, err := v.WriteAt(bytes.Repeat([]byte("n"), store.PageSize), 0); return err })
}

// TestTargetJoins: copies of the target get all that is there and all that is written
// meanwhile, over the chunks' borders too, and no hole is said to be settled.
func TestTargetJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 3 * store.ChunkSize
		c := begun(t, nil, size)
		o := c.moving(2, size)
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		p := bytes.Repeat([]byte("over a border"), 2000)
		write(t, v, p, store.ChunkSize-9999)
		joins(t, v)
		write(t, v, p, 2*store.ChunkSize-9999)
		must(t, v.Trim(store.ChunkSize-8192, 16384, false))
		if !bytes.Equal(read(t, v, 2*store.ChunkSize-9999, int64(len(p))), p) {
			t.Error("what was written over a border is not there")
		}
		must(t, v.settleNow())
		c.alike(t, o)
		if len(c.lacks()) > 0 || len(c.recorded) != 6 {
			t.Errorf("recorded %v, stale %v", c.recorded, c.lacks())
		}
		for i, s := range c.stores {
			for l, err := range s.Layers(t.Context()) {
				if must(t, err); l.Stable.Epoch() < 2 || l.Settled.Epoch() >= 2 {
					t.Errorf("node %d was told stable %v, settled %v", i+1, l.Stable, l.Settled)
				}
			}
		}
	})
}

// TestTargetIsWaitedFor: what is written and flushed is on the target's copy as well.
func TestTargetIsWaitedFor(t *testing.T) {
	inMove(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		inject(f[2], "writes,syncs hang")
		w := writePage(v)
		time.Sleep(time.Minute)
		w.waits(t, "a write")
		f[2].Clear()
		synctest.Wait()
		w.ends(t, "the write", nil)
		inject(f[2], "syncs hang")
		flush := begin(v.Sync)
		time.Sleep(time.Minute)
		flush.waits(t, "a flush")
		f[2].Clear()
		synctest.Wait()
		flush.ends(t, "the flush", nil)
	})
}

// TestTargetIsNotRead: what the ring's copies don't answer waits for them.
func TestTargetIsNotRead(t *testing.T) {
	inMove(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		c.hookStale(func() error { return ErrNotDone })
		inject(f[0], "requests fail with unreachable")
		inject(f[1], "requests fail with unreachable")
		r := begin(func() error { _, err := v.ReadAt(make([]byte, 10), 0); return err })
		e := begin(func() error {
			for _, err := range v.Extents(0, store.PageSize) {
				return err
			}
			return nil
		})
		time.Sleep(time.Minute)
		r.waits(t, "a read")
		e.waits(t, "the list of extents")
		f[0].Clear()
		time.Sleep(10 * time.Second)
		r.ends(t, "the read", nil)
		e.ends(t, "the list", nil)
	})
}

// TestTargetIsNoCopy: it is none of min-copies, and not what lets the last copy go.
func TestTargetIsNoCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := begun(t, nil, store.ChunkSize)
		f := faulty(c)
		o := c.moving(2, store.ChunkSize)
		o.MinCopies = 2
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		joins(t, v)
		inject(f[1], "attaches fail with unreachable")
		goesAway(t, v, 2)
		w, flush := writePage(v), begin(v.Sync)
		time.Sleep(time.Minute)
		w.waits(t, "a write")
		flush.waits(t, "a flush")
		if s := v.Status(); s.Waiting == "" {
			t.Errorf("status %+v", s)
		}
		inject(f[0], "requests fail with unreachable")
		n := v.place.node(1)
		v.failed(n, n.view.Load(), store.ErrUnreachable)
		time.Sleep(time.Minute)
		if s := stateOf(v, 1); s != failing || len(c.lacks()[1]) > 0 {
			t.Errorf("the last copy is %v, recorded %v", s, c.lacks())
		}
		f[0].Clear()
		f[1].Clear()
		joins(t, v)
		w.ends(t, "the write", nil)
		flush.ends(t, "the flush", nil)
	})
}

// TestFreshTarget: before its node has dropped what it had from an earlier stay nothing
// is asked of it.
func TestFreshTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := begun(t, nil, store.ChunkSize)
		c.fresh = []ring.NodeID{onThree}
		v, err := Open(context.Background(), c.moving(2, store.ChunkSize))
		must(t, err)
		defer v.Close()
		writePage(v).ends(t, "a write", nil)
		time.Sleep(time.Minute)
		if s, fences := stateOf(v, onThree), c.disks[2].Fenced(); s != away || fences[0].Epoch != 1 {
			t.Errorf("it is %v, node 3 knows %v", s, fences)
		}
		c.mu.Lock()
		c.fresh = nil
		c.mu.Unlock()
		v.Wake(onThree)
		joins(t, v)
		asked := c.asked
		goesAway(t, v, onThree)
		if joins(t, v); c.asked != asked {
			t.Errorf("asked %d times more whether it may join", c.asked-asked)
		}
	})
}

// TestTargetFails: its failure is recorded, though it is the only one of its kind, and
// in the words that say which copy it is; that it lost its power ends nothing.
func TestTargetFails(t *testing.T) {
	for _, fault := range []string{"writes fail with unreachable", "writes fail with no-space", "writes fail with incarnation"} {
		inMove(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
			inject(f[2], fault)
			said := make(chan struct{})
			c.hookStale(func() error { <-said; return nil })
			w := writePage(v)
			w.waits(t, fault)
			if s := v.Status(); !strings.Contains(s.Waiting, ring.NodeID(3).String()+" (of the target)") {
				t.Errorf("%s: status %+v", fault, s)
			}
			close(said)
			synctest.Wait()
			w.ends(t, fault, nil)
			if len(c.lacks()[onThree]) == 0 || len(c.lacks()) != 1 {
				t.Errorf("%s: recorded %v", fault, c.lacks())
			}
			f[2].Clear()
			joins(t, v)
			c.alike(t, c.moving(2, store.ChunkSize))
		})
	}
}

// TestBothFail: a node that has copies of the ring and of the target fails in both.
func TestBothFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 3 * store.ChunkSize
		c := begun(t, nil, size)
		f := faulty(c)
		o := c.moving(2, size)
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		joins(t, v)
		inject(f[0], "requests fail with unreachable")
		for chunk := range int64(3) {
			write(t, v, bytes.Repeat([]byte("w"), 12345), chunk*store.ChunkSize+777)
		}
		if lacks := c.lacks(); len(lacks) != 2 || len(lacks[1]) == 0 || len(lacks[^ring.NodeID(1)]) == 0 {
			t.Errorf("recorded %v", lacks)
		}
		f[0].Clear()
		joins(t, v)
		c.alike(t, o)
	})
}

// TestTargetRefused: a write that the ring's copies refuse is not refused before it is
// recorded that the target's may have it, and is nowhere in the end.
func TestTargetRefused(t *testing.T) {
	inMove(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
		was := read(t, v, 0, store.PageSize)
		inject(f[0], "writes fail with no-space")
		inject(f[1], "writes fail with no-space")
		said := make(chan struct{})
		c.hookStale(func() error { <-said; return nil })
		w := writePage(v)
		time.Sleep(time.Second)
		w.waits(t, "the write")
		close(said)
		time.Sleep(time.Second)
		w.ends(t, "the write", store.ErrNoSpace)
		if s := [2]state{stateOf(v, 1), stateOf(v, 2)}; s != [2]state{inSync, inSync} {
			t.Errorf("the ring's copies are %v", s)
		}
		f[0].Clear()
		f[1].Clear()
		joins(t, v)
		if !bytes.Equal(read(t, v, 0, store.PageSize), was) {
			t.Error("a write that was refused is there")
		}
		c.alike(t, c.moving(2, store.ChunkSize))
	})
}

// TestTargetAtAttach: a copy of the target in sync is made equal to the others, or
// recorded stale at once when it can't be reached; a stale one is left alone.
func TestTargetAtAttach(t *testing.T) {
	for _, how := range []string{"in sync", "in sync, and ahead", "stale", "unreachable", "fails amid"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := begun(t, nil, store.ChunkSize)
				v, err := Open(context.Background(), c.moving(2, store.ChunkSize))
				must(t, err)
				joins(t, v)
				last := v.flight.given()
				v.stop(errGone)
				v.Close()
				have := c.stores[0]
				if how == "in sync, and ahead" {
					have = c.stores[2]
				}
				r, err := have.Attach(t.Context(), testVolume, 2)
				must(t, err)
				must(t, r.Write(t.Context(), testHead, 0, make([]byte, store.PageSize), last+1, 0))
				f := faulty(c)
				switch how {
				case "stale":
					c.setStale(staleMap{onThree: {testHead: last}})
					inject(f[2], "attaches fail with failed")
				case "unreachable":
					inject(f[2], "attaches fail with unreachable")
				case "fails amid":
					inject(f[2], "adopts fail with unreachable")
				}
				began := time.Now()
				o := c.moving(3, store.ChunkSize)
				v, err = Open(context.Background(), o)
				must(t, err)
				defer v.Close()
				if took := time.Since(began); took > time.Second {
					t.Errorf("opened after %v", took)
				}
				if stale := how == "unreachable" || how == "fails amid"; stale != (len(c.found.Stale) == 1 && c.found.Stale[0].Node == onThree) {
					t.Errorf("found stale: %v", c.found.Stale)
				}
				for id := range c.found.Copies {
					if in := strings.HasPrefix(how, "in sync"); !in && id == onThree {
						t.Errorf("found among the copies: %v", id)
					}
				}
				f[2].Clear()
				joins(t, v)
				c.equal(t, o)
				if got := read(t, v, 0, 1); got[0] != 0 {
					t.Errorf("read %q", got)
				}
			})
		})
	}
}

// TestTargetAndPowerCut: after a power cut of everything the volume has all that was
// flushed, on the target's copy too, which may be the one that has most.
func TestTargetAndPowerCut(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			const size = 3 * store.ChunkSize
			c := begun(t, rng, size)
			v, err := Open(context.Background(), c.moving(2, size))
			must(t, err)
			joins(t, v)
			flushed := bytes.Repeat([]byte("flushed"), 3000)
			write(t, v, flushed, store.ChunkSize-5000)
			must(t, v.Sync())
			for range 10 {
				write(t, v, bytes.Repeat([]byte{byte(rng.Int())}, store.PageSize), rng.Int64N(100)*store.PageSize)
			}
			v.stop(errGone)
			v.Close()
			for _, d := range c.disks {
				d.PowerCut()
			}
			c.start()
			o := c.moving(3, size)
			v, err = Open(context.Background(), o)
			must(t, err)
			defer v.Close()
			if !c.found.UnflushedGone || len(c.found.Stale) > 0 || len(c.found.Copies) != 6 {
				t.Errorf("seed %#x: found %+v", seed, c.found)
			}
			c.equal(t, o)
			if !bytes.Equal(read(t, v, store.ChunkSize-5000, int64(len(flushed))), flushed) {
				t.Errorf("seed %#x: what was flushed is gone", seed)
			}
		})
	}
}

// TestMoved: where the volume's ring is another by now a copy that fails can't be
// recorded; requests wait for it, until it answers, or the volume is closed: soon then.
func TestMoved(t *testing.T) {
	for _, id := range []ring.NodeID{1, onThree} {
		for _, how := range []string{"answers", "closed", "closed before"} {
			t.Run(fmt.Sprint(nodeOf(id), " ", how), func(t *testing.T) {
				inMove(t, func(t *testing.T, c *nodes, v *Volume, f []*faultstore.Store) {
					say := make(chan struct{})
					c.hookStale(func() error { <-say; return ErrMoved })
					inject(f[nodeOf(id)-1], "writes,attaches fail with unreachable")
					w := writePage(v)
					if how != "closed before" {
						close(say)
						time.Sleep(time.Minute)
					}
					w.waits(t, "a write")
					if s := stateOf(v, id); s != failing || len(c.lacks()) > 0 {
						t.Errorf("it is %v, recorded %v", s, c.lacks())
					}
					if how == "answers" {
						f[nodeOf(id)-1].Clear()
						time.Sleep(maxProbe)
						w.ends(t, "the write", nil)
						must(t, v.Close())
						return
					}
					end := begin(v.Close)
					if how == "closed before" {
						close(say)
					}
					time.Sleep(closePatience / 2)
					end.ends(t, "Close", ErrBroken)
					w.ends(t, "the write", ErrBroken)
				})
			})
		}
	}
}

// TestMovedJoining: a copy that can't be recorded in sync, as the volume has moved, is
// none; the volume goes on, and ends clean.
func TestMovedJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := begun(t, nil, store.ChunkSize)
		c.hookInSync(func() error { return ErrMoved })
		v, err := Open(context.Background(), c.moving(2, store.ChunkSize))
		must(t, err)
		catches(t, v, onThree, joining)
		time.Sleep(time.Minute)
		writePage(v).ends(t, "a write", nil)
		if s := stateOf(v, onThree); s != joining || len(c.lacks()[onThree]) == 0 {
			t.Errorf("it is %v, recorded %v", s, c.lacks())
		}
		must(t, v.Close())
	})
}

// TestMovedAtAttach: a volume that moved while it was opened is to be opened again.
func TestMovedAtAttach(t *testing.T) {
	c := begun(t, nil, store.ChunkSize)
	c.hookServing = func(Found) error { return ErrMoved }
	if _, err := Open(t.Context(), c.moving(2, store.ChunkSize)); !errors.Is(err, ErrAgain) || !errors.Is(err, ErrMoved) {
		t.Errorf("opened: %v", err)
	}
}

// TestTargetOptions: what can't be is refused.
func TestTargetOptions(t *testing.T) {
	for what, spoil := range map[string]func(o *Options){
		"no records": func(o *Options) { o.Records = nil },
		"a target's first": func(o *Options) {
			o.Place = func(ring.ChunkIndex) []ring.NodeID { return []ring.NodeID{1, onThree, 2} }
		},
		"too few of the ring": func(o *Options) { o.MinCopies = 3 },
		"fewer in a chunk": func(o *Options) {
			o.MinCopies, o.Place = 2, func(ring.ChunkIndex) []ring.NodeID { return []ring.NodeID{1, onThree} }
		},
	} {
		c := begun(t, nil, store.ChunkSize)
		o := c.moving(2, store.ChunkSize)
		spoil(&o)
		if v, err := Open(t.Context(), o); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: opened, %v", what, err)
			if err == nil {
				v.Close()
			}
		}
	}
}
