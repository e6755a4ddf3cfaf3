package main_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"torus/node"
	"torus/store"
	"torus/store/segment"
)

// recoverSize is that of the volumes of this file's test.
const recoverSize = 8 << 20

// writeAll writes blocks of a volume and flushes them.
func writeAll(t *testing.T, addr, volume string, number uint64, want []byte, blocks ...int) {
	t.Helper()
	cl, err := dialNBD(addr, volume)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.close()
	for _, block := range blocks {
		b := want[block*awayBlock:][:awayBlock]
		fillBlock(b, block, number)
		if err := <-cl.write(b, int64(block)*awayBlock).done; err != nil {
			t.Fatal(err)
		}
	}
	if err := <-cl.flush().done; err != nil {
		t.Fatal(err)
	}
}

// wantAll fails unless a volume reads as want.
func wantAll(t *testing.T, addr, volume string, want []byte) {
	t.Helper()
	cl, err := dialNBD(addr, volume)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.close()
	for block := range len(want) / awayBlock {
		got := make([]byte, awayBlock)
		if err := <-cl.read(got, int64(block)*awayBlock).done; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[block*awayBlock:][:awayBlock]) {
			t.Errorf("%s: block %d begins with %x, want %x", volume, block, got[:16], want[block*awayBlock:][:16])
		}
	}
}

// layers returns the layers that a node has, in order.
func (c *testCluster) layers(i int) []store.LayerID {
	c.t.Helper()
	all, err := node.AskLayers(context.Background(), c.nodes[i].running.API)
	if err != nil {
		c.t.Fatal(err)
	}
	var ids []store.LayerID
	for id := range all {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// added returns the one layer in now and not in before.
func added(t *testing.T, before, now []store.LayerID) store.LayerID {
	t.Helper()
	now = slices.DeleteFunc(slices.Clone(now), func(id store.LayerID) bool { return slices.Contains(before, id) })
	if len(now) != 1 {
		t.Fatalf("layers %v were added, want one", now)
	}
	return now[0]
}

// export serves volumes from a process of its own, and says where.
func (c *testCluster) export(volumes ...string) (p *process, addr string) {
	c.t.Helper()
	p = startNode(c.t, append(append([]string{"nbd", "serve"}, volumes...), "--listen", "127.0.0.1:0", "--cluster", c.api(), "--log-level", "warn")...)
	addr, _, _ = strings.Cut(strings.TrimPrefix(p.running.Volumes[0].URIs[0], "nbd://"), "/")
	return p, addr
}

// loseRecords removes the etcd data of a stopped node.
func (c *testCluster) loseRecords(i int) {
	c.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(c.dirs[i], "etcd*"))
	if err != nil || len(dirs) == 0 {
		c.t.Fatalf("node %d has no records to lose: %v", i+1, err)
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			c.t.Fatal(err)
		}
	}
}

// rejoin has stopped nodes follow a recovery.
func (c *testCluster) rejoin(nodes ...int) {
	c.t.Helper()
	var wg sync.WaitGroup
	for _, i := range nodes {
		wg.Go(func() {
			c.nodes[i] = startNode(c.t, "join", c.api(), "--data-dir", c.dirs[i], "--log-level", "warn")
		})
	}
	wg.Wait()
}

