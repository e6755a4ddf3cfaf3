package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"torus/cluster"
	"torus/ring"
)

// ringsEvery is how often the keeper looks what there is to move.
const ringsEvery = 2 * time.Second

// rings is what the node that keeps etcd's members knows of nodes and lineages: it
// has lineages follow the nodes, one node at a time being enough.
type rings struct {
	n    *Node
	away map[ring.NodeID]time.Time // since when nodes were not seen to live
	said map[ring.LineageID]string // what was logged last
}

// startRings has the node do what moves data, whenever it is the keeper.
func (n *Node) startRings() {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		r := &rings{n: n}
		for ; ctx.Err() == nil; pause(ctx, ringsEvery) {
			if err := r.look(ctx); err != nil && ctx.Err() == nil {
				n.log.Debug("not known what there is to move", "err", err)
			}
		}
	})
	n.started("rings", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

// look does what there is to do now, if this is the keeper.
func (r *rings) look(ctx context.Context) error {
	keeping, err := r.n.cluster.Keeping(ctx)
	if err != nil {
		return err
	}
	if keeping.Node != r.n.settings.ID {
		r.away, r.said = nil, nil
		return nil
	}
	if r.away == nil {
		r.away, r.said = map[ring.NodeID]time.Time{}, map[ring.LineageID]string{}
	}
	nodes, err := r.n.cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		r.seen(ctx, n, time.Now())
	}
	vols, err := r.n.cluster.Volumes(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(vols, func(a, b cluster.VolumeInfo) int { return strings.Compare(a.Name, b.Name) })
	done := map[ring.LineageID]bool{}
	for _, v := range vols {
		if !done[v.Lineage.ID] {
			done[v.Lineage.ID] = true
			r.advance(ctx, v)
		}
	}
	return nil
}

// seen has a node's data rebuilt on others when it stays away, and the node used
// again when it is back.
func (r *rings) seen(ctx context.Context, n cluster.NodeInfo, now time.Time) {
	var err error
	switch {
	case n.Alive:
		delete(r.away, n.ID)
		if n.State == cluster.NodeOut {
			r.n.log.Info("a node is back, and is used again", "node", n.Name)
			err = r.n.cluster.TakeBack(ctx, n.Name)
		}
	case !n.Has(cluster.RoleStorage) || n.State != cluster.NodeActive:
	case r.away[n.ID].IsZero():
		r.away[n.ID] = now
	case n.Limits.Away(now.Sub(r.away[n.ID])):
		err = r.n.cluster.TakeOut(ctx, n.Name)
		if err == nil {
			r.n.log.Warn("a node stays away: its data is rebuilt on the others", "node", n.Name, "for", now.Sub(r.away[n.ID]).Round(time.Second))
		}
		if errors.Is(err, cluster.ErrTooFewNodes) {
			err = nil // it is waited for
		}
	}
	if err != nil {
		r.n.log.Warn("a node's state is not changed", "node", n.Name, "err", err)
	}
}

// advance does the next step of the change of a lineage's ring, if there is one.
func (r *rings) advance(ctx context.Context, v cluster.VolumeInfo) {
	step, err := r.n.cluster.AdvanceRing(ctx, v.Lineage.ID)
	if step == cluster.RingStays && err == nil || ctx.Err() != nil {
		delete(r.said, v.Lineage.ID)
		return
	}
	text := string(step)
	if err != nil {
		text = err.Error()
	}
	if r.said[v.Lineage.ID] == text {
		return
	}
	r.said[v.Lineage.ID] = text
	if err != nil {
		r.n.log.Info("a volume's data is to move, and does not yet", "volume", v.Name, "err", err)
		return
	}
	r.n.log.Info("a volume's data moves", "volume", v.Name, "step", text)
}
