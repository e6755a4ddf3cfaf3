package main_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"torus/store"
)

// maxPlanned is how much longer a request may take when a node is stopped than
// before.
const maxPlanned = 500 * time.Millisecond

// TestPlannedStop stops a node with SIGTERM, under load: it hands over, so that no
// request waits for it; when it is back it gets what has changed, and no more.
func TestPlannedStop(t *testing.T) {
	for _, replicas := range []int{3, 2} {
		t.Run(fmt.Sprint(replicas, " copies"), func(t *testing.T) {
			testHandover(t, replicas, func(c *testCluster) { c.nodes[2].stop() })
		})
	}
}

// TestDrainStop is the same where the command asks for it.
func TestDrainStop(t *testing.T) {
	if !long() {
		t.Skip("as TestPlannedStop, by a command: TORUS_LONG_TESTS=1 runs it")
	}
	testHandover(t, 3, func(c *testCluster) {
		if out := c.torus("node", "drain", "n3", "--stop"); !strings.HasPrefix(out, "Node n3 has stopped.") {
			t.Errorf("it says %q", out)
		}
		c.nodes[2].ends()
	})
}

func testHandover(t *testing.T, replicas int, stop func(c *testCluster)) {
	const size = 64 << 20
	c := startCluster(t, 3)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", fmt.Sprint(size), "--replicas", fmt.Sprint(replicas))
	p := c.serve()
	_, addr := p.served()
	begun := startLoad(t, addr, size) // so that there is much that need not be copied
	begun.another()
	begun.end()
	quiet := startLoad(t, addr, size/4)
	quiet.another()
	usual := quiet.end()
	l := startLoad(t, addr, size/4)
	l.another()
	before := time.Now()
	stop(c)
	t.Logf("it stopped within %v", time.Since(before))
	if stale := c.staleCopies(); len(stale) != 1 || stale[0].Why != "it said that it stops" {
		t.Errorf("recorded stale: %+v", stale)
	}
	l.another()
	t.Logf("the longest request took %v, %v before", l.end(), usual)
	if most := usual + maxPlanned; l.longest > most {
		t.Errorf("the longest request took %v, none should take %v", l.longest, most)
	}
	want := begun.content(size)
	copy(want, l.content(size/4))
	c.backInSync(t, 2, size/4)
	p.stop()
	for _, n := range c.nodes {
		n.stop()
	}
	c.equalCopies(t, want, replicas)
}

// backInSync runs a node again, which gets about what has changed.
func (c *testCluster) backInSync(t *testing.T, i int, changed int64) {
	t.Helper()
	c.restart(i)
	c.awaitStale(0)
	copied := c.nodes[i].metric(t, "store_disk_written_bytes_total") - c.nodes[i].metric(t, "store_collected_bytes_total")
	t.Logf("%d MiB changed, %d MiB were copied", changed>>20, copied>>20)
	if copied > changed*12/10 || copied == 0 {
		t.Errorf("%d bytes were copied, want at most %d", copied, changed*12/10)
	}
}

// TestDrainRefused: a node that an attached volume can't do without is not stopped
// by the command; SIGTERM stops it all the same, and at once, as waiting would be
// in vain.
func TestDrainRefused(t *testing.T) {
	c := startCluster(t, 2)
	c.torus("volume", "create", "vol1", fmt.Sprint(store.ChunkSize), "--replicas", "2", "--min-copies", "2")
	p := c.serve()
	drain := func(code int, node, want string) {
		t.Helper()
		out := refused(t, code, torus(t), "node", "drain", node, "--stop", "--cluster", c.api())
		if out != "torus: node "+want+"\n" {
			t.Errorf("it says %q, want %q", out, want)
		}
	}
	drain(4, "n2", `n2: busy: requests to vol1 would wait until it is back: too few other copies are in sync: `+
		`start the nodes that lack writes, or detach the volume`)
	drain(3, "n9", `n9: not found: "torus node list" names those there are`)
	begun := time.Now()
	c.nodes[1].stop()
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("it stopped after %v", took)
	}
	if log := c.nodes[1].log.String(); !strings.Contains(log, "requests will wait until this node is back") || !strings.Contains(log, "vol1") {
		t.Errorf("its log: %s", log)
	}
	drain(4, "n2", "n2: busy: it does not answer, and may have stopped already")
	c.restart(1)
	p.stop()
}

// TestRepairUnattached: of a volume that nobody has attached a node's copy is
// brought up to date when the node is back, and a volume that its exporter did not
// close is, without anybody doing anything.
func TestRepairUnattached(t *testing.T) {
	if !long() {
		t.Skip("waits for leases to lapse; TORUS_LONG_TESTS=1 runs it")
	}
	const size = 8 << 20
	c := startCluster(t, 3)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", fmt.Sprint(size), "--replicas", "3")
	p := c.serve()
	_, addr := p.served()
	c.nodes[2].kill()
	l := startLoad(t, addr, size)
	l.another()
	l.end()
	c.awaitStale(1)
	p.kill()
	c.restart(2)
	c.awaitStale(0)
	waitFor(t, "the volume to be given up, clean", func() bool { return c.epoch() == 0 && c.clean() })
	for _, n := range c.nodes {
		n.stop()
	}
	c.equalCopies(t, l.content(size), 3)
}

// clean reports whether vol1 was closed well.
func (c *testCluster) clean() bool {
	c.t.Helper()
	var vol struct{ Clean bool }
	if err := json.Unmarshal([]byte(c.torus("volume", "show", "vol1", "-o", "json")), &vol); err != nil {
		c.t.Fatal(err)
	}
	return vol.Clean
}
