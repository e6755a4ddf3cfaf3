package cluster

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"time"

	"torus/ring"
)

// Limits are what an operator allows a node.
type Limits struct {
	// RepairRate bounds what the volumes attached there bring copies up to date
	// with, in bytes/s; 0: no bound but the half that clients leave.
	RepairRate int64
	// AwayAfter is how long the node may stay away before its data is rebuilt on
	// others, in whole seconds; 0: DefaultAwayAfter; negative: for ever.
	AwayAfter time.Duration
}

// DefaultAwayAfter is AwayAfter where nobody has set it.
const DefaultAwayAfter = 10 * time.Minute

// Away reports whether a node that has been away so long is to be done without.
func (l Limits) Away(so time.Duration) bool {
	after := cmp.Or(l.AwayAfter, DefaultAwayAfter)
	return after > 0 && so >= after
}

// maxRepairRate is more than any machine can.
const maxRepairRate = 1 << 50

// SetLimits sets what a node is allowed. ErrNotFound if there is no such node.
func (c *Cluster) SetLimits(ctx context.Context, name string, l Limits) error {
	err := newLimitsRecord(l).check()
	if err == nil {
		err = c.transact(ctx, func(ctx context.Context, t *tx) error { return t.setLimits(ctx, name, l) })
	}
	return about(nodeNamed(name), err)
}

func (t *tx) setLimits(ctx context.Context, name string, l Limits) error {
	nodes, err := t.nodesKept(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		return ErrNotFound
	}
	var have limitsRecord
	key, want := idKey(keyLimits, nodes[i].ID), newLimitsRecord(l)
	found, err := t.get(ctx, key, &have)
	if err == nil && !(found && equalRecords(&have, want)) {
		t.put(key, want)
	}
	return err
}

// WatchLimits yields what a node is allowed, as WatchVolumes does volumes.
// Nothing if it never was set.
func (c *Cluster) WatchLimits(ctx context.Context, node ring.NodeID) iter.Seq2[Update[ring.NodeID, Limits], error] {
	return watch(ctx, c, idKey(keyLimits, node), idOf[ring.NodeID](keyLimits), decodeLimits)
}

func decodeLimits(p Pair) (ring.NodeID, Limits, error) {
	var r limitsRecord
	id, err := keyID[ring.NodeID](p.Key, keyLimits)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.limits(), err
}
