package volume

import (
	"math/rand/v2"
	"testing"

	"torus/ring"
	"torus/store"
	"torus/store/memstore"
)

const (
	testVolume = store.VolumeID(0xabc)
	testHead   = store.LayerID(1)
)

// nodes are the disks and stores that a test's volumes lie on.
type nodes struct {
	disks  []*memstore.Disk
	stores []store.Store
	copies int
}

// newNodes makes n empty nodes for volumes of so many copies. With a nil rng
// everything is durable at once.
func newNodes(n, copies int, rng *rand.Rand) *nodes {
	c := &nodes{copies: copies, stores: make([]store.Store, n)}
	for range n {
		var own *rand.Rand
		if rng != nil {
			own = rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		}
		c.disks = append(c.disks, memstore.NewDisk(own))
	}
	c.start()
	return c
}

// start opens every store on its disk, as after a crash.
func (c *nodes) start() {
	for i, d := range c.disks {
		c.stores[i] = d.Open()
	}
}

// options for a volume of size bytes over the nodes. Chunk c lies on the nodes
// c, c+1, ..., so that neighbouring chunks have different copies.
func (c *nodes) options(e store.Epoch, size int64) Options {
	o := Options{ID: testVolume, Epoch: e, Chain: []store.LayerID{testHead}, Size: size, Stores: map[ring.NodeID]store.Store{}}
	places := make([][]ring.NodeID, len(c.stores))
	for i, s := range c.stores {
		o.Stores[ring.NodeID(i+1)] = s
		for k := range c.copies {
			places[i] = append(places[i], ring.NodeID((i+k)%len(c.stores)+1))
		}
	}
	o.Place = func(c ring.ChunkIndex) []ring.NodeID { return places[int(c)%len(places)] }
	return o
}

// open opens a volume that is closed when the test ends.
func open(t testing.TB, o Options) *Volume {
	t.Helper()
	v, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read reads n bytes at off.
func read(t testing.TB, v *Volume, off, n int64) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := v.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

// write writes p at off.
func write(t testing.TB, v *Volume, p []byte, off int64) {
	t.Helper()
	if n, err := v.WriteAt(p, off); err != nil || n != len(p) {
		t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
	}
}
