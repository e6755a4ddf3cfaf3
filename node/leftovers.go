package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"torus/cluster"
	"torus/ring"
	"torus/store"
)

const (
	// leftoversEvery is how often a node looks what it may drop, and is to.
	leftoversEvery = 2 * time.Second
	// droppers is how many drops are under way.
	droppers = 16
)

// leftovers drops what rings have taken from this node, and, before anything of it is
// written here anew, what they give back to it: one after the other, by records read
// just before. So nothing that was decided of chunks before they came back is done
// after (PROTOCOL.md, Ring change).
type leftovers struct {
	n     *Node
	clean map[ring.LineageID][2]uint64 // ring and target by which there is nothing to drop
}

// startLeftovers has the node drop what is not its own.
func (n *Node) startLeftovers() {
	if n.store == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		l := &leftovers{n: n, clean: map[ring.LineageID][2]uint64{}}
		for ; ctx.Err() == nil; pause(ctx, leftoversEvery) {
			err := l.fresh(ctx)
			if err == nil {
				err = l.rest(ctx)
			}
			if err != nil && ctx.Err() == nil && !errors.Is(err, cluster.ErrUnconfirmed) {
				n.log.Warn("not dropped what is not this node's own, trying again", "err", err)
			}
		}
	})
	n.started("leftovers", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

// fresh drops what the node may have of chunks that targets give it, and says so.
func (l *leftovers) fresh(ctx context.Context) error {
	all, err := l.n.cluster.FreshCopies(ctx, l.n.settings.ID)
	if err != nil || len(all) == 0 {
		return err
	}
	layers, err := l.layers(ctx)
	if err != nil {
		return err
	}
	for _, f := range all {
		if layers[f.Layer] {
			lost := func(c ring.ChunkIndex) bool {
				return has(f.Of, f.Lineage, c, l.n.settings.ID) && !has(f.Ring, f.Lineage, c, l.n.settings.ID)
			}
			if err := l.drop(ctx, f.Layer, runs(f.Chunks, lost)); err != nil {
				return err
			}
			delete(l.clean, f.Lineage)
		}
		if err := l.n.cluster.Dropped(ctx, f.StaleKey); err != nil {
			return err
		}
	}
	return nil
}

// rest drops what neither ring nor target give the node.
func (l *leftovers) rest(ctx context.Context) error {
	if err := l.n.cluster.MayCollect(ctx); err != nil {
		return err
	}
	all, err := l.n.cluster.Leftovers(ctx)
	if err != nil {
		return err
	}
	for _, o := range all {
		by := [2]uint64{o.Ring.Number, o.Target.Number}
		if l.clean[o.Lineage] == by {
			continue
		}
		done, err := l.lineage(ctx, o)
		if err != nil {
			return err
		}
		if done {
			l.clean[o.Lineage] = by
		}
	}
	return nil
}

// lineage drops what the node has of a lineage and should not: not, and not done, if
// somebody has attached a volume since the records were read.
func (l *leftovers) lineage(ctx context.Context, o cluster.Leftover) (done bool, err error) {
	here, err := l.layers(ctx)
	if err != nil {
		return false, err
	}
	self := l.n.settings.ID
	all := runs(o.Chunks(), func(c ring.ChunkIndex) bool {
		return !has(o.Ring, o.Lineage, c, self) && (o.Target.Ring == nil || !has(o.Target, o.Lineage, c, self))
	})
	if len(all) == 0 {
		return true, nil
	}
	var replica store.Replica
	for _, v := range o.Volumes {
		if v.Epoch == 0 {
			continue // it never was attached
		}
		// Who still reads here by another ring is refused from now on.
		if replica, err = l.n.store.Attach(ctx, v.ID, v.Epoch); errors.Is(err, store.ErrFenced) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	for _, layer := range o.Layers {
		if !here[layer] || replica == nil {
			continue
		}
		there, err := filled(ctx, replica, layer, all)
		if err != nil {
			return false, err
		}
		if err := l.drop(ctx, layer, there); err != nil {
			return false, err
		}
		if len(there) > 0 {
			l.n.log.Info("dropped what other nodes keep now", "layer", layer, "runs", len(there), "ring", o.Ring.Number)
		}
	}
	return true, nil
}

// drop drops runs of chunks of a layer.
func (l *leftovers) drop(ctx context.Context, layer store.LayerID, all []store.Chunks) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	slots := make(chan struct{}, droppers)
	for i, run := range all {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = l.n.store.Drop(ctx, layer, run)
			<-slots
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("layer %v: %w", layer, err)
	}
	return nil
}

// layers returns the layers that are here.
func (l *leftovers) layers(ctx context.Context) (map[store.LayerID]bool, error) {
	here := map[store.LayerID]bool{}
	for info, err := range l.n.store.Layers(ctx) {
		if err != nil {
			return nil, err
		}
		here[info.ID] = true
	}
	return here, nil
}

// has reports whether a ring gives a chunk to a node.
func has(r cluster.Ring, l ring.LineageID, c ring.ChunkIndex, id ring.NodeID) bool {
	for _, n := range r.Nodes(l, c) {
		if n == id {
			return true
		}
	}
	return false
}

// runs returns the chunks below end of which is holds, joined.
func runs(end ring.ChunkIndex, is func(ring.ChunkIndex) bool) (all []store.Chunks) {
	for c := range end {
		if !is(c) {
			continue
		}
		if n := len(all); n > 0 && all[n-1].End == uint32(c) {
			all[n-1].End++
			continue
		}
		all = append(all, store.Chunks{First: uint32(c), End: uint32(c) + 1})
	}
	return all
}

// filled returns those runs in which a layer has something.
func filled(ctx context.Context, r store.Replica, layer store.LayerID, all []store.Chunks) (some []store.Chunks, err error) {
	for _, run := range all {
		off, n := int64(run.First)*store.ChunkSize, int64(run.End-run.First)*store.ChunkSize
		for _, err := range r.Extents(ctx, layer, off, n, 0) {
			if err != nil {
				return nil, err
			}
			some = append(some, run)
			break
		}
	}
	return some, nil
}
