package segment

import (
	"context"
	"iter"

	"torus/store"
)

// A replica is a volume as one attachment sees it.
type replica struct {
	st          *Store
	session     *session
	incarnation store.Incarnation
}

var _ store.Replica = (*replica)(nil)

// Incarnation implements store.Replica.
func (r *replica) Incarnation() store.Incarnation { return r.incarnation }

// enter lets a request in under the replica's epoch; leave lets it out.
func (r *replica) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.st.gate.RLock()
	if r.st.closed {
		r.st.gate.RUnlock()
		return store.ErrClosed
	}
	if r.incarnation != r.st.currentIncarnation() {
		r.st.gate.RUnlock()
		return store.ErrIncarnation
	}
	r.session.rw.RLock()
	if r.session.ended {
		v := r.session.volume
		r.session.rw.RUnlock()
		r.st.gate.RUnlock()
		v.mu.Lock()
		defer v.mu.Unlock()
		return &store.FencedError{Volume: v.id, Epoch: r.session.epoch, Recorded: v.epoch}
	}
	return nil
}

func (r *replica) leave() {
	r.session.rw.RUnlock()
	r.st.gate.RUnlock()
}

// fail adds operation and place; an error of this store's disk is an answer
// from before a change of incarnation.
func fail(op string, layer store.LayerID, off int64, err error) error {
	if err == nil {
		return nil
	}
	return &store.Error{Op: op, Layer: layer, Off: off, Err: err}
}

// Create implements store.Replica.
func (r *replica) Create(ctx context.Context, id, parent store.LayerID) error {
	if err := r.enter(ctx); err != nil {
		return fail("create", id, -1, err)
	}
	defer r.leave()
	if id == 0 || id == parent {
		return fail("create", id, -1, invalid("layer %v with parent %v", id, parent))
	}
	return fail("create", id, -1, r.st.create(id, parent))
}

func (st *Store) create(id, parent store.LayerID) error {
	l := st.lockLayer(id)
	defer l.exclusive.Unlock()
	if _, err := st.tables.layer(id); err == nil {
		return st.log.sync() // it may have been created a moment ago
	}
	req := newRequest()
	req.need = forFacts
	req.add(record{kind: recCreate, layer: id, page: uint64(parent)})
	req.meta = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.known, l.parent, l.created = true, parent, req.recs[0].pos
		l.stable.Store(0)
		l.settled.Store(0)
	}
	return st.commitDurable(req)
}

// Write implements store.Replica.
func (r *replica) Write(ctx context.Context, id store.LayerID, off int64, p []byte, v store.Version, f store.Flags) error {
	if err := checkWrite(off, int64(len(p)), v, f, store.MaxIO); err != nil {
		return fail("write", id, off, err)
	}
	if err := r.enter(ctx); err != nil {
		return fail("write", id, off, err)
	}
	defer r.leave()
	err := r.st.write(id, off, p, v)
	if err == nil && f&store.FlagSync != 0 {
		err = r.st.log.sync()
	}
	r.st.stats.writes.Add(1)
	r.st.stats.bytesWritten.Add(int64(len(p)))
	return fail("write", id, off, err)
}

func (st *Store) write(id store.LayerID, off int64, p []byte, v store.Version) error {
	l, err := st.tables.layer(id)
	if err != nil || v <= store.Version(l.stable.Load()) { // N4: a late copy of an old one
		return err
	}
	l.exclusive.RLock()
	defer l.exclusive.RUnlock()
	return st.changePages(&pageChange{layer: l, kind: store.Data, off: off, n: int64(len(p)), version: v, p: p, below: v})
}

func checkWrite(off, n int64, v store.Version, f store.Flags, most int64) error {
	if err := store.CheckRange(off, n); err != nil {
		return err
	}
	switch {
	case n > most:
		return invalid("%d bytes in one request, at most %d", n, most)
	case v == 0:
		return invalid("version %v", v)
	case f&^store.FlagSync != 0:
		return invalid("flags %#x", uint8(f))
	}
	return nil
}

