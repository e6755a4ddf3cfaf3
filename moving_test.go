package main_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// add has one more node join.
func (c *testCluster) add() {
	c.t.Helper()
	i := len(c.nodes) + 1
	c.dirs = append(c.dirs, filepath.Join(filepath.Dir(c.dirs[0]), fmt.Sprint("n", i)))
	args := []string{"join", c.api(), "--data-dir", c.dirs[i-1], "--name", fmt.Sprint("n", i), "--host", fmt.Sprint("h", i), "--port", "0"}
	c.nodes = append(c.nodes, startNode(c.t, append(args, c.flags...)...))
}

// movedNode is what "node list" says of a node.
type movedNode struct {
	Name, State string
	Volumes     []string
}

func (c *testCluster) nodeViews() map[string]movedNode {
	c.t.Helper()
	var all []movedNode
	if err := json.Unmarshal([]byte(c.torus("node", "list", "-o", "json")), &all); err != nil {
		c.t.Fatal(err)
	}
	byName := map[string]movedNode{}
	for _, n := range all {
		byName[n.Name] = n
	}
	return byName
}

// awaitMoved waits until vol1 lies on the named nodes, by a ring that is not to be
// followed by another.
func (c *testCluster) awaitMoved(names ...string) {
	c.t.Helper()
	waitFor(c.t, fmt.Sprintf("vol1 to lie on %v", names), func() bool {
		var v struct{ Moving *struct{} }
		if err := json.Unmarshal([]byte(c.torus("volume", "show", "vol1", "-o", "json")), &v); err != nil {
			c.t.Fatal(err)
		}
		on := 0
		views := c.nodeViews()
		for _, n := range views {
			on += len(n.Volumes)
		}
		for _, name := range names {
			if len(views[name].Volumes) != 1 {
				return false
			}
		}
		return v.Moving == nil && on == len(names)
	})
}

// awaitLive waits until the nodes have so many bytes together, by their own account: the
// records say how many there were seconds ago.
func (c *testCluster) awaitLive(t *testing.T, want int64) {
	t.Helper()
	waitFor(t, fmt.Sprintf("the nodes to have %d bytes", want), func() bool {
		live := int64(0)
		for _, n := range c.nodes {
			live += n.metric(t, "store_live_bytes")
		}
		return live == want
	})
}

// TestMoving: a node that joins gets its part of a volume that clients write to, and one
// that is drained gives up all it has; the clients notice a pause at most, and each chunk
// lies on as many nodes as it should, and on no other.
func TestMoving(t *testing.T) {
	const size = 64 << 20
	c := startCluster(t, 3)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", fmt.Sprint(size), "--replicas", "2")
	p := c.serve()
	_, addr := p.served()
	begun := startLoad(t, addr, size)
	begun.another()
	begun.end()
	l := startLoad(t, addr, size/4)
	c.add()
	c.awaitMoved("n1", "n2", "n3", "n4")
	l.another()
	t.Logf("joined: %+v", c.nodeViews())
	if out := c.torus("node", "drain", "n2"); !strings.Contains(out, "Node n2 is drained") {
		t.Errorf("drain: %s", out)
	}
	c.awaitMoved("n1", "n3", "n4")
	l.another()
	t.Logf("the longest request took %v", l.end())
	if l.longest > maxStall {
		t.Errorf("the longest request took %v, none should take %v", l.longest, maxStall)
	}
	waitFor(t, "n2 to hold nothing", func() bool { return c.nodes[1].metric(t, "store_live_bytes") == 0 })
	if out := c.torus("node", "list"); !strings.Contains(out, "draining, can be removed") {
		t.Errorf("node list: %s", out)
	}
	want := begun.content(size)
	copy(want, l.content(size/4))
	c.torus("node", "undrain", "n2")
	c.awaitMoved("n1", "n2", "n3", "n4")
	p.stop()
	c.awaitLive(t, 2*size)
	for _, n := range c.nodes {
		n.stop()
	}
	c.equalCopies(t, want, 2)
}

// TestAwayTooLong: what a node has that stays away is rebuilt on the others, and it gets
// its part again when it is back. Amid that, a node and the exporter are killed.
func TestAwayTooLong(t *testing.T) {
	if !long() {
		t.Skip("moves a volume twice; TORUS_LONG_TESTS=1 runs it")
	}
	const size = 64 << 20
	c := startCluster(t, 4)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", fmt.Sprint(size), "--replicas", "3")
	p := c.serve()
	_, addr := p.served()
	begun := startLoad(t, addr, size)
	begun.another()
	begun.end()
	c.torus("node", "set", "n4", "--away-after", "3s")
	l := startLoad(t, addr, size/4)
	c.nodes[3].kill()
	c.awaitMoved("n1", "n2", "n3")
	if out := c.torus("node", "list"); !strings.Contains(out, "not answering, can be removed") {
		t.Errorf("node list: %s", out)
	}
	l.another()
	t.Logf("the longest request took %v", l.end())
	if l.longest > maxStall {
		t.Errorf("the longest request took %v, none should take %v", l.longest, maxStall)
	}
	want := begun.content(size)
	copy(want, l.content(size/4))

	c.restart(3)
	waitFor(t, "vol1 to move again", func() bool { return len(c.nodeViews()["n4"].Volumes) == 1 })
	p.kill()
	c.nodes[1].kill()
	c.restart(1)
	c.awaitMoved("n1", "n2", "n3", "n4")
	c.awaitStale(0)
	c.awaitLive(t, 3*size)
	for _, n := range c.nodes {
		n.stop()
	}
	c.equalCopies(t, want, 3)
}

// TestGoneForGood: of a volume whose last copy in sync is lost with its node, what other
// copies have is there again when an operator accepts that.
func TestGoneForGood(t *testing.T) {
	if !long() {
		t.Skip("moves a volume; TORUS_LONG_TESTS=1 runs it")
	}
	const size = 16 << 20
	c := startCluster(t, 3)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", fmt.Sprint(size), "--replicas", "2", "--min-copies", "1")
	p := c.serve()
	_, addr := p.served()
	first := startLoad(t, addr, size)
	first.another()
	first.end()
	c.nodes[1].kill()
	l := startLoad(t, addr, size)
	c.awaitStale(1)
	l.another()
	l.end()
	p.stop()
	c.nodes[2].kill()
	c.restart(1)
	waitFor(t, "n3 to be missed", func() bool { return strings.Contains(c.torus("node", "list"), "not answering") })
	out := refused(t, 4, torus(t), "node", "remove", "n3", "--cluster", c.api())
	if !strings.Contains(out, "the last one in sync of volume vol1") {
		t.Errorf("removing n3: %s", out)
	}
	c.torus("node", "remove", "n3", "--data-loss-accepted")
	c.awaitMoved("n1", "n2")
	if nodes := c.nodeViews(); len(nodes) != 2 {
		t.Errorf("left: %+v", nodes)
	}
	p = c.serve()
	p.stop()
	scrubbed := c.torus("scrub", "vol1")
	if !strings.Contains(scrubbed, "vol1") {
		t.Errorf("scrub: %s", scrubbed)
	}
}
