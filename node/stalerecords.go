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
	att    *cluster.Attachment
	was    *former
	copies copiesOf
}

var _ volume.Records = staleRecords{}

// Serving implements volume.Records.
func (r staleRecords) Serving(ctx context.Context, f volume.Found) error {
	marks := make([]cluster.Stale, len(f.Stale))
	for i, s := range f.Stale {
		node, target := r.copies.at(s.Node)
		marks[i] = cluster.Stale{Layer: s.Layer, Node: node, Target: target, Since: s.Since, Why: s.Why}
	}
	if f.UnflushedGone {
		if err := r.was.mayHaveLost(); err != nil {
			return err
		}
		if err := r.att.TellLoss(ctx); err != nil {
			return outcome(err)
		}
	}
	return outcome(r.att.Serving(ctx, r.copies.incarnations(f), marks))
}

// Stale implements volume.Records.
func (r staleRecords) Stale(ctx context.Context, n ring.NodeID, why string, since map[store.LayerID]store.Version) error {
	node, target := r.copies.at(n)
	var marks []cluster.Stale
	for layer, version := range since {
		marks = append(marks, cluster.Stale{Layer: layer, Node: node, Target: target, Since: version, Why: why})
	}
	return outcome(r.att.MarkStale(ctx, marks))
}

// InSync implements volume.Records.
func (r staleRecords) InSync(ctx context.Context, n ring.NodeID, now volume.Copy, layers []store.LayerID) error {
	node, target := r.copies.at(n)
	is := cluster.Incarnation{Node: node, Identity: now.Identity, Incarnation: now.Incarnation, Target: target}
	return outcome(r.att.InSync(ctx, is, layers))
}

// MayJoin implements volume.Records.
func (r staleRecords) MayJoin(ctx context.Context, n ring.NodeID) (bool, error) {
	node, _ := r.copies.at(n)
	return r.att.MayJoin(ctx, node)
}

// outcome says what is known of a transaction, in the volume's words.
func outcome(err error) error {
	switch {
	case errors.Is(err, cluster.ErrLost):
		return fmt.Errorf("%w: %w", volume.ErrLost, err)
	case errors.Is(err, cluster.ErrMoved):
		return fmt.Errorf("%w: %w", volume.ErrMoved, err)
	case errors.Is(err, cluster.ErrUnavailable) && !errors.Is(err, cluster.ErrUnknown):
		return fmt.Errorf("%w: %w", volume.ErrNotDone, err)
	}
	return err
}

// stale gives the volume what the records say of copies that lack writes.
func (c copiesOf) stale(all []cluster.Stale) []volume.Stale {
	var stale []volume.Stale
	for _, s := range all {
		if id, is := c.named(s.Node, s.Target); is {
			stale = append(stale, volume.Stale{Node: id, Layer: s.Layer, Since: s.Since, Why: s.Why})
		}
	}
	return stale
}