// Zero implements store.Replica.
func (r *replica) Zero(ctx context.Context, id store.LayerID, off, n int64, v store.Version, f store.Flags) error {
	if err := checkWrite(off, n, v, f, store.MaxVolumeSize); err != nil {
		return fail("zero", id, off, err)
	}
	if err := r.enter(ctx); err != nil {
		return fail("zero", id, off, err)
	}
	defer r.leave()
	err := r.st.zeroRange(id, off, n, v)
	if err == nil && f&store.FlagSync != 0 {
		err = r.st.log.sync()
	}
	r.st.stats.writes.Add(1)
	return fail("zero", id, off, err)
}

func (st *Store) zeroRange(id store.LayerID, off, n int64, v store.Version) error {
	l, err := st.tables.layer(id)
	if err != nil || v <= store.Version(l.stable.Load()) {
		return err
	}
	return st.changeRange(&pageChange{layer: l, kind: store.Hole, off: off, n: n, version: v, below: v})
}

// Read implements store.Replica.
func (r *replica) Read(ctx context.Context, chain []store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	if err := r.enter(ctx); err != nil {
		return fail("read", first(chain), off, err)
	}
	defer r.leave()
	return fail("read", first(chain), off, r.st.read(chain, off, p, info))
}

func first(chain []store.LayerID) store.LayerID {
	if len(chain) == 0 {
		return 0
	}
	return chain[0]
}

// Sync implements store.Replica.
func (r *replica) Sync(ctx context.Context) error {
	if err := r.enter(ctx); err != nil {
		return fail("sync", 0, -1, err)
	}
	defer r.leave()
	r.st.stats.syncs.Add(1)
	return fail("sync", 0, -1, r.st.log.sync())
}

// Adopt implements store.Replica.
func (r *replica) Adopt(ctx context.Context, id store.LayerID, e store.Extent, p []byte) error {
	if err := checkAdopt(e, p); err != nil {
		return fail("adopt", id, e.Off, err)
	}
	if err := r.enter(ctx); err != nil {
		return fail("adopt", id, e.Off, err)
	}
	defer r.leave()
	return fail("adopt", id, e.Off, r.st.adopt(id, e, p, r.session.epoch))
}

func checkAdopt(e store.Extent, p []byte) error {
	if err := store.CheckRange(e.Off, e.N); err != nil {
		return err
	}
	switch {
	case e.Kind > store.Hole:
		return invalid("%v", e.Kind)
	case (e.Kind == store.Absent) != (e.Version == 0):
		return invalid("%v page with version %v", e.Kind, e.Version)
	case e.Kind == store.Data && int64(len(p)) != e.N, e.Kind != store.Data && len(p) != 0:
		return invalid("%d bytes for %v of %d", len(p), e.Kind, e.N)
	case e.Kind == store.Data && e.N > store.MaxIO:
		return invalid("%d bytes in one request, at most %d", e.N, store.MaxIO)
	}
	return nil
}

func (st *Store) adopt(id store.LayerID, e store.Extent, p []byte, epoch store.Epoch) error {
	l, err := st.tables.layer(id)
	if err != nil {
		return err
	}
	// What the present attachment wrote, and is newer, stays: it was sent to both.
	below := max(store.NewVersion(epoch, 0), e.Version+1)
	c := &pageChange{layer: l, kind: e.Kind, off: e.Off, n: e.N, version: e.Version, p: p, below: below}
	if e.Kind == store.Data {
		l.exclusive.RLock()
		defer l.exclusive.RUnlock()
		return st.changePages(c)
	}
	return st.changeRange(c)
}

// changeRange makes a range a hole, or absent: whole chunks by one record, the
// rest, and chunks where the statement comes late, page by page.
func (st *Store) changeRange(c *pageChange) error {
	first := (c.off + store.ChunkSize - 1) / store.ChunkSize
	end := (c.off + c.n) / store.ChunkSize
	if first >= end {
		c.layer.exclusive.RLock()
		defer c.layer.exclusive.RUnlock()
		return st.changeSparse(c, c.off, c.off+c.n)
	}
	c.layer.exclusive.Lock()
	defer c.layer.exclusive.Unlock()
	if err := st.changeSparse(c, c.off, first*store.ChunkSize); err != nil {
		return err
	}
	if err := st.changeWhole(c, uint32(first), uint32(end)); err != nil {
		return err
	}
	return st.changeSparse(c, end*store.ChunkSize, c.off+c.n)
}

func (st *Store) changeSparse(c *pageChange, off, end int64) error {
	if off >= end {
		return nil
	}
	part := *c
	part.off, part.n, part.sparse = off, end-off, true
	return st.changePages(&part)
}

