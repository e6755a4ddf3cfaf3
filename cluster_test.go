package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"torus/store"
	"torus/store/segment"
)

// A testCluster is several nodes, each a process with a directory of its own.
type testCluster struct {
	t     testing.TB
	dirs  []string
	nodes []*process
	flags []string
}

// startCluster founds a cluster and has the others join it, one after the other
// has said that it serves. flags are for every node.
func startCluster(t testing.TB, nodes int, flags ...string) *testCluster {
	t.Helper()
	return startClusterIn(t, t.TempDir(), nodes, flags...)
}

// startClusterIn is startCluster with directories below dir.
func startClusterIn(t testing.TB, dir string, nodes int, flags ...string) *testCluster {
	t.Helper()
	c := &testCluster{t: t, flags: append(flags, "--log-level", "warn")}
	for i := range nodes {
		c.dirs = append(c.dirs, filepath.Join(dir, fmt.Sprint("n", i+1)))
		args := []string{"join"}
		if i == 0 {
			args = []string{"init"}
		} else {
			args = append(args, c.api())
		}
		args = append(args, "--data-dir", c.dirs[i], "--name", fmt.Sprint("n", i+1), "--host", fmt.Sprint("h", i+1), "--port", "0")
		c.nodes = append(c.nodes, startNode(t, append(args, c.flags...)...))
	}
	return c
}

// api is where the first node answers.
func (c *testCluster) api() string { return c.nodes[0].running.API }

// torus runs a command on the cluster.
func (c *testCluster) torus(args ...string) string {
	c.t.Helper()
	return command(c.t, torus(c.t), append(args, "--cluster", c.api())...)
}

// serve exports vol1 from a process of its own.
func (c *testCluster) serve(args ...string) *process {
	c.t.Helper()
	return startNode(c.t, append([]string{"nbd", "serve", "vol1", "--listen", "127.0.0.1:0", "--cluster", c.api(), "--log-level", "warn"}, args...)...)
}

// served is where "nbd serve" exports its first volume.
func (p *process) served() (uri, addr string) {
	uri = p.running.Volumes[0].URIs[0]
	return uri, strings.TrimSuffix(strings.TrimPrefix(uri, "nbd://"), "/vol1")
}

// killAll ends all nodes as a power switch would that keeps the disks.
func (c *testCluster) killAll() {
	var wg sync.WaitGroup
	for _, n := range c.nodes {
		wg.Go(n.kill)
	}
	wg.Wait()
}

// startAll runs the nodes again; they need each other, so all at once.
func (c *testCluster) startAll() {
	c.t.Helper()
	var wg sync.WaitGroup
	for i, dir := range c.dirs {
		wg.Go(func() { c.nodes[i] = startNode(c.t, "start", "--data-dir", dir, "--log-level", "warn") })
	}
	wg.Wait()
}

// etcd returns how many nodes have which part in etcd.
func (c *testCluster) etcd() map[string]int {
	c.t.Helper()
	var nodes []struct{ Etcd string }
	if err := json.Unmarshal([]byte(c.torus("node", "list", "-o", "json")), &nodes); err != nil {
		c.t.Fatal(err)
	}
	parts := map[string]int{}
	for _, n := range nodes {
		parts[n.Etcd]++
	}
	return parts
}

// awaitVoters returns when etcd has so many voters, and nobody on the way.
func (c *testCluster) awaitVoters(want int) {
	c.t.Helper()
	var parts map[string]int
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if parts = c.etcd(); parts["voter"] == want && parts["learner"] == 0 {
			return
		}
	}
	c.t.Fatalf("etcd has %v, want %d voters", parts, want)
}

