package faultstore

import (
	"context"
	"iter"

	"torus/store"
)

var _ store.Replica = (*replica)(nil)

type replica struct {
	life
	beneath store.Replica
}

// sound is the last check before a request goes on: what waited while a sync
// failed must not be let in (N2).
func (r *replica) sound(q request) error {
	if r.store.life().failedSyncs != r.failedSyncs {
		return r.failed(q, store.ErrIncarnation)
	}
	return nil
}

// do is life.do within the incarnation.
func (r *replica) do(ctx context.Context, q request, whole func() error) error {
	return r.change(ctx, q, whole, nil)
}

// change is do for what can be torn.
func (r *replica) change(ctx context.Context, q request, whole, half func() error) error {
	found, err := r.begin(ctx, q)
	if err != nil {
		return err
	}
	if err := r.sound(q); err != nil {
		return err
	}
	return r.carry(ctx, q, found, whole, half)
}

// halfOf returns the length of the first half of a range, in bytes.
func halfOf(n int64) int64 { return n / 2 / store.PageSize * store.PageSize }

// Incarnation implements store.Replica.
func (r *replica) Incarnation() store.Incarnation { return r.incarnation(r.beneath.Incarnation()) }

// Create implements store.Replica.
func (r *replica) Create(ctx context.Context, layer, parent store.LayerID) error {
	q := request{op: Create, layers: []store.LayerID{layer}}
	return r.do(ctx, q, func() error { return r.beneath.Create(ctx, layer, parent) })
}

// Write implements store.Replica.
func (r *replica) Write(ctx context.Context, layer store.LayerID, off int64, p []byte, v store.Version, f store.Flags) error {
	q := request{op: Write, layers: []store.LayerID{layer}, off: off, n: int64(len(p))}
	write := func(p []byte) error {
		if err := r.beneath.Write(ctx, layer, off, p, v, f); err != nil {
			return err
		}
		r.store.heal(layer, off, int64(len(p)))
		return nil
	}
	return r.change(ctx, q, func() error { return write(p) }, func() error {
		if half := halfOf(q.n); half > 0 {
			return write(p[:half])
		}
		return nil
	})
}

// Zero implements store.Replica.
func (r *replica) Zero(ctx context.Context, layer store.LayerID, off, n int64, v store.Version, f store.Flags) error {
	q := request{op: Zero, layers: []store.LayerID{layer}, off: off, n: n}
	zero := func(n int64) error {
		if err := r.beneath.Zero(ctx, layer, off, n, v, f); err != nil {
			return err
		}
		r.store.heal(layer, off, n)
		return nil
	}
	return r.change(ctx, q, func() error { return zero(n) }, func() error {
		if half := halfOf(n); half > 0 {
			return zero(half)
		}
		return nil
	})
}

// Read implements store.Replica.
func (r *replica) Read(ctx context.Context, chain []store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	q := request{op: Read, layers: chain, off: off, n: int64(len(p))}
	found, err := r.begin(ctx, q)
	if err != nil {
		return err
	}
	if err := r.sound(q); err != nil {
		return err
	}
	return r.carry(ctx, q, found, func() error {
		if !wantsInfo(found) {
			return r.beneath.Read(ctx, chain, off, p, info)
		}
		if info == nil {
			info = make([]store.PageInfo, len(p)/store.PageSize)
		}
		if err := r.beneath.Read(ctx, chain, off, p, info); err != nil {
			return err
		}
		return r.store.corrupted(found, q, info, p)
	}, nil)
}

// Sync implements store.Replica.
func (r *replica) Sync(ctx context.Context) error {
	return r.do(ctx, request{op: Sync}, func() error { return r.beneath.Sync(ctx) })
}

// Extents implements store.Replica.
func (r *replica) Extents(ctx context.Context, layer store.LayerID, off, n int64, since store.Version) iter.Seq2[store.Extent, error] {
	q := request{op: Extents, layers: []store.LayerID{layer}, off: off, n: n}
	return func(yield func(store.Extent, error) bool) {
		list(ctx, r, q, func() iter.Seq2[store.Extent, error] { return r.beneath.Extents(ctx, layer, off, n, since) }, yield)
	}
}

// Unstable implements store.Replica.
func (r *replica) Unstable(ctx context.Context, layer store.LayerID) iter.Seq2[store.Extent, error] {
	q := request{op: Unstable, layers: []store.LayerID{layer}}
	return func(yield func(store.Extent, error) bool) {
		list(ctx, r, q, func() iter.Seq2[store.Extent, error] { return r.beneath.Unstable(ctx, layer) }, yield)
	}
}

// Adopt implements store.Replica.
func (r *replica) Adopt(ctx context.Context, layer store.LayerID, e store.Extent, p []byte) error {
	q := request{op: Adopt, layers: []store.LayerID{layer}, off: e.Off, n: e.N}
	adopt := func(e store.Extent, p []byte) error {
		if err := r.beneath.Adopt(ctx, layer, e, p); err != nil {
			return err
		}
		r.store.heal(layer, e.Off, e.N)
		return nil
	}
	return r.change(ctx, q, func() error { return adopt(e, p) }, func() error {
		half := e
		if half.N = halfOf(e.N); half.N == 0 {
			return nil
		}
		if e.Kind == store.Data {
			return adopt(half, p[:min(half.N, int64(len(p)))])
		}
		return adopt(half, nil)
	})
}

// Stable implements store.Replica.
func (r *replica) Stable(ctx context.Context, layer store.LayerID, stable, settled store.Version) error {
	q := request{op: Stable, layers: []store.LayerID{layer}}
	return r.do(ctx, q, func() error { return r.beneath.Stable(ctx, layer, stable, settled) })
}
