package main_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"torus/cluster"
	"torus/node"
	"torus/store"
)

// How long a request may take when a node dies, and when one falls silent that the kernel
// still answers for. That is seen after 2 s; then its etcd member has to be seen silent too,
// and if it led the others have to elect a leader.
const (
	maxStall       = 5 * time.Second
	maxSilentStall = 10 * time.Second
)

// awayBlock is what the load writes with one request.
const awayBlock = 64 << 10

// A load writes the first blocks of vol1 over and over, a few at a time, with a
// flush now and then, and remembers what it wrote.
type load struct {
	t       *testing.T
	addr    string
	blocks  int
	last    []uint64 // number of the write that a block has
	numbers atomic.Uint64
	rounds  atomic.Int64 // how often the first block was written

	quit    chan struct{}
	running sync.WaitGroup

	mu      sync.Mutex // guards what follows
	longest time.Duration
	err     error
}

const loadWriters = 4

// startLoad begins to write; end ends it.
func startLoad(t *testing.T, addr string, size int) *load {
	t.Helper()
	l := &load{t: t, addr: addr, blocks: size / awayBlock, last: make([]uint64, size/awayBlock), quit: make(chan struct{})}
	for first := range loadWriters {
		c, err := dialNBD(addr, "vol1")
		if err != nil {
			t.Fatal(err)
		}
		l.running.Go(func() {
			defer c.close()
			l.write(c, first)
		})
	}
	return l
}

// write writes every so-manieth block until the end.
func (l *load) write(c *nbdClient, first int) {
	b := make([]byte, awayBlock)
	for {
		for block := first; block < l.blocks; block += loadWriters {
			select {
			case <-l.quit:
				return
			default:
			}
			number := l.numbers.Add(1)
			fillBlock(b, block, number)
			if !l.done(func() *nbdCall { return c.write(b, int64(block)*awayBlock) }) {
				return
			}
			l.last[block] = number
			if number%64 == 0 && !l.done(c.flush) {
				return
			}
		}
		if first == 0 {
			l.rounds.Add(1)
		}
	}
}

// done makes a request and takes its time.
func (l *load) done(request func() *nbdCall) bool {
	begun := time.Now()
	err := <-request().done
	took := time.Since(begun)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, took)
	if err != nil && l.err == nil {
		l.err = err
	}
	return err == nil
}

// another waits until every block has been written once more.
func (l *load) another() {
	l.t.Helper()
	begun := l.rounds.Load()
	waitFor(l.t, "the load to write everything again", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.rounds.Load() >= begun+2 || l.err != nil
	})
}

// end ends the load, which no request may have failed.
func (l *load) end() (longest time.Duration) {
	l.t.Helper()
	close(l.quit)
	l.running.Wait()
	if l.err != nil {
		l.t.Fatalf("the load: %v", l.err)
	}
	return l.longest
}

// fillBlock makes the bytes of a write.
func fillBlock(b []byte, block int, number uint64) {
	for i := 0; i < len(b); i += 4096 {
		fill(b[i:i+4096], block*(awayBlock/4096)+i/4096, number)
	}
}

// content is what vol1 has after the load, number 0 beyond it.
func (l *load) content(size int) []byte {
	b := make([]byte, size)
	for block, number := range l.last {
		fillBlock(b[block*awayBlock:][:awayBlock], block, number)
	}
	return b
}