// TestThreeNodes: three commands make a cluster with three voters; a volume with
// three copies takes a file system, and its bytes are on all three.
func TestThreeNodes(t *testing.T) {
	need(t, "nbdcopy", "mkfs.ext4", "e2fsck")
	begun := time.Now()
	c := startCluster(t, 3)
	c.awaitVoters(3)
	took := time.Since(begun)
	t.Logf("three nodes, three voters after %v", took)
	if took > 15*time.Second && !long() { // there the machine does more than this
		t.Errorf("the cluster took %v to come up", took)
	}
	const size = 32 << 20
	c.torus("volume", "create", "vol1", "32MiB", "--replicas", "3")
	p := c.serve()
	uri, _ := p.served()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.img"), filepath.Join(dir, "out.img")
	command(t, "mkfs.ext4", "-q", "-d", "testdata", in, "32M")
	command(t, "nbdcopy", "--flush", in, uri)
	command(t, "nbdcopy", uri, out)
	command(t, "e2fsck", "-fn", out)
	want, err := os.ReadFile(in)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("what comes out differs from what went in (%v)", err)
	}
	for i, n := range c.nodes {
		if _, body := get(t, n, "/metrics"); !strings.Contains(body, "torus_blocks_volumes_attached 1\n") {
			t.Errorf("node %d does not say that the exporter has attached its copy:\n%s", i+1, body)
		}
	}
	p.stop()
	for _, n := range c.nodes {
		n.stop()
	}
	for i, dir := range c.dirs {
		if got := copyOf(t, dir, size); !bytes.Equal(got, want) {
			t.Errorf("the copy of node %d differs from the image", i+1)
		}
	}
}

