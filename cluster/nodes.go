package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"torus/ring"
)

// NodeInfo is a node's record with what it says of itself while it lives.
type NodeInfo struct {
	Node
	Alive    bool
	Usage    Usage // zero unless Alive
	Stopping bool  // it said so
	Limits   Limits
}

// RegisterNode writes the record of a node, new or changed. What operators set stays
// as it is recorded: its state and weight, and the zone if they did. A node with
// another ID and the same name is ErrExists. An identity other than the
// recorded one is taken over: what the recorded one held is then stale (N3).
func (c *Cluster) RegisterNode(ctx context.Context, n Node) error {
	n.State, n.Weight = cmp.Or(n.State, NodeActive), cmp.Or(n.Weight, 1)
	if n.ID == 0 {
		return about(nodeNamed(n.Name), fmt.Errorf("%w: no ID", ErrInvalid))
	}
	if err := n.check(); err != nil {
		return about(nodeNamed(n.Name), err)
	}
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		nodes, err := t.nodes(ctx)
		if err != nil {
			return err
		}
		for _, other := range nodes {
			if other.Name == n.Name && other.ID != n.ID {
				return fmt.Errorf("%w: the name belongs to node %v; choose another with --name", ErrExists, other.ID)
			}
		}
		var have nodeRecord
		key := idKey(keyNodes, n.ID)
		found, err := t.get(ctx, key, &have)
		if err != nil {
			return err
		}
		n := n
		if found {
			n = n.as(have.node(n.ID))
		}
		n.Share = n.share()
		if found && equalRecords(&have, newNodeRecord(n)) {
			return nil
		}
		t.put(key, newNodeRecord(n))
		return nil
	})
	return about(nodeNamed(n.Name), err)
}

// as returns the node with what operators set of it, as it is recorded.
func (n Node) as(have Node) Node {
	n.State, n.Weight, n.Share, n.Placed = have.State, have.Weight, have.Share, have.Placed
	if have.Placed {
		n.Zone = have.Zone
	}
	return n
}

// share returns what Share is to be.
func (n Node) share() int64 {
	now := float64(n.Capacity) * n.Weight
	if have := float64(n.Share); now/2 <= have && have <= 2*now {
		return n.Share
	}
	return int64(now)
}

// Nodes returns all nodes, in the order of their names.
func (c *Cluster) Nodes(ctx context.Context) ([]NodeInfo, error) {
	pairs, rev, err := c.readAll(ctx, keyNodes, 0)
	if err != nil {
		return nil, err
	}
	nodes, err := decodeNodes(pairs)
	if err != nil {
		return nil, err
	}
	alive, _, err := c.readAll(ctx, keyAlive, rev)
	if err != nil {
		return nil, err
	}
	usage, err := decodeAll(alive, decodeAlive)
	if err != nil {
		return nil, err
	}
	stoppingPairs, _, err := c.readAll(ctx, keyStopping, rev)
	if err != nil {
		return nil, err
	}
	stopping, err := decodeAll(stoppingPairs, decodeStopping)
	if err != nil {
		return nil, err
	}
	limitsPairs, _, err := c.readAll(ctx, keyLimits, rev)
	if err != nil {
		return nil, err
	}
	limits, err := decodeAll(limitsPairs, decodeLimits)
	if err != nil {
		return nil, err
	}
	infos := make([]NodeInfo, len(nodes))
	for i, n := range nodes {
		u, alive := usage[n.ID]
		_, stops := stopping[n.ID]
		infos[i] = NodeInfo{Node: n, Alive: alive, Usage: u, Stopping: stops, Limits: limits[n.ID]}
	}
	slices.SortFunc(infos, func(a, b NodeInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

// Node returns the node with a name. ErrNotFound if there is none.
func (c *Cluster) Node(ctx context.Context, name string) (NodeInfo, error) {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return NodeInfo{}, about(nodeNamed(name), err)
	}
	for _, n := range nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return NodeInfo{}, about(nodeNamed(name), ErrNotFound)
}

// nodes reads all nodes, in the order of their IDs; none may be added or changed.
func (t *tx) nodes(ctx context.Context) ([]Node, error) {
	pairs, err := t.list(ctx, keyNodes)
	if err != nil {
		return nil, err
	}
	return decodeNodes(pairs)
}

// nodesKept is nodes; none may be removed either.
func (t *tx) nodesKept(ctx context.Context) ([]Node, error) {
	pairs, err := t.list(ctx, keyNodes)
	if err != nil {
		return nil, err
	}
	for _, p := range pairs {
		t.reads[p.Key] = p.Mod
	}
	return decodeNodes(pairs)
}

func decodeNodes(pairs []Pair) ([]Node, error) {
	nodes := make([]Node, len(pairs))
	for i, p := range pairs {
		_, n, err := decodeNode(p)
		if err != nil {
			return nil, err
		}
		nodes[i] = n
	}
	return nodes, nil
}

func decodeNode(p Pair) (ring.NodeID, Node, error) {
	var r nodeRecord
	id, err := keyID[ring.NodeID](p.Key, keyNodes)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.node(id), err
}

func decodeAlive(p Pair) (ring.NodeID, Usage, error) {
	var r aliveRecord
	id, err := keyID[ring.NodeID](p.Key, keyAlive)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.usage(), err
}

// decodeAll decodes pairs of one kind.
func decodeAll[K comparable, V any](pairs []Pair, one func(Pair) (K, V, error)) (map[K]V, error) {
	all := make(map[K]V, len(pairs))
	for _, p := range pairs {
		k, v, err := one(p)
		if err != nil {
			return nil, err
		}
		all[k] = v
	}
	return all, nil
}

// equalRecords reports whether two records are stored as the same bytes.
func equalRecords(a, b record) bool { return string(encode(a)) == string(encode(b)) }
