package segment

import (
	"context"
	"iter"

	"torus/store"
)

// Extents implements store.Replica. It reads one bucket after the other:
// what changes meanwhile may be seen or not.
func (r *replica) Extents(ctx context.Context, id store.LayerID, off, n int64, since store.Version) iter.Seq2[store.Extent, error] {
	return func(yield func(store.Extent, error) bool) {
		if err := store.CheckRange(off, n); err != nil {
			yield(store.Extent{}, fail("extents", id, off, err))
			return
		}
		l, err := r.layer(ctx, id)
		if err != nil {
			yield(store.Extent{}, fail("extents", id, off, err))
			return
		}
		w := &extentWalk{r: r, ctx: ctx, layer: l, end: off + n, since: since, yield: yield}
		w.walk(off)
	}
}

// layer looks a layer up under the replica's epoch.
func (r *replica) layer(ctx context.Context, id store.LayerID) (*layer, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.leave()
	return r.st.tables.layer(id)
}

// An extentWalk joins pages of one kind and version and yields the runs.
type extentWalk struct {
	r     *replica
	ctx   context.Context
	layer *layer
	end   int64
	since store.Version
	yield func(store.Extent, error) bool
	cur   store.Extent // N 0: none
	done  bool
}

func (w *extentWalk) walk(off int64) {
	first := uint32(off / store.ChunkSize)
	last := uint32((w.end + store.ChunkSize - 1) / store.ChunkSize)
	chunks, spans := w.layer.chunksIn(first, last)
	at := first
	for _, c := range chunks {
		w.whole(spans, at, c.index, off)
		w.chunk(c, off)
		at = c.index + 1
		if w.done {
			return
		}
	}
	w.whole(spans, at, last, off)
	w.flush()
}

// whole adds what spans say of the chunks [first, end), which have no pages.
func (w *extentWalk) whole(spans []span, first, end uint32, off int64) {
	for first < end && !w.done {
		next := spanEnd(spans, first, end)
		if s := spanAt(spans, first); s != nil {
			w.add(max(int64(first)*store.ChunkSize, off), min(int64(next)*store.ChunkSize, w.end), s.desc())
		}
		first = next
	}
}

// chunk adds the pages of a chunk; a chunk with nothing newer than since is
// passed over without a look at its buckets.
func (w *extentWalk) chunk(c *chunk, off int64) {
	state := c.wide.Load()
	d := state.desc()
	if store.Version(c.maxVersion.Load()) <= w.since && d.version <= w.since {
		return
	}
	base := int64(c.index) * store.ChunkSize
	const bucketBytes = bucketPages * store.PageSize
	for i := range bucketsPerChunk {
		from := base + int64(i)*bucketBytes
		if from+bucketBytes <= off || from >= w.end {
			continue
		}
		if w.done {
			return
		}
		w.bucket(c, i, from, off)
	}
}

func (w *extentWalk) bucket(c *chunk, i int, from, off int64) {
	pages, err := w.load(c, i)
	if err != nil {
		w.fail(err)
		return
	}
	for j := range pages {
		if at := from + int64(j)*store.PageSize; at >= off && at < w.end {
			w.add(at, at+store.PageSize, pages[j])
		}
	}
}

// load copies a bucket as it stands, under the replica's epoch.
func (w *extentWalk) load(c *chunk, i int) (pages [bucketPages]desc, err error) {
	if err := w.r.enter(w.ctx); err != nil {
		return pages, err
	}
	defer w.r.leave()
	st, k := w.r.st, c.bucket(i)
	if c, _ = w.layer.chunk(c.index); c == nil {
		return pages, nil // gone with a rebuild of the index; it had nothing
	}
	s := st.index.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := st.index.holdLocked(s, c, k, false)
	if err != nil {
		return pages, st.doubted(err)
	}
	state := c.wide.Load()
	if b == nil {
		for j := range pages {
			pages[j] = state.desc()
		}
		return pages, nil
	}
	b.pins--
	for j := range pages {
		pages[j] = resolve(&b.pages[j], state)
	}
	return pages, nil
}

func (w *extentWalk) add(off, end int64, d desc) {
	if w.done || off >= end || d.kind == store.Absent || d.version <= w.since {
		return
	}
	if w.cur.N > 0 && w.cur.End() == off && w.cur.Kind == d.kind && w.cur.Version == d.version {
		w.cur.N += end - off
		return
	}
	w.flush()
	w.cur = store.Extent{Off: off, N: end - off, Kind: d.kind, Version: d.version}
}

func (w *extentWalk) flush() {
	if w.cur.N > 0 && !w.done {
		w.done = !w.yield(w.cur, nil)
	}
	w.cur = store.Extent{}
}

func (w *extentWalk) fail(err error) {
	w.flush()
	if !w.done {
		w.yield(store.Extent{}, fail("extents", w.layer.id, -1, err))
		w.done = true
	}
}
