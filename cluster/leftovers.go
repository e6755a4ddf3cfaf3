package cluster

import (
	"context"
	"errors"
	"iter"
	"slices"

	"torus/ring"
	"torus/store"
)

// Leftover is a lineage of which nodes may drop what neither ring nor target gives them.
type Leftover struct {
	Lineage ring.LineageID
	Ring    Ring
	Target  Ring // its Number is 0 if there is none
	Layers  []store.LayerID
	// Volumes are those of the lineage. Who may still read by another ring had an
	// epoch below the one that is recorded: a node fences that before it drops anything.
	Volumes []Volume
}

// Chunks is how many chunks the largest of the volumes has.
func (o Leftover) Chunks() ring.ChunkIndex { return chunksOf(o.Volumes) }

func chunksOf(volumes []Volume) ring.ChunkIndex {
	most := int64(0)
	for _, v := range volumes {
		most = max(most, v.Size)
	}
	return ring.ChunkIndex((most + store.ChunkSize - 1) / store.ChunkSize)
}

// Leftovers returns the lineages of which nodes may drop what is no longer theirs:
// each volume is held by somebody who places by ring and target, or was detached
// cleanly (7/273). A chunk that is dropped on the strength of it comes back to the node
// only by a target, after the node has said, by Dropped, that it holds nothing; so it is
// to be done with these before it does that.
func (c *Cluster) Leftovers(ctx context.Context) ([]Leftover, error) {
	var all []Leftover
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		all = nil
		lineages, err := listed(ctx, t, keyLineages, decodeLineage)
		if err != nil {
			return err
		}
		for _, l := range lineages {
			switch o, settled, err := t.leftover(ctx, l); {
			case err != nil:
				return err
			case settled:
				all = append(all, o)
			}
		}
		return nil
	})
	return all, err
}

// leftover describes a lineage, and reports whether nobody can read by another ring.
func (t *tx) leftover(ctx context.Context, l Lineage) (o Leftover, settled bool, err error) {
	o.Lineage = l.ID
	if o.Volumes, err = t.volumesOf(ctx, l.ID); err != nil || len(o.Volumes) == 0 {
		return o, false, err // nothing but deleted layers, which are dropped as such
	}
	for _, v := range o.Volumes {
		if err := t.placed(ctx, l, v, true); err != nil {
			if errors.Is(err, ErrBusy) {
				err = nil
			}
			return o, false, err
		}
	}
	if o.Layers, err = t.layersOf(ctx, l.ID); err != nil {
		return o, false, err
	}
	if o.Ring, err = t.ring(ctx, l); err == nil && l.Target != 0 {
		o.Target, err = t.ringOf(ctx, l, l.Target)
	}
	return o, err == nil, err
}

// A FreshCopy is what a node is to drop before it is written to: what it has of a layer's
// chunks that Target gives it and Ring does not.
type FreshCopy struct {
	StaleKey
	Lineage ring.LineageID
	Ring    Ring
	Of      Ring            // the target, whose number is StaleKey's
	Chunks  ring.ChunkIndex // how many the largest volume of the lineage has
}

// FreshCopies returns what a node is to drop, and then to confirm with Dropped.
func (c *Cluster) FreshCopies(ctx context.Context, node ring.NodeID) ([]FreshCopy, error) {
	var all []FreshCopy
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		all = nil
		stale, err := listed(ctx, t, keyStale, decodeStale)
		if err != nil {
			return err
		}
		for k, s := range stale {
			if k.Node != node || !s.Fresh {
				continue
			}
			f, is, err := t.freshCopy(ctx, k)
			if err != nil {
				return err
			}
			if is {
				all = append(all, f)
			}
		}
		return nil
	})
	slices.SortFunc(all, func(a, b FreshCopy) int { return compareStale(a.StaleKey, b.StaleKey) })
	return all, err
}

// freshCopy completes a fresh stale record, unless its target was given up.
func (t *tx) freshCopy(ctx context.Context, k StaleKey) (f FreshCopy, is bool, err error) {
	var r layerRecord
	if is, err = t.get(ctx, idKey(keyLayers, k.Layer), &r); err != nil || !is {
		return f, false, err
	}
	l, err := t.lineage(ctx, ring.LineageID(r.Lineage))
	if err != nil || l.Target != k.Target {
		return f, false, err
	}
	f = FreshCopy{StaleKey: k, Lineage: l.ID}
	volumes, err := t.volumesOf(ctx, l.ID)
	if err != nil {
		return f, false, err
	}
	f.Chunks = chunksOf(volumes)
	if f.Ring, err = t.ring(ctx, l); err == nil {
		f.Of, err = t.ringOf(ctx, l, l.Target)
	}
	return f, err == nil, err
}

// WatchLineages yields the lineages, as WatchVolumes does volumes.
func (c *Cluster) WatchLineages(ctx context.Context) iter.Seq2[Update[ring.LineageID, Lineage], error] {
	return watch(ctx, c, keyLineages, idOf[ring.LineageID](keyLineages), decodeLineage)
}
