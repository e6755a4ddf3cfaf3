package volume

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
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

	found       Found // by the Open that served last
	hookServing func(Found) error

	mu                  sync.Mutex           // guards what follows; the hooks are called without it
	recorded            map[ring.NodeID]Copy // is replaced, never changed
	stale               staleMap
	doStale, doesInSync func() error
	fresh               []ring.NodeID // may not join yet
	asked               int           // how often MayJoin was
}

// staleMap is what each node is recorded to lack.
type staleMap map[ring.NodeID]map[store.LayerID]store.Version

// hookStale has f called before something is recorded stale; its error is the record's.
func (c *nodes) hookStale(f func() error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doStale = f
}

// hookInSync is hookStale of what is recorded to be in sync.
func (c *nodes) hookInSync(f func() error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doesInSync = f
}

// records returns what is recorded.
func (c *nodes) records() (map[ring.NodeID]Copy, staleMap) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stale := staleMap{}
	for n, layers := range c.stale {
		stale[n] = maps.Clone(layers)
	}
	return c.recorded, stale
}

// lacks returns what is recorded stale.
func (c *nodes) lacks() staleMap {
	_, stale := c.records()
	return stale
}

// setStale records what is stale, in place of what was.
func (c *nodes) setStale(stale staleMap) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale = stale
}

type memRecords nodes

// hooked calls a hook.
func (r *memRecords) hooked(hook *func() error) error {
	r.mu.Lock()
	f := *hook
	r.mu.Unlock()
	if f == nil {
		return nil
	}
	return f()
}

func (r *memRecords) Serving(_ context.Context, f Found) error {
	if r.hookServing != nil {
		if err := r.hookServing(f); err != nil {
			return err
		}
	}
	r.found = f
	r.mu.Lock()
	defer r.mu.Unlock()
	recorded := map[ring.NodeID]Copy{}
	maps.Copy(recorded, r.recorded)
	maps.Copy(recorded, f.Copies)
	r.recorded = recorded
	for _, s := range f.Stale {
		r.put(s.Node, s.Layer, s.Since)
	}
	return nil
}

// put is called with mu held.
func (r *memRecords) put(n ring.NodeID, l store.LayerID, since store.Version) {
	if r.stale == nil {
		r.stale = staleMap{}
	}
	if r.stale[n] == nil {
		r.stale[n] = map[store.LayerID]store.Version{}
	}
	if was, is := r.stale[n][l]; !is || since < was {
		r.stale[n][l] = since
	}
}

func (r *memRecords) Stale(_ context.Context, n ring.NodeID, why string, since map[store.LayerID]store.Version) error {
	if err := r.hooked(&r.doStale); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for l, s := range since {
		r.put(n, l, s)
	}
	return nil
}

func (r *memRecords) InSync(_ context.Context, n ring.NodeID, now Copy, layers []store.LayerID) error {
	if err := r.hooked(&r.doesInSync); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range layers {
		delete(r.stale[n], l)
	}
	if len(r.stale[n]) == 0 {
		delete(r.stale, n)
	}
	r.recorded = maps.Clone(r.recorded)
	r.recorded[n] = now
	return nil
}

func (r *memRecords) MayJoin(_ context.Context, n ring.NodeID) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	return !slices.Contains(r.fresh, n), nil
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

// options for a volume of size bytes over the nodes, which knows what was
// recorded last, and not that the last attachment ended cleanly. Chunk c lies on the nodes
// c, c+1, ..., so that neighbouring chunks have different copies.
func (c *nodes) options(e store.Epoch, size int64) Options {
	o := Options{ID: testVolume, Epoch: e, Chain: []store.LayerID{testHead}, Size: size, Stores: map[ring.NodeID]store.Store{}}
	recorded, stale := c.records()
	o.Recorded, o.Records = recorded, (*memRecords)(c)
	for id, layers := range stale {
		for l, since := range layers {
			o.Stale = append(o.Stale, Stale{Node: id, Layer: l, Since: since})
		}
	}
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
	t.Cleanup(func() {
		v.stop(errGone) // the stores may be closed: nothing is waited for
		v.Close()
	})
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

// page is one page of the head as one copy has it.
type page struct {
	kind    store.Kind
	version store.Version
	data    string
}

// pagesOf reads n pages of the head from one node's store, under o's epoch.
func (c *nodes) pagesOf(t testing.TB, o Options, id ring.NodeID, off int64, n int) []page {
	t.Helper()
	r, err := c.stores[nodeOf(id)-1].Attach(t.Context(), testVolume, o.Epoch)
	must(t, err)
	p, info := make([]byte, n*store.PageSize), make([]store.PageInfo, n)
	must(t, r.Read(t.Context(), o.Chain[:1], off, p, info))
	pages := make([]page, n)
	for i := range pages {
		pages[i] = page{info[i].Kind, info[i].Version, string(p[i*store.PageSize:][:store.PageSize])}
	}
	return pages
}

// equal fails the test unless all copies of the head of the volume that o opened
// are equal page by page, read from each store directly.
func (c *nodes) equal(t testing.TB, o Options) {
	t.Helper()
	c.compare(t, o, func(a, b page) bool { return a == b })
}

// alike is equal, but for holes that one node has forgotten.
func (c *nodes) alike(t testing.TB, o Options) {
	t.Helper()
	c.compare(t, o, func(a, b page) bool { return a == b || forgotten(a, b) })
}

func (c *nodes) compare(t testing.TB, o Options, same func(a, b page) bool) {
	t.Helper()
	for off := int64(0); off < o.Size; off += store.ChunkSize {
		n := int(min(store.ChunkSize, o.Size-off) / store.PageSize)
		ids := o.Place(ring.ChunkIndex(off / store.ChunkSize))
		first := c.pagesOf(t, o, ids[0], off, n)
		for _, id := range ids[1:] {
			for i, p := range c.pagesOf(t, o, id, off, n) {
				if !same(p, first[i]) {
					t.Fatalf("page at %d: node %v has %v %v, node %v %v %v", off+int64(i)*store.PageSize,
						ids[0], first[i].kind, first[i].version, id, p.kind, p.version)
				}
			}
		}
	}
}

// cancelAtWarning is a logger that cancels at the first warning.
func cancelAtWarning(cancel func()) *slog.Logger { return slog.New(cancelHandler{cancel}) }

type cancelHandler struct{ cancel func() }

func (h cancelHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (h cancelHandler) WithAttrs([]slog.Attr) slog.Handler           { return h }
func (h cancelHandler) WithGroup(string) slog.Handler                { return h }
func (h cancelHandler) Handle(context.Context, slog.Record) error {
	h.cancel()
	return nil
}
