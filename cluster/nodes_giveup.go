package cluster

import (
	"context"
	"fmt"
	"slices"

	"torus/ring"
	"torus/store"
)

// GiveUpNode records that what a node has is lost, for an operator who accepts that: of
// volumes of which it has the last copy in sync of something, the other copies count,
// whatever they lack, and are compared when the volume is attached next. No ring is built
// with the node any more. The names of these volumes are returned. ErrBusy if the node
// answers, as it can be drained then, or somebody has such a volume; ErrNotFound.
func (c *Cluster) GiveUpNode(ctx context.Context, name string) (lost []string, err error) {
	err = c.changeNode(ctx, name, func(ctx context.Context, t *tx, n *Node, _ []Node) error {
		alive, err := t.get(ctx, idKey(keyAlive, n.ID), &aliveRecord{})
		if err != nil {
			return err
		}
		if alive {
			return fmt.Errorf("%w: it answers: move its data off it with \"torus node drain %s\"", ErrBusy, name)
		}
		n.State = NodeOut
		all, err := t.lastCopies(ctx, n.ID)
		if err != nil {
			return err
		}
		lost = nil
		for _, v := range all {
			if err := t.giveUpLast(ctx, v, n.ID); err != nil {
				return about(volumeNamed(v.Name), err)
			}
			lost = append(lost, v.Name)
		}
		return nil
	})
	return lost, err
}

// LastCopies returns the names of the volumes of which a node has the last copy in
// sync of something, in order.
func (c *Cluster) LastCopies(ctx context.Context, id ring.NodeID) (names []string, err error) {
	err = c.transact(ctx, func(ctx context.Context, t *tx) error {
		all, err := t.lastCopies(ctx, id)
		names = nil
		for _, v := range all {
			names = append(names, v.Name)
		}
		return err
	})
	return names, err
}

// lastCopies returns the volumes of which a node has the last copy in sync of
// something, in the order of names, and makes that a condition.
func (t *tx) lastCopies(ctx context.Context, id ring.NodeID) ([]Volume, error) {
	pairs, err := t.list(ctx, keyVolumes)
	if err != nil {
		return nil, err
	}
	var last []Volume
	for _, p := range pairs {
		_, v, err := decodeVolume(p)
		if err != nil {
			return nil, err
		}
		is, err := t.lastCopy(ctx, v, id)
		if err != nil {
			return nil, err
		}
		if is {
			last = append(last, v)
		}
	}
	return last, nil
}

// lastCopy reports whether a node has the last copy in sync of something of a volume.
func (t *tx) lastCopy(ctx context.Context, v Volume, id ring.NodeID) (bool, error) {
	l, err := t.lineage(ctx, v.Lineage)
	if err != nil {
		return false, err
	}
	r, err := t.ring(ctx, l)
	if err != nil || !r.Has(id) {
		return false, err
	}
	lacks := map[ring.NodeID]bool{id: true} // as if it were gone
	layers, err := t.chain(ctx, v)
	if err != nil {
		return false, err
	}
	stale, err := listed(ctx, t, keyStale, decodeStale)
	if err != nil {
		return false, err
	}
	for k := range stale {
		if k.Target != 0 || !slices.Contains(layers, k.Layer) {
			continue
		}
		if k.Node == id {
			return false, nil // it has not all itself
		}
		lacks[k.Node] = true
	}
	for p := range ring.Partitions {
		nodes := r.Partition(p)
		if slices.Contains(nodes, id) && !slices.ContainsFunc(nodes, func(n ring.NodeID) bool { return !lacks[n] }) {
			return true, nil
		}
	}
	return false, nil
}

// chain returns the layers of a volume, head first.
func (t *tx) chain(ctx context.Context, v Volume) (layers []store.LayerID, err error) {
	for layer := v.Head; layer != 0; {
		var r layerRecord
		key := idKey(keyLayers, layer)
		found, err := t.get(ctx, key, &r)
		if err == nil && !found {
			err = corrupt(key, "missing, although it is in the chain of volume %s", v.Name)
		}
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
		layer = store.LayerID(r.Parent)
	}
	return layers, nil
}

// giveUpLast has a volume go on without a node that has its last copy in sync.
func (t *tx) giveUpLast(ctx context.Context, v Volume, id ring.NodeID) error {
	holder, err := t.attached(ctx, v.ID)
	if err != nil {
		return err
	}
	if holder != nil {
		return &BusyError{Volume: v.Name, Holder: holder.Holder, Purpose: holder.Purpose, Epoch: holder.Epoch}
	}
	l, err := t.lineage(ctx, v.Lineage)
	if err != nil {
		return err
	}
	if l.Target != 0 { // which could be caught up with from copies that count no more
		if err := t.forgetTarget(ctx, l); err != nil {
			return err
		}
		l.Target = 0
		t.put(idKey(keyLineages, l.ID), newLineageRecord(l))
	}
	layers, err := t.chain(ctx, v)
	if err != nil {
		return err
	}
	stale, err := listed(ctx, t, keyStale, decodeStale)
	if err != nil {
		return err
	}
	for k := range stale {
		if slices.Contains(layers, k.Layer) && k.Node != id && k.Target == 0 {
			t.delete(staleKey(k))
		}
	}
	for _, layer := range layers {
		t.put(staleKey(StaleKey{Layer: layer, Node: id}), newStaleRecord(Stale{Epoch: max(l.Epoch, 1), At: t.c.wall(), Why: "given up with its node"}))
	}
	t.put(idKey(keyUncompared, v.ID), &uncomparedRecord{Served: v.Epoch > 0})
	return nil
}