// TestRecover: all three nodes lose etcd's data and keep their blocks. A snapshot that
// is older than the newest volume, the newest epochs and the newest stale record brings
// back every volume that it knows, whole; what it doesn't know is listed and kept; and
// nothing is removed before the operator has confirmed (I8). Later two nodes lose the
// records again, and the third brings them back.
func TestRecover(t *testing.T) {
	c := startCluster(t, 3)
	c.awaitVoters(3)
	create := func(name string) {
		t.Helper()
		c.torus("volume", "create", name, fmt.Sprint(recoverSize), "--replicas", "3")
	}
	create("vol1")
	create("old")
	want, old := make([]byte, recoverSize), make([]byte, recoverSize)
	p, addr := c.export("vol1")
	writeAll(t, addr, "vol1", 1, want, 0, 1, 2, 3)
	p.stop()
	head := added(t, nil, c.layers(0))
	p, addr = c.export("old")
	writeAll(t, addr, "old", 2, old, 5)
	p.stop()
	oldHead := added(t, []store.LayerID{head}, c.layers(0))
	saved := filepath.Join(t.TempDir(), "saved.db")
	c.torus("metadata", "save", saved)

	// What the snapshot does not know: a volume, attachments, a node that is stale.
	create("later")
	p, addr = c.export("vol1", "later")
	later := make([]byte, recoverSize)
	writeAll(t, addr, "later", 3, later, 0, 7)
	laterHead := added(t, []store.LayerID{head, oldHead}, c.layers(0))
	writeAll(t, addr, "vol1", 4, want, 1, 4)
	c.nodes[2].kill()
	writeAll(t, addr, "vol1", 5, want, 2, 4, 9)
	c.awaitStale(1)
	p.kill()
	c.killAll()
	for i := range c.nodes {
		c.loseRecords(i)
	}

	dir := c.dirs[0]
	out := refused(t, 3, torus(t), "recover", "--data-dir", dir)
	if !strings.Contains(out, "there is no etcd member") || !strings.Contains(out, "--from") {
		t.Errorf("without records and without a snapshot it says %s", out)
	}
	cut := filepath.Join(t.TempDir(), "cut.db")
	if b, err := os.ReadFile(saved); err != nil || os.WriteFile(cut, b[:len(b)/2], 0o600) != nil {
		t.Fatal(err)
	}
	if out := refused(t, 1, torus(t), "recover", "--data-dir", dir, "--from", cut); !strings.Contains(out, cut) {
		t.Errorf("with half a snapshot it says %s", out)
	}
	command(t, torus(t), "recover", "--data-dir", dir, "--from", saved)
	c.restart(0)
	if out := refused(t, 4, torus(t), "start", "--data-dir", c.dirs[1]); !strings.Contains(out, "torus join HOST:PORT --data-dir "+c.dirs[1]) {
		t.Errorf("a node that was not told to follow says %s", out)
	}
	c.rejoin(1, 2)
	c.awaitVoters(3)

	// Node 3 is in sync, by the snapshot: it has not what was written without it.
	p, addr = c.export("vol1", "old")
	wantAll(t, addr, "vol1", want)
	wantAll(t, addr, "old", old)
	writeAll(t, addr, "vol1", 6, want, 9, 11)
	p.stop()
	out = c.torus("metadata", "layers")
	for i := range c.nodes {
		if line := fmt.Sprintf("%v  n%d ", laterHead, i+1); !strings.Contains(out, line) {
			t.Errorf("layers that no record knows are\n%s\nwant %s among them", out, line)
		}
	}
	if strings.Contains(out, head.String()) {
		t.Errorf("a layer of vol1 is among those that no record knows:\n%s", out)
	}
	c.torus("volume", "delete", "old")
	if out := c.torus("status"); !strings.Contains(out, "torus metadata confirm") {
		t.Errorf("status says\n%s", out)
	}
	for i := range c.nodes {
		if !slices.Contains(c.layers(i), oldHead) {
			t.Errorf("node %d has dropped a layer before the recovery was confirmed", i+1)
		}
	}
	c.torus("metadata", "confirm")
	for i := range c.nodes {
		waitFor(t, "the deleted volume to be dropped", func() bool { return !slices.Contains(c.layers(i), oldHead) })
	}

	// Again, with one of three etcd members left, and what has happened since.
	create("new")
	c.killAll()
	c.loseRecords(1)
	c.loseRecords(2)
	command(t, torus(t), "recover", "--data-dir", dir)
	c.restart(0)
	c.rejoin(1, 2)
	p, addr = c.export("vol1", "new")
	wantAll(t, addr, "vol1", want)
	wantAll(t, addr, "new", make([]byte, recoverSize))
	p.stop()
	for i := range c.nodes {
		if !slices.Contains(c.layers(i), laterHead) {
			t.Errorf("node %d has not kept a layer that no record knows", i+1)
		}
	}
	for i, n := range c.nodes {
		n.stop()
		for layer, want := range map[store.LayerID][]byte{head: want, laterHead: later} {
			if got := layerOf(t, c.dirs[i], layer); !bytes.Equal(got, want) {
				t.Errorf("node %d: its copy of layer %v is another", i+1, layer)
			}
		}
	}
}

// layerOf reads a layer of a stopped node's store.
func layerOf(t *testing.T, dir string, layer store.LayerID) []byte {
	t.Helper()
	st, err := segment.Open(t.Context(), segment.Options{Dir: node.StoreDir(dir)})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	b := make([]byte, recoverSize)
	if err := st.ReadSealed(t.Context(), []store.LayerID{layer}, 0, b); err != nil {
		t.Fatal(err)
	}
	return b
}
