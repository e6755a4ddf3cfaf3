package node

import (
	"context"
	"errors"
	"fmt"

	"torus/cluster"
	"torus/ring"
	"torus/store"
	"torus/volume"
)

// staleRecords are an attachment's records as a volume sees them.
type staleRecords struct {
	att *cluster.Attachment
	was *former
}

var _ volume.Records = staleRecords{}

// Serving implements volume.Records.
func (r staleRecords) Serving(ctx context.Context, f volume.Found) error {
	marks := make([]cluster.Stale, len(f.Stale))
	for i, s := range f.Stale {
		marks[i] = cluster.Stale{Layer: s.Layer, Node: s.Node, Since: s.Since, Why: s.Why}
	}
	if f.UnflushedGone {
		if err := r.was.mayHaveLost(); err != nil {
			return err
		}
		if err := r.att.TellLoss(ctx); err != nil {
			return outcome(err)
		}
	}
	return outcome(r.att.Serving(ctx, incarnations(f), marks))
}

// Stale implements volume.Records.
func (r staleRecords) Stale(ctx context.Context, n ring.NodeID, why string, since map[store.LayerID]store.Version) error {
	var marks []cluster.Stale
	for layer, version := range since {
		marks = append(marks, cluster.Stale{Layer: layer, Node: n, Since: version, Why: why})
	}
	return outcome(r.att.MarkStale(ctx, marks))
}

// InSync implements volume.Records.
func (r staleRecords) InSync(ctx context.Context, n ring.NodeID, now volume.Copy, layers []store.LayerID) error {
	is := cluster.Incarnation{Node: n, Identity: now.Identity, Incarnation: now.Incarnation}
	return outcome(r.att.InSync(ctx, is, layers))
}

// MayJoin implements volume.Records. No volume is opened with copies of a target.
func (r staleRecords) MayJoin(context.Context, ring.NodeID) (bool, error) { return true, nil }

// outcome says what is known of a transaction, in the volume's words.
func outcome(err error) error {
	switch {
	case errors.Is(err, cluster.ErrLost):
		return fmt.Errorf("%w: %w", volume.ErrLost, err)
	case errors.Is(err, cluster.ErrUnavailable) && !errors.Is(err, cluster.ErrUnknown):
		return fmt.Errorf("%w: %w", volume.ErrNotDone, err)
	}
	return err
}

// staleCopies gives the volume what the records say of copies that lack writes.
func staleCopies(all []cluster.Stale) []volume.Stale {
	stale := make([]volume.Stale, len(all))
	for i, s := range all {
		stale[i] = volume.Stale{Node: s.Node, Layer: s.Layer, Since: s.Since, Why: s.Why}
	}
	return stale
}
