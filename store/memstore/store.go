package memstore

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"torus/store"
)

var _ store.Store = (*Store)(nil)

// A Store is the process that has a Disk, from Disk.Open to Close, Disk.Kill or
// Disk.PowerCut; after these all of its methods return ErrClosed.
type Store struct {
	disk        *Disk
	incarnation store.Incarnation

	life  sync.RWMutex // held for reading by each request
	ended bool         // guarded by life

	writes, reads, syncs    atomic.Int64
	bytesWritten, bytesRead atomic.Int64
}

// A fence is the highest epoch of a volume. Requests hold it for reading, so
// that who holds it for writing knows that none is under way (N1).
type fence struct {
	volume store.VolumeID

	mu    sync.RWMutex
	epoch store.Epoch // 0: not attached yet
	gone  bool        // forgotten
}

// Attach implements store.Store.
func (s *Store) Attach(ctx context.Context, vol store.VolumeID, e store.Epoch) (store.Replica, error) {
	if e < 1 || e > store.MaxEpoch {
		return nil, fmt.Errorf("attach volume %v: %w: epoch %v is not in [1, %v]", vol, store.ErrInvalid, e, store.MaxEpoch)
	}
	if err := s.begin(ctx); err != nil {
		return nil, fmt.Errorf("attach volume %v: %w", vol, err)
	}
	defer s.life.RUnlock()
	for {
		f := s.disk.fence(vol)
		if raised, err := f.raise(e); err != nil {
			return nil, err
		} else if raised {
			return &replica{store: s, fence: f, epoch: e}, nil
		}
	}
}

// raise returns false if the fence was forgotten meanwhile.
func (f *fence) raise(e store.Epoch) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return false, nil
	}
	if e < f.epoch {
		return false, &store.FencedError{Volume: f.volume, Epoch: e, Recorded: f.epoch}
	}
	f.epoch = e
	return true, nil
}

// ReadSealed implements store.Store.
func (s *Store) ReadSealed(ctx context.Context, chain []store.LayerID, off int64, p []byte) error {
	if err := checkRead(off, p, nil); err != nil {
		return failed("read", chain, off, err)
	}
	if err := s.begin(ctx); err != nil {
		return failed("read", chain, off, err)
	}
	defer s.life.RUnlock()
	return s.read(chain, off, p, nil)
}

// Drop implements store.Store.
func (s *Store) Drop(ctx context.Context, id store.LayerID, chunks store.Chunks) error {
	if err := s.begin(ctx); err != nil {
		return &store.Error{Op: "drop", Layer: id, Off: -1, Err: err}
	}
	defer s.life.RUnlock()
	if chunks.All() {
		s.disk.mu.Lock()
		defer s.disk.mu.Unlock()
		delete(s.disk.layers, id)
		return nil
	}
	if l := s.disk.layer(id); l != nil {
		l.drop(chunks)
	}
	return nil
}

// Forget implements store.Store.
func (s *Store) Forget(ctx context.Context, vol store.VolumeID) error {
	if err := s.begin(ctx); err != nil {
		return fmt.Errorf("forget volume %v: %w", vol, err)
	}
	defer s.life.RUnlock()
	f := s.disk.fence(vol)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	if s.disk.fences[vol] == f {
		delete(s.disk.fences, vol)
	}
	return nil
}

// Layers implements store.Store.
func (s *Store) Layers(ctx context.Context) iter.Seq2[store.LayerInfo, error] {
	return func(yield func(store.LayerInfo, error) bool) {
		if err := s.begin(ctx); err != nil {
			yield(store.LayerInfo{}, fmt.Errorf("list layers: %w", err))
			return
		}
		layers := s.disk.layersNow()
		s.life.RUnlock()
		for _, l := range layers {
			if !yield(l.info(), nil) {
				return
			}
		}
	}
}

// Fences implements store.Store.
func (s *Store) Fences(ctx context.Context) iter.Seq2[store.Fence, error] {
	return func(yield func(store.Fence, error) bool) {
		if err := s.begin(ctx); err != nil {
			yield(store.Fence{}, fmt.Errorf("list fences: %w", err))
			return
		}
		fences := s.disk.fencesNow()
		s.life.RUnlock()
		for _, f := range fences {
			if !yield(f, nil) {
				return
			}
		}
	}
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context) (store.Stat, error) {
	if err := s.begin(ctx); err != nil {
		return store.Stat{}, fmt.Errorf("stat: %w", err)
	}
	defer s.life.RUnlock()
	st := store.Stat{
		Identity:     s.disk.identity,
		Incarnation:  s.incarnation,
		Capacity:     store.MaxVolumeSize,
		Writes:       s.writes.Load(),
		Reads:        s.reads.Load(),
		Syncs:        s.syncs.Load(),
		BytesWritten: s.bytesWritten.Load(),
		BytesRead:    s.bytesRead.Load(),
	}
	for _, l := range s.disk.layersNow() {
		st.Live += l.info().Bytes
	}
	st.Used = st.Live
	return st, nil
}

// Close implements store.Store. Closing twice is no error.
func (s *Store) Close() error {
	if s.end() {
		s.syncAll()
	}
	return nil
}

// end lets the requests under way finish and refuses all later ones. It
// returns whether this call was what ended the store.
func (s *Store) end() bool {
	s.life.Lock()
	defer s.life.Unlock()
	ended := s.ended
	s.ended = true
	return !ended
}

// begin lets a request in. Unless it returns an error the caller holds life
// for reading.
func (s *Store) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.life.RLock()
	if s.ended {
		s.life.RUnlock()
		return store.ErrClosed
	}
	return nil
}

func (s *Store) syncAll() {
	for _, l := range s.disk.layersNow() {
		l.sync()
	}
}

// fence returns the fence of vol, made if it isn't there.
func (d *Disk) fence(vol store.VolumeID) *fence {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.fences[vol]
	if f == nil {
		f = &fence{volume: vol}
		d.fences[vol] = f
	}
	return f
}

// layer returns nil for one that isn't known.
func (d *Disk) layer(id store.LayerID) *layer {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.layers[id]
}

func (d *Disk) layersNow() []*layer {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.layersInOrder()
}

// layersInOrder returns the layers by ID. The caller holds mu.
func (d *Disk) layersInOrder() []*layer {
	var layers []*layer
	for _, id := range slices.Sorted(maps.Keys(d.layers)) {
		layers = append(layers, d.layers[id])
	}
	return layers
}

func (d *Disk) fencesNow() []store.Fence {
	d.mu.RLock()
	records := slices.Collect(maps.Values(d.fences))
	d.mu.RUnlock()
	var fences []store.Fence
	for _, f := range records {
		f.mu.RLock()
		if f.epoch != 0 && !f.gone {
			fences = append(fences, store.Fence{Volume: f.volume, Epoch: f.epoch})
		}
		f.mu.RUnlock()
	}
	return fences
}