// changeWhole makes the chunks [first, end) what c says.
func (st *Store) changeWhole(c *pageChange, first, end uint32) error {
	c.layer.mu.RLock()
	spans := c.layer.spans
	c.layer.mu.RUnlock()
	for first < end {
		state, next := spanAt(spans, first), spanEnd(spans, first, end)
		k := killer{pos: ^position(0), below: c.below}
		if k.supersedes(state) {
			for next < end && k.supersedes(spanAt(spans, next)) {
				next = spanEnd(spans, next, end)
			}
			if err := st.recordWide(c, first, next); err != nil {
				return err
			}
		} else if err := st.changeExisting(c, first, next); err != nil {
			return err
		}
		first = next
	}
	return st.sweepSoon()
}

// changeExisting goes through the chunks in [first, end) that have pages.
func (st *Store) changeExisting(c *pageChange, first, end uint32) error {
	chunks, _ := c.layer.chunksIn(first, end)
	for _, ch := range chunks {
		off := int64(ch.index) * store.ChunkSize
		if err := st.changeSparse(c, off, off+store.ChunkSize); err != nil {
			return err
		}
	}
	return nil
}

// recordWide logs one statement about whole chunks. The layer's exclusive lock
// is held for writing.
func (st *Store) recordWide(c *pageChange, first, end uint32) error {
	r := newRequest()
	r.need = forFacts
	r.add(record{kind: recWide, flags: uint8(c.kind), layer: c.layer.id, page: uint64(first), count: end - first,
		version: c.version, extra: uint64(c.below)})
	r.meta = func() { st.applyWide(c.layer, &r.recs[0]) }
	return st.commit(r)
}

// applyWide enters a recWide record; it has the index's mutex.
func (st *Store) applyWide(l *layer, rec *record) {
	w := &wide{kind: store.Kind(rec.flags), version: rec.version, pos: rec.pos,
		killers: []killer{{rec.pos, store.Version(rec.extra)}}}
	first := uint32(rec.page)
	st.sweeps.add(l.state(first, first+rec.count, w))
	st.poke()
}

// Stable implements store.Replica.
func (r *replica) Stable(ctx context.Context, id store.LayerID, stable, settled store.Version) error {
	if settled > stable {
		return fail("stable", id, -1, invalid("settled %v is above stable %v", settled, stable))
	}
	if err := r.enter(ctx); err != nil {
		return fail("stable", id, -1, err)
	}
	defer r.leave()
	l, err := r.st.tables.layer(id)
	if err != nil {
		return fail("stable", id, -1, err)
	}
	raise(&l.stable, uint64(stable))
	raise(&l.settled, uint64(settled))
	l.marksChanged.Store(true)
	return nil
}

// Unstable implements store.Replica.
func (r *replica) Unstable(ctx context.Context, id store.LayerID) iter.Seq2[store.Extent, error] {
	return func(yield func(store.Extent, error) bool) {
		l, err := r.layer(ctx, id)
		if err != nil {
			yield(store.Extent{}, fail("unstable", id, -1, err))
			return
		}
		since := store.Version(l.stable.Load())
		r.Extents(ctx, id, 0, store.MaxVolumeSize, since)(yield)
	}
}

// Drop implements store.Store. Whole chunks become absent, whatever version
// they have; a layer that is dropped as a whole is unknown from then on.
func (st *Store) Drop(ctx context.Context, id store.LayerID, chunks store.Chunks) error {
	if chunks.First >= chunks.End {
		return fail("drop", id, -1, invalid("chunks %v", chunks))
	}
	if err := st.enter(ctx); err != nil {
		return fail("drop", id, -1, err)
	}
	defer st.gate.RUnlock()
	l := st.lockLayer(id)
	defer l.exclusive.Unlock()
	r := newRequest()
	r.need = forFacts
	r.add(record{kind: recWide, flags: uint8(store.Absent), layer: id, page: uint64(chunks.First), count: chunks.End - chunks.First,
		extra: uint64(anyVersion)})
	r.meta = func() {
		st.applyWide(l, &r.recs[0])
		if chunks.All() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.known, l.parent = false, 0
		}
	}
	err := st.commitDurable(r)
	if err == nil {
		err = st.sweepSoon()
	}
	return fail("drop", id, -1, err)
}
