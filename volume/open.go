package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"torus/ring"
	"torus/store"
)

// Defaults of Options.
const (
	defaultSyncBytes = 64 << 20
	defaultSyncEvery = 5 * time.Second
)

// Open fences the volume on every node against all lower epochs, makes the head
// layer known where it is not, makes durable what an earlier attachment left,
// and serves. ctx bounds the opening only. Every node must answer.
//
// store.ErrFenced if a node knows a higher epoch, store.ErrInvalid for options
// out of bounds, or an epoch that has been used. Where an earlier attachment did
// not end with Close, copies of what it had not acknowledged may differ; with
// one copy there is nothing to differ from.
func Open(ctx context.Context, o Options) (*Volume, error) {
	if err := o.complete(); err != nil {
		return nil, &Error{Op: "open", Volume: o.ID, N: -1, Err: err}
	}
	v := &Volume{
		id:       o.ID,
		epoch:    o.Epoch,
		chain:    slices.Clone(o.Chain),
		size:     o.Size,
		readOnly: o.ReadOnly,
		log:      o.Logger,
		gate:     newGate(),
		flight:   newFlight(o.Epoch),
	}
	if err := v.attach(ctx, o); err != nil {
		return nil, v.wrap("open", 0, -1, err)
	}
	v.ctx, v.cancel = context.WithCancel(context.WithoutCancel(ctx))
	v.flush.init()
	v.settle.init(o.SyncBytes, o.SyncEvery)
	if !v.readOnly {
		v.settle.running.Go(v.settleLoop)
	}
	return v, nil
}

// complete checks the options and fills in defaults.
func (o *Options) complete() error {
	o.MinCopies = cmp.Or(o.MinCopies, 1)
	o.SyncBytes = cmp.Or(o.SyncBytes, defaultSyncBytes)
	o.SyncEvery = cmp.Or(o.SyncEvery, defaultSyncEvery)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Epoch == 0 || o.Epoch > store.MaxEpoch:
		return fmt.Errorf("%w: epoch %v is not in [1, %v]", store.ErrInvalid, o.Epoch, store.MaxEpoch)
	case len(o.Chain) == 0 || slices.Contains(o.Chain, 0):
		return fmt.Errorf("%w: chain %v has no layer or layer 0", store.ErrInvalid, o.Chain)
	case o.Size <= 0 || o.Size%store.PageSize != 0 || o.Size > store.MaxVolumeSize:
		return fmt.Errorf("%w: size %d is not a multiple of %d in [%d, %d]", store.ErrInvalid,
			o.Size, store.PageSize, store.PageSize, int64(store.MaxVolumeSize))
	case len(o.Stores) == 0:
		return fmt.Errorf("%w: no stores", store.ErrInvalid)
	case o.Place == nil && len(o.Stores) > 1:
		return fmt.Errorf("%w: %d stores and no placement", store.ErrInvalid, len(o.Stores))
	case o.MinCopies < 1 || o.MinCopies > len(o.Stores):
		return fmt.Errorf("%w: min-copies %d is not in [1, %d], the number of stores", store.ErrInvalid,
			o.MinCopies, len(o.Stores))
	case o.SyncBytes < 0 || o.SyncEvery < 0:
		return fmt.Errorf("%w: sync every %d bytes, %v", store.ErrInvalid, o.SyncBytes, o.SyncEvery)
	}
	return nil
}

// attach fences every node and makes it ready to serve. A node that fails makes
// the others' work vain, not wrong: a fence is only ever raised.
func (v *Volume) attach(ctx context.Context, o Options) error {
	ids := make([]ring.NodeID, 0, len(o.Stores))
	for id := range o.Stores {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	nodes, errs := make([]*node, len(ids)), make([]error, len(ids))
	each := func(do func(i int) error) error {
		parallel(len(ids), maxCalls, func(i int) {
			if err := do(i); err != nil {
				errs[i] = fmt.Errorf("node %v: %w", ids[i], err)
			}
		})
		return errors.Join(errs...)
	}
	// All fences stand before anything is asked: what a node answers then is
	// what it has, no lower epoch adds to it.
	err := each(func(i int) error {
		r, err := o.Stores[ids[i]].Attach(ctx, v.id, v.epoch)
		nodes[i] = &node{id: ids[i], replica: r}
		return err
	})
	if err != nil {
		return err
	}
	// The reconcile of copies that a crash left unequal has its place here.
	if err := each(func(i int) error { return v.prepare(ctx, o.Stores[ids[i]], nodes[i].replica) }); err != nil {
		return err
	}
	return v.place.init(o, nodes)
}

// prepare makes the head known on a node, refuses an epoch that was used, and
// makes durable what earlier attachments left: the first stable mark of this
// one will say that it is.
func (v *Volume) prepare(ctx context.Context, s store.Store, r store.Replica) error {
	head, parent := v.chain[0], store.LayerID(0)
	if len(v.chain) > 1 {
		parent = v.chain[1]
	}
	if err := r.Create(ctx, head, parent); err != nil {
		return err
	}
	if err := v.checkUnused(ctx, s, r); err != nil {
		return err
	}
	return r.Sync(ctx)
}

// checkUnused refuses an epoch under which the head was written before: its
// versions would begin again, and the node would take the new writes for old
// ones and drop them (N4). Each version on a node is at or below its stable
// mark, or unstable.
func (v *Volume) checkUnused(ctx context.Context, s store.Store, r store.Replica) error {
	highest := store.Version(0)
	for e, err := range r.Unstable(ctx, v.chain[0]) {
		if err != nil {
			return err
		}
		highest = max(highest, e.Version)
	}
	for l, err := range s.Layers(ctx) {
		if err != nil {
			return err
		}
		if l.ID == v.chain[0] {
			highest = max(highest, l.Stable)
		}
	}
	if highest.Epoch() >= v.epoch {
		return fmt.Errorf("%w: epoch %v was used before: the head has version %v", store.ErrInvalid, v.epoch, highest)
	}
	return nil
}