// copyOf reads the only layer that a stopped node's store has.
func copyOf(t *testing.T, dir string, size int64) []byte {
	t.Helper()
	ctx := context.Background()
	st, err := segment.Open(ctx, segment.Options{Dir: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var layers []store.LayerID
	for l, err := range st.Layers(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l.ID)
	}
	if len(layers) != 1 {
		t.Fatalf("layers %v, want one", layers)
	}
	b := make([]byte, size)
	for off := int64(0); off < size; off += store.ChunkSize {
		if err := st.ReadSealed(ctx, layers, off, b[off:min(size, off+store.ChunkSize)]); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// TestKillCluster kills all nodes and the exporter amid writes: what was
// acknowledged is there when they run again, and the exporter has the volume again
// by itself.
func TestKillCluster(t *testing.T) {
	rounds := 3
	if long() {
		rounds = 15
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	m := newCrashModel(rand.New(rand.NewPCG(seed, 2)))
	c := startCluster(t, 3)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", "64MiB", "--replicas", "3")
	for range rounds {
		p := c.serve()
		_, addr := p.served()
		m.check(t, addr)
		m.writeAndKill(t, addr, func() {
			var wg sync.WaitGroup
			wg.Go(c.killAll)
			wg.Go(p.kill)
			wg.Wait()
		})
		c.startAll()
	}
	p := c.serve()
	_, addr := p.served()
	m.check(t, addr)

	// Once more with the exporter alive: it takes up the volume when its nodes are back.
	c.killAll()
	c.startAll()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		cl, err := dialNBD(addr, "vol1")
		if err == nil {
			cl.close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the exporter does not serve again: %v", err)
		}
	}
	m.check(t, addr)
	p.stop()
	t.Logf("%d writes acknowledged, %d cut short", m.acknowledged, m.cut)
}

// TestTakeover: one exporter at a time. A second one is refused and told who has
// the volume; it gets it once the first was killed; and the first, stopped over
// the takeover and continued, is refused by the nodes, writes and reads (I1).
func TestTakeover(t *testing.T) {
	c := startCluster(t, 3)
	c.torus("volume", "create", "vol1", "16MiB", "--replicas", "3")
	first := c.serve()
	out := refused(t, 4, torus(t), "nbd", "serve", "vol1", "--listen", "127.0.0.1:0", "--cluster", c.api())
	if want := fmt.Sprintf("volume vol1: attached by process %d on ", first.cmd.Process.Pid); !strings.Contains(out, want) {
		t.Errorf("it says %q, want it to name %q", out, want)
	}
	first.kill()
	begun := time.Now()
	second := c.serve() // the process is proven dead, so that nothing is waited for
	t.Logf("taken over after %v", time.Since(begun))
	_, addr := second.served()
	cl, err := dialNBD(addr, "vol1")
	if err != nil {
		t.Fatal(err)
	}
	defer cl.close()
	old, fresh := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	if err := <-cl.write(old, 0).done; err != nil {
		t.Fatal(err)
	}

	// Stopped, the second answers nobody, and its lease runs out.
	signal(t, second, syscall.SIGSTOP)
	waitFor(t, "the exporter is stopped", second.isStopped)
	write, read := cl.write(bytes.Repeat([]byte{3}, 4096), 4096), cl.read(make([]byte, 4096), 0)
	var third *process
	for end := time.Now().Add(patience); third == nil; time.Sleep(500 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody gets the volume of a stopped exporter")
		}
		third = c.tryServe()
	}
	t.Logf("its lease had run out after %v", time.Since(begun))
	_, addr = third.served()
	cl3, err := dialNBD(addr, "vol1")
	if err != nil {
		t.Fatal(err)
	}
	defer cl3.close()
	if err := <-cl3.write(fresh, 0).done; err != nil {
		t.Fatal(err)
	}
	signal(t, second, syscall.SIGCONT)
	if err := <-write.done; err == nil {
		t.Error("the fenced exporter acknowledged a write")
	}
	if err := <-read.done; err == nil {
		t.Error("the fenced exporter answered a read")
	}
	got := make([]byte, 8192)
	if err := <-cl3.read(got, 0).done; err != nil || !bytes.Equal(got[:4096], fresh) || slices.Max(got[4096:]) != 0 {
		t.Errorf("the volume has other bytes than its holder wrote (%v)", err)
	}
	third.stop()
}

// epoch is that of the attachment of vol1; 0 if there is none.
func (c *testCluster) epoch() uint32 {
	c.t.Helper()
	var vol struct {
		Epoch    uint32
		Attached *struct{ By string }
	}
	if err := json.Unmarshal([]byte(c.torus("volume", "show", "vol1", "-o", "json")), &vol); err != nil {
		c.t.Fatal(err)
	}
	if vol.Attached == nil {
		return 0
	}
	return vol.Epoch
}

// tryServe is serve, or nil if somebody has the volume.
func (c *testCluster) tryServe() *process {
	c.t.Helper()
	var vol struct{ Attached *struct{ By string } }
	if err := json.Unmarshal([]byte(c.torus("volume", "show", "vol1", "-o", "json")), &vol); err != nil {
		c.t.Fatal(err)
	}
	if vol.Attached != nil {
		return nil
	}
	return c.serve()
}

// isStopped reports whether no thread of the process runs any more.
func (p *process) isStopped() bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	if err != nil || len(stats) == 0 {
		p.t.Fatalf("no threads of the process are seen: %v", err)
	}
	return !slices.ContainsFunc(stats, func(file string) bool {
		b, err := os.ReadFile(file)
		return err == nil && !strings.HasPrefix(string(b[bytes.LastIndexByte(b, ')')+1:]), " T")
	})
}

func signal(t *testing.T, p *process, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// TestVoters: a cluster of five nodes has three voters, one of seven five.
func TestVoters(t *testing.T) {
	if !long() {
		t.Skip("seven nodes: with TORUS_LONG_TESTS=1")
	}
	c := startCluster(t, 5)
	c.awaitVoters(3)
	for i := 5; i < 7; i++ {
		c.dirs = append(c.dirs, t.TempDir())
		c.nodes = append(c.nodes, startNode(t, "join", c.api(), "--data-dir", c.dirs[i], "--name", fmt.Sprint("n", i+1),
			"--host", fmt.Sprint("h", i+1), "--port", "0", "--log-level", "warn"))
	}
	c.awaitVoters(5)
}