// staleCopies returns what the records say is stale; the cluster must have a
// majority of its voters.
func (c *testCluster) staleCopies() []cluster.Stale {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var endpoints []string
	for _, n := range c.nodes {
		if about, err := askEtcd(n); err == nil {
			endpoints = about
			break
		}
	}
	kv, err := cluster.Dial(endpoints)
	if err != nil {
		c.t.Fatal(err)
	}
	defer kv.Close()
	records, err := cluster.Open(ctx, kv, "", cluster.Options{Patience: patience})
	if err != nil {
		c.t.Fatal(err)
	}
	stale, err := records.StaleCopies(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return stale
}

// awaitStale waits until so many copies are recorded stale.
func (c *testCluster) awaitStale(want int) {
	c.t.Helper()
	waitFor(c.t, fmt.Sprintf("%d stale copies", want), func() bool { return len(c.staleCopies()) == want })
}

// restart runs a node again that was killed.
func (c *testCluster) restart(i int) {
	c.t.Helper()
	c.nodes[i] = startNode(c.t, "start", "--data-dir", c.dirs[i], "--log-level", "warn")
}

// metric returns one number of a node.
func (p *process) metric(t *testing.T, name string) int64 {
	t.Helper()
	_, body := get(t, p, "/metrics")
	for line := range strings.Lines(body) {
		if value, is := strings.CutPrefix(line, "torus_"+name+" "); is {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return int64(v)
		}
	}
	t.Fatalf("there is no metric torus_%s", name)
	return 0
}

// TestNodeAway kills a node under load: no request fails or takes long. It comes
// back and gets about what has changed meanwhile, and all copies are equal.
func TestNodeAway3(t *testing.T) { testNodeAway(t, 3) }

func TestNodeAway2(t *testing.T) {
	if !long() {
		t.Skip("as TestNodeAway3, with two copies: TORUS_LONG_TESTS=1 runs it")
	}
	testNodeAway(t, 2)
}

func testNodeAway(t *testing.T, replicas int) {
	size := 64 << 20
	if long() {
		size = 256 << 20
	}
	c := startCluster(t, 3)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", fmt.Sprint(size), "--replicas", fmt.Sprint(replicas))
	p := c.serve()
	_, addr := p.served()
	begun := startLoad(t, addr, size) // so that there is much that need not be copied
	begun.another()
	begun.end()
	l := startLoad(t, addr, size/4)
	l.another()
	c.nodes[2].kill()
	c.awaitStale(1)
	l.another()
	t.Logf("the longest request took %v", l.end())
	if l.longest > maxStall {
		t.Errorf("the longest request took %v, none should take %v", l.longest, maxStall)
	}
	want := begun.content(size)
	copy(want, l.content(size/4))

	c.backInSync(t, 2, int64(size/4))
	p.stop()
	for _, n := range c.nodes {
		n.stop()
	}
	c.equalCopies(t, want, replicas)
}

// TestPausedNode: a node that is stopped for a while, as in a virtual machine that is
// moved, lacks writes, and gets them when it goes on; nobody attaches anew for that.
func TestPausedNode(t *testing.T) {
	if !long() {
		t.Skip("waits for seconds; TORUS_LONG_TESTS=1 runs it")
	}
	const size = 16 << 20
	c := startCluster(t, 3)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", fmt.Sprint(size), "--replicas", "3")
	p := c.serve()
	_, addr := p.served()
	l := startLoad(t, addr, size)
	l.another()
	before := c.epoch()
	signal(t, c.nodes[2], syscall.SIGSTOP)
	c.awaitStale(1)
	l.another()
	signal(t, c.nodes[2], syscall.SIGCONT)
	c.awaitStale(0)
	t.Logf("the longest request took %v", l.end())
	if l.longest > maxSilentStall {
		t.Errorf("the longest request took %v, none should take %v", l.longest, maxSilentStall)
	}
	if now := c.epoch(); now != before {
		t.Errorf("attached under epoch %v, and then under %v", before, now)
	}
	p.stop()
	for _, n := range c.nodes {
		n.stop()
	}
	c.equalCopies(t, l.content(size), 3)
}

// equalCopies fails unless each chunk is in so many of the stopped nodes' stores
// as it should be, and in no other.
func (c *testCluster) equalCopies(t *testing.T, want []byte, replicas int) {
	t.Helper()
	var copies [][]byte
	for _, dir := range c.dirs {
		copies = append(copies, copyOf(t, dir, int64(len(want))))
	}
	const chunk = store.ChunkSize
	none := make([]byte, chunk)
	for off := 0; off < len(want); off += chunk {
		equal, absent := 0, 0
		for _, b := range copies {
			switch b := b[off : off+chunk]; {
			case bytes.Equal(b, want[off:off+chunk]):
				equal++
			case bytes.Equal(b, none):
				absent++
			}
		}
		if equal != replicas || equal+absent != len(copies) {
			t.Errorf("chunk at %d: %d nodes have what was written, %d nothing, of %d", off, equal, absent, len(copies))
		}
	}
}

// TestLastInSync: with one copy stale and the other's node dead, requests wait;
// they go on when the one in sync is back, and not when only the stale one is.
func TestLastInSync(t *testing.T) {
	c := startCluster(t, 3)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", fmt.Sprint(store.ChunkSize), "--replicas", "2")
	p := c.serve()
	_, addr := p.served()
	cl, err := dialNBD(addr, "vol1")
	if err != nil {
		t.Fatal(err)
	}
	defer cl.close()
	block := func(number uint64) []byte {
		b := make([]byte, awayBlock)
		fillBlock(b, 0, number)
		return b
	}
	must := func(call *nbdCall) {
		t.Helper()
		select {
		case err := <-call.done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(patience):
			t.Fatalf("no answer after %v", patience)
		}
	}
	must(cl.write(block(1), 0))
	must(cl.flush())
	var holders []int
	for i, n := range c.nodes {
		if n.metric(t, "store_live_bytes") > 0 {
			holders = append(holders, i)
		}
	}
	if len(holders) != 2 {
		t.Fatalf("the nodes %v have copies, want two", holders)
	}
	first, last := holders[0], holders[1]
	c.nodes[first].kill()
	must(cl.write(block(2), 0))
	c.awaitStale(1)
	c.nodes[last].kill()
	write, got := cl.write(block(3), 0), make([]byte, awayBlock)
	read := cl.read(got, 0)
	c.restart(first)
	select {
	case err := <-write.done:
		t.Fatalf("a write was answered (%v) when no copy in sync was there", err)
	case err := <-read.done:
		t.Fatalf("a read was answered (%v) when no copy in sync was there: %d", err, binary.LittleEndian.Uint64(got))
	case <-time.After(6 * time.Second): // longer than a node may take to answer, and than it takes to look again
	}
	c.restart(last)
	must(write)
	must(read)
	if !bytes.Equal(got, block(2)) && !bytes.Equal(got, block(3)) {
		t.Errorf("a read begins with %x", got[:16])
	}
	must(cl.read(got, 0))
	if !bytes.Equal(got, block(3)) {
		t.Errorf("a read behind the write begins with %x", got[:16])
	}
	c.awaitStale(0)
	p.stop()
}

// askEtcd asks a node where the cluster's records are.
func askEtcd(p *process) ([]string, error) {
	about, err := node.Ask(context.Background(), p.running.API)
	return about.Etcd, err
}
