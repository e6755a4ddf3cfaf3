package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"torus/ring"
)

// Registered reports whether there is a record of a node: not any more when it
// was removed.
func (c *Cluster) Registered(ctx context.Context, id ring.NodeID) (bool, error) {
	return c.read(ctx, idKey(keyNodes, id), 0, &nodeRecord{})
}

// RemoveNode takes a node out of the cluster for good: its record, and what it
// had still to confirm, as what it has is given up with it. ErrBusy, naming the
// volumes, if a ring in use places copies on it; ErrNotFound. Its etcd member is
// removed by KeepMembers, which sees that the record is gone.
func (c *Cluster) RemoveNode(ctx context.Context, name string) error {
	removed := false
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		nodes, err := t.nodes(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == name })
		if i < 0 && removed {
			return nil // by a run before, whose outcome was unknown
		}
		if i < 0 {
			return ErrNotFound
		}
		key := idKey(keyNodes, nodes[i].ID)
		if _, err := t.get(ctx, key, &nodeRecord{}); err != nil {
			return err
		}
		if err := t.unused(ctx, nodes[i].ID); err != nil {
			last, lerr := t.lastCopies(ctx, nodes[i].ID)
			if lerr == nil && len(last) > 0 && errors.Is(err, ErrBusy) {
				err = fmt.Errorf("%w, and the last one in sync of volume %s", err, last[0].Name)
			}
			return errors.Join(err, lerr)
		}
		if err := t.confirmAll(ctx, nodes[i].ID); err != nil {
			return err
		}
		t.delete(key)
		t.delete(idKey(keyAlive, nodes[i].ID))
		t.delete(idKey(keyLimits, nodes[i].ID))
		removed = true
		return nil
	})
	return about(nodeNamed(name), err)
}

// unused makes it a condition that no volume has copies on a node.
func (t *tx) unused(ctx context.Context, id ring.NodeID) error {
	rings, err := listed(ctx, t, keyRings, decodeRing)
	if err != nil {
		return err
	}
	lineages, err := listed(ctx, t, keyLineages, decodeLineage)
	if err != nil {
		return err
	}
	volumes, err := listed(ctx, t, keyVolumes, decodeVolume)
	if err != nil {
		return err
	}
	var users []string
	for name, v := range volumes {
		l := lineages[v.Lineage]
		for _, number := range []uint64{l.Ring, l.Target} {
			if number == 0 && l.Ring != 0 {
				continue
			}
			if r := rings[number]; r.Ring == nil || r.Has(id) { // without a ring it can't be ruled out
				users = append(users, name)
				break
			}
		}
	}
	if len(users) == 0 {
		return nil
	}
	slices.Sort(users)
	const most = 5
	list := strings.Join(users[:min(most, len(users))], ", ")
	if len(users) > most {
		list += fmt.Sprintf(" and %d more", len(users)-most)
	}
	return fmt.Errorf("%w: it keeps copies of %s", ErrBusy, list)
}

// listed reads and decodes all records below a prefix, under the condition of list.
func listed[K comparable, V any](ctx context.Context, t *tx, prefix string, one func(Pair) (K, V, error)) (map[K]V, error) {
	pairs, err := t.list(ctx, prefix)
	if err != nil {
		return nil, err
	}
	return decodeAll(pairs, one)
}

// confirmAll takes a node out of those that deleted layers wait for.
func (t *tx) confirmAll(ctx context.Context, id ring.NodeID) error {
	layers, err := listed(ctx, t, keyLayers, decodeLayer)
	if err != nil {
		return err
	}
	for _, l := range layers {
		if slices.Contains(l.Pending, id) {
			t.confirm(l, id)
		}
	}
	return nil
}

// confirm says that a node does not have a deleted layer any more.
func (t *tx) confirm(l Layer, node ring.NodeID) {
	key := idKey(keyLayers, l.ID)
	if l.Pending = without(l.Pending, node); len(l.Pending) == 0 {
		t.delete(key)
	} else {
		t.put(key, newLayerRecord(l))
	}
}
