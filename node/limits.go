package node

import (
	"context"
	"sync"

	"torus/cluster"
	"torus/ring"
)

// startLimits keeps what this node is allowed as the records have it.
func (n *Node) startLimits() {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		follow(ctx, n, "limits", n.cluster.WatchLimits(ctx, n.settings.ID), func(u cluster.Update[ring.NodeID, cluster.Limits]) {
			// Also where it is gone, or not there yet: no limit.
			n.repairRate.Store(u.Put[n.settings.ID].RepairRate)
		})
	})
	n.started("limits", func() error {
		stop()
		wg.Wait()
		return nil
	})
}
