package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"torus/ring"
	"torus/store"
)

// RenameVolume gives a volume another name. It may be attached: attachments
// are kept by ID. ErrNotFound, ErrExists.
func (c *Cluster) RenameVolume(ctx context.Context, from, to string) error {
	for _, name := range []string{from, to} {
		if err := CheckName(name); err != nil {
			return about(volumeNamed(from), err)
		}
	}
	if from == to {
		_, err := c.Volume(ctx, from)
		return err
	}
	var moving store.VolumeID // what a run before tried to rename
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		there, err := t.volume(ctx, to)
		if err == nil {
			if there.ID == moving {
				return nil // done by a run before, whose outcome was unknown
			}
			return about(volumeNamed(to), ErrExists)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		v, err := t.volume(ctx, from)
		if err != nil {
			return err
		}
		moving, v.Name = v.ID, to
		t.delete(keyVolumes + from)
		t.put(keyVolumes+to, newVolumeRecord(v))
		return nil
	})
	return about(volumeNamed(from), err)
}

// SetReplicas changes how many copies a volume, and each clone of it, is to have; the
// ring follows. minCopies 0: the default, where it was that before, else what it was,
// but no more than replicas. ErrTooFewNodes, ErrNotFound.
func (c *Cluster) SetReplicas(ctx context.Context, name string, replicas, minCopies int) error {
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := t.volume(ctx, name)
		if err != nil {
			return err
		}
		l, err := t.lineage(ctx, v.Lineage)
		if err != nil {
			return err
		}
		nodes, err := t.nodes(ctx)
		if err != nil {
			return err
		}
		was := l
		switch {
		case minCopies > 0:
			l.MinCopies = minCopies
		case l.MinCopies == defaultMinCopies(l.Replicas):
			l.MinCopies = defaultMinCopies(replicas)
		default:
			l.MinCopies = min(l.MinCopies, replicas)
		}
		l.Replicas = replicas
		if err := checkCopies(l.Replicas, l.MinCopies); err != nil {
			return err
		}
		if l.Replicas > was.Replicas {
			if _, err := members(nodes, replicas); err != nil {
				return err
			}
		}
		if l != was {
			t.put(idKey(keyLineages, l.ID), newLineageRecord(l))
		}
		return nil
	})
	return about(volumeNamed(name), err)
}

// defaultMinCopies is how many copies a write needs of so many, unless that is set.
func defaultMinCopies(replicas int) int { return max(1, replicas-1) }

// DeleteVolume deletes a volume that nobody holds (*BusyError otherwise). Its
// head layer's record says from then on that the layer is dead and the volume
// gone, for every node that may have them: see DroppedLayers. Layers below
// the head stay.
func (c *Cluster) DeleteVolume(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return about(volumeNamed(name), err)
	}
	var deleting store.VolumeID // what a run before tried to delete
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := t.volume(ctx, name)
		if errors.Is(err, ErrNotFound) && deleting != 0 {
			return nil // done by a run before, whose outcome was unknown, or by another
		}
		if err != nil {
			return err
		}
		if deleting != 0 && deleting != v.ID {
			return nil // likewise, and the name has been given anew
		}
		holder, err := t.attached(ctx, v.ID)
		if err != nil {
			return err
		}
		if holder != nil {
			return &BusyError{Volume: name, Holder: holder.Holder, Purpose: holder.Purpose, Epoch: holder.Epoch}
		}
		deleting = v.ID
		return t.deleteVolume(ctx, v)
	})
	return about(volumeNamed(name), err)
}

// deleteVolume writes what deleting v means.
func (t *tx) deleteVolume(ctx context.Context, v Volume) error {
	key := idKey(keyLayers, v.Head)
	var r layerRecord
	found, err := t.get(ctx, key, &r)
	if err == nil && !found {
		err = corrupt(key, "missing, although volume %s has it as its head", v.Name)
	}
	if err != nil {
		return err
	}
	l := r.layer(v.Head)
	l.Deleted, l.Forget = true, v.ID
	if l.Pending, err = t.mayHave(ctx, v); err != nil {
		return err
	}
	t.delete(keyVolumes + v.Name)
	t.delete(idKey(keyUncompared, v.ID))
	t.deletePrefix(incarnationsOf(v.ID))
	t.deletePrefix(staleLayer(v.Head)) // which nobody can lack any more
	t.delete(idKey(keyScrubs, v.ID))
	t.delete(idKey(keyLosses, v.ID))
	if len(l.Pending) == 0 {
		t.delete(key)
	} else {
		t.put(key, newLayerRecord(l))
	}
	return nil
}

