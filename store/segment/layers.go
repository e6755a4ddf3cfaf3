package segment

import (
	"sort"
	"sync"
	"sync/atomic"

	"torus/store"
)

const (
	bucketPages     = 16
	bucketsPerChunk = store.PagesPerChunk / bucketPages
	noChunk         = 1<<32 - 1
)

// A layer is what this store knows of one layer, pages apart.
type layer struct {
	id store.LayerID
	// live counts data pages, those included that a wide killed and the sweeper
	// has not come to yet.
	live atomic.Int64
	// stable and settled are versions; they only grow.
	stable, settled atomic.Uint64
	// marksChanged: the log does not have them yet.
	marksChanged atomic.Bool

	// flushedLive is live as Badger has it, sum that record's; the flusher's alone.
	flushedLive int64
	sum         uint64

	// exclusive is held for reading from the choice of a page write's pages until
	// it is applied, and for writing while a statement about whole chunks is
	// logged: else a page could be logged behind it that was chosen before it.
	// It comes before every other lock but the store's gate and the session's.
	exclusive sync.RWMutex

	mu      sync.RWMutex // guards what follows; no I/O under it
	known   bool
	parent  store.LayerID
	created position
	chunks  map[uint32]*chunk
	spans   []span
}

// A chunk is what is in memory of a chunk that has, or had, pages of its own.
type chunk struct {
	layer *layer
	index uint32
	// maxVersion is at least that of every page, so that what changed since a
	// version is found without looking at every bucket.
	maxVersion atomic.Uint64
	wide       atomic.Pointer[wide]
	// gens has a generation for each bucket that the index has: 0 for none. The
	// bucket in Badger carries it too. So Badger is not asked whether a bucket
	// exists, and an older value of it is recognised. Guarded by the bucket's shard.
	gens [bucketsPerChunk]uint8
	// sum is the checksum of the chunk's record in Badger; the flusher's alone.
	sum uint64
}

func newLayer(id store.LayerID) *layer { return &layer{id: id, chunks: map[uint32]*chunk{}} }

// chunk returns the chunk if it has pages, else nil and the state of the whole.
func (l *layer) chunk(i uint32) (*chunk, *wide) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if c := l.chunks[i]; c != nil {
		return c, c.wide.Load()
	}
	return nil, spanAt(l.spans, i)
}

// makeChunk returns the chunk, made if it was not there.
func (l *layer) makeChunk(i uint32) *chunk {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.chunks[i]
	if c == nil {
		c = &chunk{layer: l, index: i}
		c.wide.Store(spanAt(l.spans, i))
		l.chunks[i] = c
	}
	return c
}

// state puts w on the chunks [first, end) and returns those that have pages.
func (l *layer) state(first, end uint32, w *wide) []*chunk {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spans = overlay(l.spans, first, end, w)
	var touched []*chunk
	for i, c := range l.chunks {
		if first <= i && i < end {
			c.wide.Store(spanAt(l.spans, i))
			touched = append(touched, c)
		}
	}
	return touched
}

// chunksIn returns the chunks with pages in [first, end), in order, and the
// spans of the layer.
func (l *layer) chunksIn(first, end uint32) ([]*chunk, []span) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var cs []*chunk
	if int64(end)-int64(first) < int64(len(l.chunks)) {
		for i := first; i < end; i++ {
			if c := l.chunks[i]; c != nil {
				cs = append(cs, c)
			}
		}
		return cs, l.spans
	}
	for i, c := range l.chunks {
		if first <= i && i < end {
			cs = append(cs, c)
		}
	}
	sort.Slice(cs, func(a, b int) bool { return cs[a].index < cs[b].index })
	return cs, l.spans
}

// raise makes v at least to.
func raise(v *atomic.Uint64, to uint64) {
	for {
		old := v.Load()
		if to <= old || v.CompareAndSwap(old, to) {
			return
		}
	}
}

// tables has everything the store knows that is not in the index. Its changes
// are records of the log; a snapshot of it begins every hot segment.
type tables struct {
	mu      sync.RWMutex
	layers  map[store.LayerID]*layer
	volumes map[store.VolumeID]*volume
}

func newTables() *tables {
	return &tables{layers: map[store.LayerID]*layer{}, volumes: map[store.VolumeID]*volume{}}
}

// layer returns a layer that is known, or ErrUnknownLayer (N6).
func (t *tables) layer(id store.LayerID) (*layer, error) {
	t.mu.RLock()
	l := t.layers[id]
	t.mu.RUnlock()
	if l != nil {
		l.mu.RLock()
		defer l.mu.RUnlock()
		if l.known {
			return l, nil
		}
	}
	return nil, store.ErrUnknownLayer
}

// entry returns what is kept of a layer, known or not, made if need be.
func (t *tables) entry(id store.LayerID) *layer {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.layers[id]
	if l == nil {
		l = newLayer(id)
		t.layers[id] = l
	}
	return l
}

// entryIfThere returns what is kept of a layer, or nil.
func (t *tables) entryIfThere(id store.LayerID) *layer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.layers[id]
}

func (t *tables) allLayers() []*layer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*layer, 0, len(t.layers))
	for _, l := range t.layers {
		out = append(out, l)
	}
	return out
}

// snapshot appends records that make these tables again.
func (t *tables) snapshot(recs []record) []record {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for id, v := range t.volumes {
		if e := v.durable.Load(); e != 0 {
			recs = append(recs, record{kind: recFence, layer: store.LayerID(id), version: store.Version(e), pos: position(v.pos.Load())})
		}
	}
	for _, l := range t.layers {
		recs = l.snapshot(recs)
	}
	return recs
}

func (l *layer) snapshot(recs []record) []record {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.known {
		recs = append(recs, record{kind: recCreate, layer: l.id, page: uint64(l.parent), pos: l.created})
		if s := l.stable.Load(); s != 0 {
			recs = append(recs, record{kind: recStable, layer: l.id, version: store.Version(s), page: l.settled.Load(), pos: l.created})
		}
	}
	for _, s := range l.spans {
		for _, k := range s.state.killers {
			recs = append(recs, record{kind: recKiller, layer: l.id, page: uint64(s.first), count: s.end - s.first,
				extra: uint64(k.below), pos: k.pos})
		}
		recs = append(recs, record{kind: recWide, flags: uint8(s.state.kind), layer: l.id, page: uint64(s.first),
			count: s.end - s.first, version: s.state.version, pos: s.state.pos})
	}
	return recs
}
