package volume

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"torus/ring"
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
				if since, is := c.stale[2][testHead]; !is || since != mark || len(c.found.Copies) != 2 {
					t.Errorf("%s: recorded %v, want since %v; copies %v", fault, c.stale, mark, c.found.Copies)
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
// that it came from, only a new epoch keeps it out.
func TestAttachAgainAfterAdopt(t *testing.T) {
	for _, test := range []struct {
		fault string
		again bool
	}{
		{"adopts fail with unreachable", true},
		{"adopts fail with failed", false}, // it answered
		{"unstables fail with unreachable", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newNodes(3, 3, nil)
			o := unequal(t, c)
			f := faulty(c)
			o.Stores = c.options(2, 1<<20).Stores
			inject(f[2], test.fault)
			v, err := Open(context.Background(), o)
			if errors.Is(err, ErrAgain) != test.again || !test.again && err != nil {
				t.Errorf("%s: %v", test.fault, err)
			}
			if err == nil {
				if c.stale[3] == nil {
					t.Errorf("%s: recorded %v", test.fault, c.stale)
				}
				v.Close()
			}
		})
	}
}
