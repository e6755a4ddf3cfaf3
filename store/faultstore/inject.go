package faultstore

import (
	"context"
	"fmt"
	"slices"

	"torus/store"
)

// A life is the store as it was when a request, or an attachment, began. It is
// a value: what was attached before Reopen stays with the store of before.
type life struct {
	store       *Store
	inner       store.Store
	crashed     chan struct{}
	failedSyncs uint64
}

func (s *Store) life() life {
	s.mu.Lock()
	defer s.mu.Unlock()
	return life{s, s.inner, s.crashed, s.failedSyncs}
}

// incarnation returns another one after each failed sync.
func (l life) incarnation(inner store.Incarnation) store.Incarnation {
	return inner ^ store.Incarnation(l.failedSyncs*0x9e3779b97f4a7c15)
}

// A request is what faults are chosen by.
type request struct {
	op     Op
	layers []store.LayerID
	off, n int64 // bytes; n 0: it has no range
}

// isFor says whether the fault is for such requests.
func (f *Fault) isFor(q request) bool {
	return f.Ops&q.op != 0 &&
		(f.Layer == 0 || slices.Contains(q.layers, f.Layer)) &&
		(f.End == 0 || f.Off < q.off+q.n && q.off < f.End)
}

// befalling counts the request and returns the faults that befall it.
func (s *Store) befalling(q request) []*active {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*active
	for _, f := range s.faults {
		if !f.isFor(q) {
			continue
		}
		f.seen++
		if n := f.seen - f.After; n > 0 && (f.Times == 0 || n <= f.Times) {
			found = append(found, f)
		}
	}
	return found
}

// do carries a request out, or what a fault makes of it.
func (l life) do(ctx context.Context, q request, whole func() error) error {
	found, err := l.begin(ctx, q)
	if err != nil {
		return err
	}
	return l.carry(ctx, q, found, whole, nil)
}

// begin returns the faults that befall a request, and has waited where they
// make it wait.
func (l life) begin(ctx context.Context, q request) ([]*active, error) {
	if l.hasCrashed() {
		return nil, l.failed(q, store.ErrFailed)
	}
	if err := ctx.Err(); err != nil {
		return nil, l.failed(q, err)
	}
	found := l.store.befalling(q)
	for _, f := range found {
		if err := l.wait(ctx, f); err != nil {
			return nil, l.failed(q, err)
		}
	}
	return found, nil
}

// carry does what comes after the waiting. half carries out half of the
// request; it is nil where there is no such thing.
func (l life) carry(ctx context.Context, q request, found []*active, whole, half func() error) error {
	for _, f := range found {
		switch {
		case f.Effect == Delay || f.Effect == Hang && !f.Applied || f.Effect == Corrupt:
			continue
		case f.Applied:
			if err := whole(); err != nil {
				return err
			}
		case f.Effect == Tear && half != nil:
			if err := half(); err != nil {
				return err
			}
		}
		return l.befall(ctx, q, f)
	}
	return whole()
}

// wait does what of the fault comes before the request.
func (l life) wait(ctx context.Context, f *active) error {
	var err error
	switch {
	case f.Effect == Delay:
		err = l.store.options.Sleep(ctx, f.Delay)
	case f.Effect == Hang && !f.Applied:
		err = l.hang(ctx, f)
	}
	if l.hasCrashed() {
		return store.ErrFailed
	}
	return err
}

func (l life) hang(ctx context.Context, f *active) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-l.crashed:
		return store.ErrFailed
	case <-f.removed:
		return nil
	}
}

// befall does what of the fault comes instead of the request, or of its answer.
func (l life) befall(ctx context.Context, q request, f *active) error {
	switch f.Effect {
	case Hang:
		if err := l.hang(ctx, f); err != nil {
			return l.failed(q, err)
		}
		return nil
	case Crash:
		l.store.Crash()
	case Fail, Tear:
		if q.op == Sync && f.normal().Err == store.ErrFailed {
			l.store.failSync()
		}
	}
	err := f.normal().Err
	if err == nil {
		err = store.ErrFailed
	}
	return l.failed(q, fmt.Errorf("%w (injected: %v)", err, f.Fault))
}

func (l life) hasCrashed() bool {
	select {
	case <-l.crashed:
		return true
	default:
		return false
	}
}

func (s *Store) failSync() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failedSyncs++
}

// failed says what was done to what.
func (l life) failed(q request, err error) error {
	if len(q.layers) == 0 {
		return err
	}
	return &store.Error{Op: q.op.String(), Layer: q.layers[0], Off: q.off, Err: err}
}
