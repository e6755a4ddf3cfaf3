package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"torus/cluster"
	"torus/store"
)

// dropRetry is how long after a failure the dropping of layers is tried again.
const dropRetry = 5 * time.Second

// startDrops begins to drop what the records say is deleted.
func (n *Node) startDrops() {
	if n.store == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	changed := make(chan struct{}, 1)
	wg.Go(func() { n.watchLayers(ctx, changed) })
	wg.Go(func() { n.dropLoop(ctx, changed) })
	n.started("drops", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

// watchLayers signals that layers were deleted, until ctx ends.
func (n *Node) watchLayers(ctx context.Context, changed chan<- struct{}) {
	follow(ctx, n, "layers", n.cluster.WatchLayers(ctx), func(u cluster.Update[store.LayerID, cluster.Layer]) {
		for _, l := range u.Put {
			if l.Deleted {
				signal(changed)
			}
		}
	})
}

// dropLoop drops whenever something has changed, and again after a failure.
func (n *Node) dropLoop(ctx context.Context, changed chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		if err := dropDeleted(ctx, n.cluster, n.settings, n.store); err != nil && ctx.Err() == nil {
			if !errors.Is(err, cluster.ErrUnconfirmed) { // which status says
				n.log.Warn("deleted layers not dropped, trying again", "in", dropRetry, "err", err)
			}
			pause(ctx, dropRetry)
			signal(changed)
		}
	}
}

// dropDeleted drops the layers whose records say that they are deleted, and
// forgets the volumes that are gone with them; each is confirmed when that is
// durable here (I8). Done twice it does no harm. cluster.ErrUnconfirmed if nothing may
// be dropped.
func dropDeleted(ctx context.Context, c *cluster.Cluster, self Settings, s store.Store) error {
	if err := c.MayCollect(ctx); err != nil {
		return err
	}
	layers, err := c.DroppedLayers(ctx, self.ID)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range layers {
		err := s.Drop(ctx, l.ID, store.AllChunks)
		if err == nil && l.Forget != 0 {
			err = s.Forget(ctx, l.Forget)
		}
		if err == nil {
			err = c.ConfirmDrop(ctx, l.ID, self.ID)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// signal wakes the receiver of c if it is not awake already.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits, at most until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
