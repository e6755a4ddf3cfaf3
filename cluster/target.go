package cluster

import (
	"context"
	"fmt"
	"slices"

	"torus/ring"
	"torus/store"
)

// SetTarget begins to move a lineage to the ring that the present storage nodes make
// for it, unless that is its ring, or it is moving already. In the same transaction
// every node that gains chunks is recorded to lack them, of every layer of the lineage
// (PROTOCOL.md, Ring change). It returns the lineage as it is then. ErrTooFewNodes;
// ErrNotFound.
func (c *Cluster) SetTarget(ctx context.Context, id ring.LineageID) (l Lineage, err error) {
	err = c.transact(ctx, func(ctx context.Context, t *tx) error {
		if l, err = t.lineage(ctx, id); err != nil {
			return err
		}
		if l.Target != 0 {
			return nil // also by a run before, whose outcome was unknown
		}
		from, err := t.ring(ctx, l)
		if err != nil {
			return err
		}
		to, err := t.ringFor(ctx, from, l.Replicas)
		if err != nil || to.Number == l.Ring {
			return err
		}
		l.Target = to.Number
		t.put(idKey(keyLineages, id), newLineageRecord(l))
		return t.joining(ctx, l, gains(from.Ring, to.Ring))
	})
	return l, about("lineage "+id.String(), err)
}

// gains returns the nodes to which a ring gives chunks that another does not, in order.
func gains(from, to *ring.Ring) []ring.NodeID {
	var nodes []ring.NodeID
	for p := range ring.Partitions {
		had := from.Partition(p)
		for _, n := range to.Partition(p) {
			if !slices.Contains(had, n) && !slices.Contains(nodes, n) {
				nodes = append(nodes, n)
			}
		}
	}
	slices.Sort(nodes)
	return nodes
}

// joining records that nodes lack what the target adds.
func (t *tx) joining(ctx context.Context, l Lineage, nodes []ring.NodeID) error {
	layers, err := t.layersOf(ctx, l.ID)
	if err != nil {
		return err
	}
	for _, layer := range layers {
		for _, n := range nodes {
			t.put(staleKey(StaleKey{layer, n, l.Target}), newStaleRecord(Stale{
				Fresh: true, Epoch: l.Epoch, At: t.c.wall(), Why: "it is to have chunks that it had not",
			}))
		}
	}
	return nil
}

// layersOf returns the layers of a lineage that are not deleted, in order, and makes it
// a condition that there are no others.
func (t *tx) layersOf(ctx context.Context, id ring.LineageID) ([]store.LayerID, error) {
	all, err := listed(ctx, t, keyLayers, decodeLayer)
	if err != nil {
		return nil, err
	}
	var layers []store.LayerID
	for _, l := range all {
		if l.Lineage == id && !l.Deleted {
			layers = append(layers, l.ID)
		}
	}
	slices.Sort(layers)
	return layers, nil
}

// Dropped records that a node has dropped, durably, what it had of the chunks that a
// target adds, and may be written to.
func (c *Cluster) Dropped(ctx context.Context, k StaleKey) error {
	return c.transact(ctx, func(ctx context.Context, t *tx) error {
		var r staleRecord
		found, err := t.get(ctx, staleKey(k), &r)
		if err == nil && found && r.Fresh {
			r.Fresh = false
			t.put(staleKey(k), &r)
		}
		return err
	})
}

// TellPlaced records by which ring and target the holder places and reads: that
// writes go to both, and reads to none but these. It goes when the lease does.
func (a *Attachment) TellPlaced(ctx context.Context) error {
	want := &placedRecord{Epoch: a.Epoch, Ring: hexID(a.Ring.Number), Target: hexID(a.Target.Number)}
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		key := idKey(keyPlaced, v.ID)
		p, err := t.pair(ctx, key)
		if err == nil && (p.Lease != a.leaseNow().ID || string(p.Value) != string(encode(want))) {
			t.putLeased(key, want, a.leaseNow().ID)
		}
		return err
	}))
}

// FinishTarget makes a lineage's target its ring: when every chunk is in sync on it, and
// whoever has a volume of the lineage attached writes to both. ErrBusy, with what is
// waited for, until then. Without a target nothing is done.
func (c *Cluster) FinishTarget(ctx context.Context, id ring.LineageID) (l Lineage, err error) {
	err = c.transact(ctx, func(ctx context.Context, t *tx) error {
		if l, err = t.lineage(ctx, id); err != nil || l.Target == 0 {
			return err
		}
		target, err := t.ringOf(ctx, l, l.Target)
		if err != nil {
			return err
		}
		if err := t.allInSync(ctx, l, target); err != nil {
			return err
		}
		if err := t.allPlaced(ctx, l); err != nil {
			return err
		}
		l.Ring, l.Target = l.Target, 0
		t.put(idKey(keyLineages, id), newLineageRecord(l))
		return nil
	})
	return l, about("lineage "+id.String(), err)
}

// allInSync makes it a condition that no node of the target lacks anything of a lineage.
// What others lack is forgotten with the ring.
func (t *tx) allInSync(ctx context.Context, l Lineage, target Ring) error {
	layers, err := t.layersOf(ctx, l.ID)
	if err != nil {
		return err
	}
	stale, err := listed(ctx, t, keyStale, decodeStale)
	if err != nil {
		return err
	}
	for k := range stale {
		switch {
		case !slices.Contains(layers, k.Layer):
		case target.Has(k.Node):
			return fmt.Errorf("%w: node %v lacks writes", ErrBusy, k.Node)
		default:
			t.delete(staleKey(k))
		}
	}
	return nil
}

// allPlaced makes it a condition that whoever has a volume of a lineage attached places
// by its ring and target.
func (t *tx) allPlaced(ctx context.Context, l Lineage) error {
	volumes, err := listed(ctx, t, keyVolumes, decodeVolume)
	if err != nil {
		return err
	}
	for name, v := range volumes {
		if v.Lineage != l.ID {
			continue
		}
		holder, err := t.attached(ctx, v.ID)
		if err != nil {
			return err
		}
		if holder == nil {
			continue
		}
		var r placedRecord
		if _, err := t.get(ctx, idKey(keyPlaced, v.ID), &r); err != nil {
			return err
		}
		if r.Epoch != holder.Epoch || uint64(r.Ring) != l.Ring || uint64(r.Target) != l.Target {
			return fmt.Errorf("%w: %v has volume %s attached and does not write to both rings yet", ErrBusy, holder.Holder, name)
		}
	}
	return nil
}

type placedRecord struct {
	format
	Epoch  store.Epoch `json:"epoch"`
	Ring   hexID       `json:"ring"`
	Target hexID       `json:"target"`
}

func (r *placedRecord) check() error { return inRange("epoch", r.Epoch, 0, store.MaxEpoch) }
