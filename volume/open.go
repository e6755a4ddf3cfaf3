package volume

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
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
// layer known where it is not, brings the copies to one value where the last
// attachment did not end cleanly (I6), makes it durable, has Options.Records
// record that, and serves. A node that can't be reached, or is started anew
// meanwhile, is tried again: for some seconds if each chunk has a copy without it
// that has all, then it is left out and recorded stale; else until ctx ends. ctx
// bounds the opening only. Copies that are stale are brought up to date while
// the volume serves.
//
// store.ErrFenced if a node knows a higher epoch, store.ErrInvalid for options
// out of bounds, or an epoch that has been used, ErrNoCopy if some chunk has no
// copy in sync left, also ErrOtherStore if that is as nodes have not the stores
// that were recorded. ErrAgain: to be opened under a new epoch.
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
		records:  o.Records,
		held:     o.Held,
		dial:     o.Dial,
		pace:     o.Pace,
		moving:   len(o.Targets) > 0,
	}
	v.adopted.Store(o.KeepHoles)
	v.ctx, v.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := v.attach(ctx, o); err != nil {
		v.cancel()
		return nil, v.wrap("open", 0, -1, err)
	}
	v.flush.init()
	v.settle.init(o.SyncBytes, o.SyncEvery)
	if !o.Clean {
		// All that earlier epochs wrote is equal and durable now. Not before it is
		// recorded which copies that holds for, or a later attachment could count
		// on one that this one did not bring up to date.
		if err := v.tell(store.NewVersion(v.epoch, 0)); err != nil {
			v.cancel()
			return nil, v.wrap("open", 0, -1, err)
		}
	}
	v.pace.join(v)
	v.tendAll()
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
	if o.Dial == nil {
		stores := o.Stores
		o.Dial = func(_ context.Context, id ring.NodeID) (store.Store, error) { return stores[id], nil }
	}
	if o.Pace == nil {
		o.Pace = NewPace(nil)
	}
	if len(o.Nodes) == 0 {
		o.Nodes = slices.Sorted(maps.Keys(o.Stores))
	}
	if o.CompareAll {
		o.Clean, o.Recorded = false, nil
	}
	switch {
	case o.Epoch == 0 || o.Epoch > store.MaxEpoch:
		return fmt.Errorf("%w: epoch %v is not in [1, %v]", store.ErrInvalid, o.Epoch, store.MaxEpoch)
	case len(o.Chain) == 0 || slices.Contains(o.Chain, 0):
		return fmt.Errorf("%w: chain %v has no layer or layer 0", store.ErrInvalid, o.Chain)
	case o.Size <= 0 || o.Size%store.PageSize != 0 || o.Size > store.MaxVolumeSize:
		return fmt.Errorf("%w: size %d is not a multiple of %d in [%d, %d]", store.ErrInvalid,
			o.Size, store.PageSize, store.PageSize, int64(store.MaxVolumeSize))
	case len(o.Nodes) == 0:
		return fmt.Errorf("%w: no stores", store.ErrInvalid)
	case o.Place == nil && len(o.Nodes) > 1:
		return fmt.Errorf("%w: %d stores and no placement", store.ErrInvalid, len(o.Nodes))
	case o.MinCopies < 1 || o.MinCopies > len(o.Nodes)-len(o.Targets):
		return fmt.Errorf("%w: min-copies %d is not in [1, %d], the number of stores", store.ErrInvalid,
			o.MinCopies, len(o.Nodes)-len(o.Targets))
	case len(o.Targets) > 0 && o.Records == nil:
		return fmt.Errorf("%w: copies of a target, and no records", store.ErrInvalid)
	case o.SyncBytes < 0 || o.SyncEvery < 0:
		return fmt.Errorf("%w: sync every %d bytes, %v", store.ErrInvalid, o.SyncBytes, o.SyncEvery)
	}
	return nil
}
