// Package faultstore wraps a store and lets it fail: errors, delays, lost
// answers, torn writes, corrupt pages, crashes. A fault is a value that prints
// itself ("writes fail after 3") and parses back, so that a failing run can be
// written down as a test. Faults are counted, never random, and can be changed
// at run time; without any the store is what it wraps.
package faultstore

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"torus/store"
)

var _ store.Store = (*Store)(nil)

// Options are what a store does beyond the store it wraps. The zero value will
// do where nothing crashes.
type Options struct {
	// Sleep waits for d, or until ctx is done, whose error it returns. Nil is
	// the package time, which testing/synctest knows.
	Sleep func(ctx context.Context, d time.Duration) error
	// Cut is what a crash does to the machine beneath: with a memstore disk,
	// its PowerCut or Kill. It is called with no request let in any more.
	Cut func()
}

// A Store is a store with faults. All of its methods may be called
// concurrently.
type Store struct {
	options Options

	mu          sync.Mutex // guards all below; held over no request
	inner       store.Store
	faults      []*active
	crashed     chan struct{} // closed by Crash, new after Reopen
	failedSyncs uint64        // each makes another incarnation
}

// An active fault counts.
type active struct {
	Fault
	seen    int           // requests that it was for
	removed chan struct{} // closed when the fault is gone
	healed  []region      // of Corrupt: what was written since
}

// A region is bytes of a layer.
type region struct {
	layer    store.LayerID
	off, end int64
}

// New wraps inner, which the Store owns from now on.
func New(inner store.Store, o Options) *Store {
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	return &Store{options: o, inner: inner, crashed: make(chan struct{})}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Inject adds faults, for requests that begin from now on. Where several befall
// one request it waits for all that make it wait, in their order, and then the
// first of the others decides. A malformed fault panics.
func (s *Store) Inject(faults ...Fault) {
	for _, f := range faults {
		if err := f.check(); err != nil {
			panic(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		s.faults = append(s.faults, &active{Fault: f, removed: make(chan struct{})})
	}
}

// Faults returns the faults that are there, used up or not, in their order.
func (s *Store) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	var faults []Fault
	for _, f := range s.faults {
		faults = append(faults, f.Fault)
	}
	return faults
}

// Remove takes away the faults that equal f. What hangs because of them goes on.
func (s *Store) Remove(f Fault) { s.remove(func(here Fault) bool { return here == f }) }

// Clear takes away all faults. What hangs because of them goes on.
func (s *Store) Clear() { s.remove(func(Fault) bool { return true }) }

func (s *Store) remove(gone func(Fault) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []*active
	for _, f := range s.faults {
		if gone(f.Fault) {
			close(f.removed)
		} else {
			left = append(left, f)
		}
	}
	s.faults = left
}

// Crash makes every call fail with ErrFailed, those that wait included, until
// Reopen; beneath, Options.Cut happens. The faults stay.
func (s *Store) Crash() {
	s.mu.Lock()
	select {
	case <-s.crashed:
		s.mu.Unlock()
		return
	default:
	}
	close(s.crashed)
	s.mu.Unlock()
	if s.options.Cut != nil {
		s.options.Cut()
	}
}

// Reopen goes on with what is on the machine after a crash, a kill or Close.
// Replicas of before stay bound to the store that there was.
func (s *Store) Reopen(inner store.Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inner = inner
	select {
	case <-s.crashed:
		s.crashed = make(chan struct{})
	default:
	}
}

// Attach implements store.Store.
func (s *Store) Attach(ctx context.Context, vol store.VolumeID, e store.Epoch) (r store.Replica, err error) {
	l := s.life()
	err = l.do(ctx, request{op: Attach}, func() error {
		inner, err := l.inner.Attach(ctx, vol, e)
		if err == nil {
			r = &replica{life: l, beneath: inner}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach volume %v: %w", vol, err)
	}
	return r, nil
}

// ReadSealed implements store.Store. Where a page comes from isn't known here:
// for Corrupt each is taken to be of the fault's layer, or the chain's first.
func (s *Store) ReadSealed(ctx context.Context, chain []store.LayerID, off int64, p []byte) error {
	l := s.life()
	q := request{op: Read, layers: chain, off: off, n: int64(len(p))}
	found, err := l.begin(ctx, q)
	if err != nil {
		return err
	}
	return l.carry(ctx, q, found, func() error {
		if err := l.inner.ReadSealed(ctx, chain, off, p); err != nil {
			return err
		}
		return s.corrupted(found, q, infoOfChain(found, q), p)
	}, nil)
}

// Drop implements store.Store.
func (s *Store) Drop(ctx context.Context, layer store.LayerID, chunks store.Chunks) error {
	l := s.life()
	return l.do(ctx, request{op: Drop, layers: []store.LayerID{layer}}, func() error {
		return l.inner.Drop(ctx, layer, chunks)
	})
}

// Forget implements store.Store.
func (s *Store) Forget(ctx context.Context, vol store.VolumeID) error {
	l := s.life()
	return l.do(ctx, request{op: Forget}, func() error { return l.inner.Forget(ctx, vol) })
}

// Layers implements store.Store.
func (s *Store) Layers(ctx context.Context) iter.Seq2[store.LayerInfo, error] {
	return func(yield func(store.LayerInfo, error) bool) {
		l := s.life()
		list(ctx, l, request{op: List}, func() iter.Seq2[store.LayerInfo, error] { return l.inner.Layers(ctx) }, yield)
	}
}

// Fences implements store.Store.
func (s *Store) Fences(ctx context.Context) iter.Seq2[store.Fence, error] {
	return func(yield func(store.Fence, error) bool) {
		l := s.life()
		list(ctx, l, request{op: List}, func() iter.Seq2[store.Fence, error] { return l.inner.Fences(ctx) }, yield)
	}
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context) (st store.Stat, err error) {
	l := s.life()
	err = l.do(ctx, request{op: Stat}, func() error {
		st, err = l.inner.Stat(ctx)
		st.Incarnation = l.incarnation(st.Incarnation)
		return err
	})
	return st, err
}

// Close implements store.Store. No fault befalls it.
func (s *Store) Close() error { return s.life().inner.Close() }

// A doer carries out requests, or what faults make of them: a life or a replica.
type doer interface {
	do(ctx context.Context, q request, whole func() error) error
}

// list yields what seq does, and the error if a fault befalls the request. A
// fault after it was carried out shows only if the caller didn't break.
func list[T any](ctx context.Context, d doer, q request, seq func() iter.Seq2[T, error], yield func(T, error) bool) {
	broken := false
	err := d.do(ctx, q, func() error {
		for v, err := range seq() {
			if !yield(v, err) {
				broken = true
				break
			}
		}
		return nil
	})
	if err != nil && !broken {
		var none T
		yield(none, err)
	}
}
