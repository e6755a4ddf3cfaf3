package volume

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
)

// Schedules that lead to the spot where a rule counts that the simulation's seeds
// meet seldom or never. Each was seen to fail without the rule that it names.

// TestResyncWithoutPeer: a node is not taken back while the only copy in sync of
// one of its chunks does not answer: that nobody lists anything there does not
// say that nothing is lacking (N6; found by seed 198).
func TestResyncWithoutPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newNodes(3, 2, nil)
		f := faulty(c)
		o := c.options(1, 3*store.ChunkSize)
		v, err := Open(context.Background(), o)
		must(t, err)
		defer v.Close()
		goesAway(t, v, 3)
		write(t, v, []byte("node 2 alone has it"), store.ChunkSize)
		inject(f[1], "extents,reads fail with unreachable")
		time.Sleep(time.Minute)
		if s := stateOf(v, 3); s == inSync || len(c.lacks()[3]) == 0 {
			t.Errorf("node 3 is %v, its record %v", s, c.lacks()[3])
		}
		f[1].Clear()
		joins(t, v)
		c.alike(t, o)
	})
}
