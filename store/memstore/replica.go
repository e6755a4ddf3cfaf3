package memstore

import (
	"context"
	"fmt"
	"iter"

	"torus/store"
)

var _ store.Replica = (*replica)(nil)

// A replica is one attachment. The incarnation of a Store doesn't change during
// its life, so nothing here returns ErrIncarnation.
type replica struct {
	store *Store
	fence *fence
	epoch store.Epoch
}

// begin lets a request in if its epoch holds (I1). Unless it returns an error
// the caller calls finish when the request has been applied.
func (r *replica) begin(ctx context.Context) error {
	if err := r.store.begin(ctx); err != nil {
		return err
	}
	r.fence.mu.RLock()
	err := r.check()
	if err != nil {
		r.finish()
	}
	return err
}

// check says whether the epoch still holds. The caller holds the fence.
func (r *replica) check() error {
	switch f := r.fence; {
	case f.gone:
		return fmt.Errorf("volume %v was forgotten: %w", f.volume, store.ErrFenced)
	case f.epoch > r.epoch:
		return &store.FencedError{Volume: f.volume, Epoch: r.epoch, Recorded: f.epoch}
	}
	return nil
}

func (r *replica) finish() {
	r.fence.mu.RUnlock()
	r.store.life.RUnlock()
}

// with runs do on a known layer, within the fence.
func (r *replica) with(ctx context.Context, id store.LayerID, do func(*layer)) error {
	if err := r.begin(ctx); err != nil {
		return err
	}
	defer r.finish()
	l := r.store.disk.layer(id)
	if l == nil {
		return store.ErrUnknownLayer
	}
	do(l)
	return nil
}

// Incarnation implements store.Replica.
func (r *replica) Incarnation() store.Incarnation { return r.store.incarnation }

// Create implements store.Replica.
func (r *replica) Create(ctx context.Context, id, parent store.LayerID) error {
	if id == 0 || id == parent {
		return failed("create", []store.LayerID{id}, -1,
			fmt.Errorf("%w: layer %v over parent %v", store.ErrInvalid, id, parent))
	}
	if err := r.begin(ctx); err != nil {
		return failed("create", []store.LayerID{id}, -1, err)
	}
	defer r.finish()
	d := r.store.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.layers[id] == nil {
		d.layers[id] = newLayer(id, parent, d.rng != nil)
	}
	return nil
}

// Write implements store.Replica.
func (r *replica) Write(ctx context.Context, id store.LayerID, off int64, p []byte, v store.Version, f store.Flags) error {
	err := checkIO(off, len(p))
	if err == nil {
		err = checkFlags(f)
	}
	if err == nil {
		err = r.with(ctx, id, func(l *layer) {
			l.write(off/store.PageSize, p, v, f)
			r.store.writes.Add(1)
			r.store.bytesWritten.Add(int64(len(p)))
		})
	}
	return failed("write", []store.LayerID{id}, off, err)
}

// Zero implements store.Replica.
func (r *replica) Zero(ctx context.Context, id store.LayerID, off, n int64, v store.Version, f store.Flags) error {
	err := store.CheckRange(off, n)
	if err == nil {
		err = checkFlags(f)
	}
	if err == nil {
		err = r.with(ctx, id, func(l *layer) {
			l.zero(off/store.PageSize, (off+n)/store.PageSize, v, f)
			r.store.writes.Add(1)
		})
	}
	return failed("zero", []store.LayerID{id}, off, err)
}

// Read implements store.Replica.
func (r *replica) Read(ctx context.Context, chain []store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	if err := checkRead(off, p, info); err != nil {
		return failed("read", chain, off, err)
	}
	if err := r.begin(ctx); err != nil {
		return failed("read", chain, off, err)
	}
	defer r.finish()
	return r.store.read(chain, off, p, info)
}

// read reads within what begin let in.
func (s *Store) read(chain []store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	var one [1]store.PageInfo
	pages := len(p) / store.PageSize
	switch {
	case info != nil:
		info = info[:pages]
	case pages == 1:
		info = one[:]
	default:
		info = make([]store.PageInfo, pages)
	}
	clear(info)
	clear(p)
	for _, id := range chain {
		l := s.disk.layer(id)
		if l == nil {
			return &store.Error{Op: "read", Layer: id, Off: off, Err: store.ErrUnknownLayer}
		}
		l.read(off/store.PageSize, p, info)
	}
	s.reads.Add(1)
	s.bytesRead.Add(int64(len(p)))
	return nil
}

// Sync implements store.Replica.
func (r *replica) Sync(ctx context.Context) error {
	if err := r.begin(ctx); err != nil {
		return fmt.Errorf("sync volume %v: %w", r.fence.volume, err)
	}
	defer r.finish()
	r.store.syncAll()
	r.store.syncs.Add(1)
	return nil
}

// Extents implements store.Replica.
func (r *replica) Extents(ctx context.Context, id store.LayerID, off, n int64, since store.Version) iter.Seq2[store.Extent, error] {
	return func(yield func(store.Extent, error) bool) {
		if err := store.CheckRange(off, n); err != nil {
			yield(store.Extent{}, failed("extents", []store.LayerID{id}, off, err))
			return
		}
		r.extents(ctx, id, off, n, &since, yield)
	}
}

// Unstable implements store.Replica.
func (r *replica) Unstable(ctx context.Context, id store.LayerID) iter.Seq2[store.Extent, error] {
	return func(yield func(store.Extent, error) bool) {
		r.extents(ctx, id, 0, store.MaxVolumeSize, nil, yield)
	}
}

// extents yields in batches; the fence is asked again for each of them, and not
// held while the caller does what it likes.
func (r *replica) extents(ctx context.Context, id store.LayerID, off, n int64, since *store.Version, yield func(store.Extent, error) bool) {
	first, end := off/store.PageSize, (off+n)/store.PageSize
	for first < end {
		var found []store.Extent
		err := r.with(ctx, id, func(l *layer) { found, first = l.extents(first, end, since) })
		if err != nil {
			yield(store.Extent{}, failed("extents", []store.LayerID{id}, first*store.PageSize, err))
			return
		}
		for _, e := range found {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Adopt implements store.Replica.
func (r *replica) Adopt(ctx context.Context, id store.LayerID, e store.Extent, p []byte) error {
	err := checkAdopt(e, p)
	if err == nil {
		err = r.with(ctx, id, func(l *layer) { l.adopt(e, p, r.epoch) })
	}
	return failed("adopt", []store.LayerID{id}, e.Off, err)
}

// Stable implements store.Replica.
func (r *replica) Stable(ctx context.Context, id store.LayerID, stable, settled store.Version) error {
	var err error
	if settled > stable {
		err = fmt.Errorf("%w: settled %v is above stable %v", store.ErrInvalid, settled, stable)
	}
	if err == nil {
		err = r.with(ctx, id, func(l *layer) { l.raise(stable, settled) })
	}
	return failed("stable", []store.LayerID{id}, -1, err)
}
