package volume

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"torus/ring"
	"torus/store"
)

// TestAttachWithoutNode: a node that no chunk needs is waited for as long as it
// may be starting, and until the last holder can't read from it any more; then it
// is recorded stale since what all copies had durable. A node that is needed is
// waited for.
func TestAttachWithoutNode(t *testing.T) {
	for _, fault := range []string{"attaches fail with unreachable", "attaches hang", "creates fail", "syncs fail", "unstables fail", "lists fail"} {
		for _, held := range []time.Duration{0, 20 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				c := newNodes(3, 3, nil)
				v, err := Open(context.Background(), c.options(1, 1<<20))
				must(t, err)
				write(t, v, []byte("x"), 0)
				must(t, v.settleNow())
				mark := v.flight.given()
				must(t, v.Close())
				f := faulty(c)
				hang := inject(f[1], fault)
				o := c.options(2, 1<<20)
				began := time.Now()
				o.HeldUntil = began.Add(held)
				v, err = Open(context.Background(), o)
				must(t, err)
				defer v.Close()
				if took := time.Since(began); took < max(held, attachGrace) || took > max(held, attachGrace)+10*time.Second {
					t.Errorf("%s, held %v: opened after %v", fault, held, took)
				}
				if since, is := c.lacks()[2][testHead]; !is || since != mark || len(c.found.Copies) != 2 {
					t.Errorf("%s: recorded %v, want since %v; copies %v", fault, c.lacks(), mark, c.found.Copies)
				}
				f[1].Remove(hang)
				joins(t, v)
			})
		}
	}
}

// TestAttachWaitsForNeeded: the only copy in sync, one that may be the only one
// to have kept a write, and any at all where nothing can be recorded.
func TestAttachWaitsForNeeded(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(c *nodes, o *Options)
	}{
		{"the other is stale", func(c *nodes, o *Options) { o.Stale = []Stale{{Node: 1, Layer: testHead}} }},
		{"the other is reborn", func(c *nodes, o *Options) {
			o.Recorded = map[ring.NodeID]Copy{1: {o.Recorded[1].Identity, o.Recorded[1].Incarnation + 1}, 2: o.Recorded[2]}
		}},
		{"no records", func(c *nodes, o *Options) { o.Records = nil }},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(2, 2, nil)
			v, err := Open(context.Background(), c.options(1, 1<<20))
			must(t, err)
			must(t, v.Close())
			f := faulty(c)
			inject(f[1], "attaches fail with unreachable")
			o := c.options(2, 1<<20)
			test.prepare(c, &o)
			opening := begin(func() error {
				v, err := Open(context.Background(), o)
				if err == nil {
					v.Close()
				}
				return err
			})
			time.Sleep(time.Hour)
			opening.waits(t, test.name+": the opening")
			f[1].Clear()
			time.Sleep(time.Minute)
			opening.ends(t, test.name+": the opening", nil)
		})
	}
}

// TestAttachAgainAfterAdopt: where an Adopt may still arrive, and the node is lost
// that it came from, only a new epoch keeps it out. A node that answers all but
// Adopts is left out, or no epoch would do.
func TestAttachAgainAfterAdopt(t *testing.T) {
	for _, test := range []struct {
		fault, peer string // of node 3, which lacks pages, and of node 1, which has them
		lost        ring.NodeID
		again       bool
	}{
		{"adopts fail with unreachable", "", 3, false},
		{"adopts hang", "", 3, false},
		{"adopts fail with unreachable once", "attaches fail with unreachable after 1", 1, true},
		{"adopts fail with failed once", "attaches fail with unreachable after 1", 1, false}, // it answered
		{"unstables fail with unreachable", "", 3, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			o := unequal(t, c)
			f := faulty(c)
			for i, s := range c.stores {
				c.stores[i] = answersInTime{s}
				o.Stores[ring.NodeID(i+1)] = c.stores[i]
			}
			inject(f[2], test.fault)
			if test.peer != "" {
				inject(f[0], test.peer)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			v, err := Open(ctx, o)
			if errors.Is(err, ErrAgain) != test.again || !test.again && err != nil {
				t.Errorf("%s, %s: %v", test.fault, test.peer, err)
			}
			if err == nil {
				if c.lacks()[test.lost] == nil || len(c.lacks()) != 1 {
					t.Errorf("%s, %s: recorded %v", test.fault, test.peer, c.lacks())
				}
				f[2].Clear()
				v.Close()
			}
		})
	}
}

// answersInTime gives up on an Adopt after a while, as a store on another node does.
type answersInTime struct{ store.Store }

func (s answersInTime) Attach(ctx context.Context, vol store.VolumeID, e store.Epoch) (store.Replica, error) {
	r, err := s.Store.Attach(ctx, vol, e)
	return adoptsInTime{r}, err
}

type adoptsInTime struct{ store.Replica }

func (r adoptsInTime) Adopt(ctx context.Context, layer store.LayerID, e store.Extent, p []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err := r.Replica.Adopt(ctx, layer, e, p)
	if ctx.Err() != nil {
		return store.ErrUnreachable
	}
	return err
}

// TestSameAsBefore: what a late Adopt brings must be what the members bring to
// all, so it is on one of them still, and nobody came who may have more.
func TestSameAsBefore(t *testing.T) {
	is := func(id ring.NodeID, i store.Incarnation) *member {
		return &member{node: &node{id: id}, attempt: &attempt{copy: Copy{Incarnation: i}}}
	}
	a := &attaching{late: map[ring.NodeID]Copy{1: {Incarnation: 1}, 2: {Incarnation: 1}, 3: {Incarnation: 1}}, lateFrom: [][]ring.NodeID{{1, 2}, {2}}}
	for _, test := range []struct {
		name  string
		now   []*member
		again bool
	}{
		{"the same", []*member{is(1, 1), is(2, 1), is(3, 1)}, false},
		{"without who did not answer", []*member{is(1, 1), is(2, 1)}, false},
		{"one that had all is left", []*member{is(2, 1)}, false},
		{"nobody is left that had the second", []*member{is(1, 1), is(3, 1)}, true},
		{"one was started anew", []*member{is(1, 1), is(2, 2), is(3, 1)}, true},
		{"one came", []*member{is(1, 1), is(2, 1), is(4, 1)}, true},
	} {
		if err := a.sameAsBefore(test.now); errors.Is(err, ErrAgain) != test.again {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if err := new(attaching).sameAsBefore([]*member{is(1, 1)}); err != nil {
		t.Errorf("nothing is late: %v", err)
	}
}