// mayHave returns the nodes that may have layers or the fence of v: those of
// the lineage's ring, and those whose incarnation was recorded, as far as they
// are still in the cluster.
func (t *tx) mayHave(ctx context.Context, v Volume) ([]ring.NodeID, error) {
	ids, err := t.mayHold(ctx, v)
	if err != nil {
		return nil, err
	}
	prefix := incarnationsOf(v.ID)
	pairs, err := t.list(ctx, prefix)
	if err != nil {
		return nil, err
	}
	for _, p := range pairs {
		id, _, err := parseRole(p.Key, strings.TrimPrefix(p.Key, prefix))
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	nodes, err := t.nodes(ctx)
	if err != nil {
		return nil, err
	}
	gone := func(id ring.NodeID) bool {
		return !slices.ContainsFunc(nodes, func(n Node) bool { return n.ID == id })
	}
	slices.Sort(ids)
	return slices.DeleteFunc(slices.Compact(ids), gone), nil
}

// mayHold returns the nodes that ring and target of a volume's lineage name, in order.
func (t *tx) mayHold(ctx context.Context, v Volume) ([]ring.NodeID, error) {
	l, err := t.lineage(ctx, v.Lineage)
	if err != nil {
		return nil, err
	}
	r, err := t.ring(ctx, l)
	if err != nil {
		return nil, err
	}
	ids := r.IDs()
	if l.Target != 0 {
		target, err := t.ringOf(ctx, l, l.Target)
		if err != nil {
			return nil, err
		}
		ids = append(ids, target.IDs()...)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// ring reads the ring of a lineage, which must be there.
func (t *tx) ring(ctx context.Context, l Lineage) (Ring, error) { return t.ringOf(ctx, l, l.Ring) }

// ringOf reads a ring that a lineage names, which must be there.
func (t *tx) ringOf(ctx context.Context, l Lineage, number uint64) (Ring, error) {
	var r ringRecord
	key := idKey(keyRings, number)
	found, err := t.get(ctx, key, &r)
	if err == nil && !found {
		err = corrupt(key, "missing, although lineage %v names it", l.ID)
	}
	return r.ring(number), err
}

// Layer returns a layer's record. ErrNotFound says that there is none: that
// is not the same as deleted (I8).
func (c *Cluster) Layer(ctx context.Context, id store.LayerID) (Layer, error) {
	var r layerRecord
	found, err := c.read(ctx, idKey(keyLayers, id), 0, &r)
	if err == nil && !found {
		err = ErrNotFound
	}
	return r.layer(id), about("layer "+id.String(), err)
}

// DroppedLayers returns the layers that are recorded as deleted and whose drop node
// has not confirmed: the positive record that it may drop them, and forget
// the volume that Forget names (I8).
func (c *Cluster) DroppedLayers(ctx context.Context, node ring.NodeID) ([]Layer, error) {
	pairs, _, err := c.readAll(ctx, keyLayers, 0)
	if err != nil {
		return nil, err
	}
	var dropped []Layer
	for _, p := range pairs {
		_, l, err := decodeLayer(p)
		if err != nil {
			return nil, err
		}
		if l.Deleted && slices.Contains(l.Pending, node) {
			dropped = append(dropped, l)
		}
	}
	return dropped, nil
}

// ConfirmDrop records that node has durably dropped a deleted layer, and forgotten
// the volume that went with it. When all nodes have, the record is deleted.
// Confirming again changes nothing; a layer that is not deleted is ErrInvalid.
func (c *Cluster) ConfirmDrop(ctx context.Context, id store.LayerID, node ring.NodeID) error {
	key := idKey(keyLayers, id)
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		var r layerRecord
		found, err := t.get(ctx, key, &r)
		if err != nil || !found {
			return err
		}
		l := r.layer(id)
		if !l.Deleted {
			return fmt.Errorf("%w: node %v confirms the drop of a layer that is not deleted", ErrInvalid, node)
		}
		if !slices.Contains(l.Pending, node) {
			return nil
		}
		t.confirm(l, node)
		return nil
	})
	return about("layer "+id.String(), err)
}

func decodeLayer(p Pair) (store.LayerID, Layer, error) {
	var r layerRecord
	id, err := keyID[store.LayerID](p.Key, keyLayers)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.layer(id), err
}
