package cluster

import (
	"context"
	"fmt"
	"slices"

	"torus/ring"
)

// NodeChange is what an operator changes of a node; nil leaves it as it is.
type NodeChange struct {
	Zone *ring.Zone
	// Weight is the node's part of the data, relative to its capacity: 0.01 to 100.
	Weight *float64
}

// SetNode changes a node; data moves as the rings then ask for. What is set stays when
// the node starts with other settings. ErrNotFound, ErrInvalid.
func (c *Cluster) SetNode(ctx context.Context, name string, change NodeChange) error {
	return c.changeNode(ctx, name, func(_ context.Context, _ *tx, n *Node, _ []Node) error {
		if change.Zone != nil {
			n.Zone, n.Placed = *change.Zone, true
		}
		if change.Weight != nil {
			n.Weight = *change.Weight
			n.Share = int64(float64(n.Capacity) * n.Weight)
		}
		return n.check()
	})
}

// DrainNode has all data moved off a node: no ring is built with it any more.
// ErrTooFewNodes if the others are fewer than the copies of some volume.
func (c *Cluster) DrainNode(ctx context.Context, name string) error {
	return c.changeNode(ctx, name, func(ctx context.Context, t *tx, n *Node, all []Node) error {
		n.State = NodeDraining
		return t.enoughWithout(ctx, *n, all)
	})
}

// UndrainNode lets rings be built with a node again.
func (c *Cluster) UndrainNode(ctx context.Context, name string) error {
	return c.changeNode(ctx, name, func(_ context.Context, _ *tx, n *Node, _ []Node) error {
		n.State = NodeActive
		return nil
	})
}

// TakeOut has the data of an active node that stays away rebuilt on the others.
// ErrTooFewNodes if these are too few.
func (c *Cluster) TakeOut(ctx context.Context, name string) error {
	return c.changeNode(ctx, name, func(ctx context.Context, t *tx, n *Node, all []Node) error {
		if n.State != NodeActive {
			return nil
		}
		n.State = NodeOut
		return t.enoughWithout(ctx, *n, all)
	})
}

// TakeBack undoes TakeOut.
func (c *Cluster) TakeBack(ctx context.Context, name string) error {
	return c.changeNode(ctx, name, func(_ context.Context, _ *tx, n *Node, _ []Node) error {
		if n.State == NodeOut {
			n.State = NodeActive
		}
		return nil
	})
}

// changeNode changes a node's record, under the condition that no node is added,
// changed or removed meanwhile.
func (c *Cluster) changeNode(ctx context.Context, name string, change func(context.Context, *tx, *Node, []Node) error) error {
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		nodes, err := t.nodesKept(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == name })
		if i < 0 {
			return ErrNotFound
		}
		n := nodes[i]
		if err := change(ctx, t, &n, nodes); err != nil {
			return err
		}
		if was, is := newNodeRecord(nodes[i]), newNodeRecord(n); !equalRecords(was, is) {
			t.put(idKey(keyNodes, n.ID), is)
		}
		return nil
	})
	return about(nodeNamed(name), err)
}

// enoughWithout makes it a condition that without a node there are storage nodes for
// the copies of each volume.
func (t *tx) enoughWithout(ctx context.Context, out Node, all []Node) error {
	left := 0
	for _, n := range all {
		if n.ID != out.ID && n.Has(RoleStorage) && n.State == NodeActive {
			left++
		}
	}
	lineages, err := listed(ctx, t, keyLineages, decodeLineage)
	if err != nil {
		return err
	}
	volumes, err := listed(ctx, t, keyVolumes, decodeVolume)
	if err != nil {
		return err
	}
	short, most := "", left
	for name, v := range volumes {
		if n := lineages[v.Lineage].Replicas; n > most || n > left && n == most && name < short {
			short, most = name, n
		}
	}
	if most == left {
		return nil
	}
	return fmt.Errorf("%w: %d active ones would be left, and volume %s has %d copies: add a node with \"torus join\", or use \"torus volume set %s --replicas %d\"",
		ErrTooFewNodes, left, short, most, short, max(left, 1))
}
