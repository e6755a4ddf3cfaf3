package cluster

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"torus/ring"
	"torus/store"
)

// stoppingTTL is how long it counts that a node stops, from when it said so; and
// how long an operator's request for that is kept for the node to see.
const stoppingTTL = 15 * time.Second

// Stopping says that a node is about to stop. Who has a volume with a copy there
// sees it (WatchStopping), and goes on without. It is forgotten after 15 s, or by
// Started.
func (c *Cluster) Stopping(ctx context.Context, node ring.NodeID) error {
	return about("node "+node.String(), c.putFor(ctx, idKey(keyStopping, node), &stoppingRecord{At: c.wall()}, stoppingTTL))
}

// Started says that a node that was to stop is there again.
func (c *Cluster) Started(ctx context.Context, node ring.NodeID) error {
	return about("node "+node.String(), c.deleteIfThere(ctx, idKey(keyStopping, node)))
}

// WatchStopping yields the nodes that are about to stop and when they said so, as
// WatchVolumes does volumes.
func (c *Cluster) WatchStopping(ctx context.Context) iter.Seq2[Update[ring.NodeID, time.Time], error] {
	return watch(ctx, c, keyStopping, idOf[ring.NodeID](keyStopping), decodeStopping)
}

// AskToStop asks a node to stop as on SIGTERM. by says who asks. The node takes
// the request up (WatchStop) and away (StopTaken); it is forgotten after 15 s.
func (c *Cluster) AskToStop(ctx context.Context, node Node, by string) error {
	err := c.putFor(ctx, idKey(keyStop, node.ID), &stopRecord{By: by, At: c.wall()}, stoppingTTL)
	return about(nodeNamed(node.Name), err)
}

// StopTaken takes the request to stop a node away.
func (c *Cluster) StopTaken(ctx context.Context, node ring.NodeID) error {
	return about("node "+node.String(), c.deleteIfThere(ctx, idKey(keyStop, node)))
}

// WatchStop yields who asks a node to stop, as WatchVolumes does volumes.
func (c *Cluster) WatchStop(ctx context.Context, node ring.NodeID) iter.Seq2[Update[ring.NodeID, string], error] {
	return watch(ctx, c, idKey(keyStop, node), idOf[ring.NodeID](keyStop), decodeStop)
}

// putFor writes a record that is forgotten after ttl.
func (c *Cluster) putFor(ctx context.Context, key string, r record, ttl time.Duration) error {
	var lease Lease
	err := c.patiently(ctx, func(ctx context.Context) (err error) {
		lease, err = c.kv.Grant(ctx, ttl)
		return err
	})
	if err != nil {
		return err
	}
	return c.transact(ctx, func(ctx context.Context, t *tx) error {
		p, err := t.pair(ctx, key)
		if err == nil && p.Lease != lease.ID { // else done by a run before, whose outcome was unknown
			t.putLeased(key, r, lease.ID)
		}
		return err
	})
}

func (c *Cluster) deleteIfThere(ctx context.Context, key string) error {
	return c.transact(ctx, func(ctx context.Context, t *tx) error {
		p, err := t.pair(ctx, key)
		if err == nil && p.Mod != 0 {
			t.delete(key)
		}
		return err
	})
}

// Without says how an attached volume does when a node stops that has copies of it.
type Without uint8

const (
	// WithoutLetGo: its holder goes on without the node already.
	WithoutLetGo Without = iota
	// WithoutSpare: there are copies enough, and its holder can go on.
	WithoutSpare
	// WithoutSoon: there are when those that lack writes are up to date, on nodes
	// that live.
	WithoutSoon
	// WithoutNot: requests will wait until the node is back.
	WithoutNot
)

// A Dependent is an attached volume whose ring has a certain node.
type Dependent struct {
	VolumeInfo
	Without Without
}

// Dependents returns the attached volumes whose rings have a node, and how they
// do without it, as far as the records say.
func (c *Cluster) Dependents(ctx context.Context, node ring.NodeID) ([]Dependent, error) {
	vols, err := c.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	vols = slices.DeleteFunc(vols, func(v VolumeInfo) bool { return v.Attached == nil })
	if len(vols) == 0 {
		return nil, nil
	}
	rings, err := c.Rings(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	live := map[ring.NodeID]bool{}
	for _, n := range nodes {
		live[n.ID] = n.Alive && !n.Stopping
	}
	var all []Dependent
	for _, v := range vols {
		i := slices.IndexFunc(rings, func(r Ring) bool { return r.Number == v.Lineage.Ring })
		if i < 0 {
			return nil, corrupt(idKey(keyRings, v.Lineage.Ring), "missing, although volume %s is on it", v.Name)
		}
		if !rings[i].Has(node) {
			continue
		}
		stale := map[ring.NodeID]bool{}
		for _, s := range v.Stale {
			stale[s.Node] = true
		}
		all = append(all, Dependent{v, doesWithout(node, copySets(rings[i], v.Volume), v.Lineage.MinCopies, stale, live)})
	}
	return all, nil
}

// copySets returns on which nodes the chunks of a volume lie, each set once.
func copySets(r Ring, v Volume) [][]ring.NodeID {
	chunks := min((v.Size+store.ChunkSize-1)/store.ChunkSize, ring.Partitions)
	var sets [][]ring.NodeID
	seen := map[string]bool{}
	for chunk := range chunks {
		ids := slices.Sorted(slices.Values(r.Nodes(v.Lineage, ring.ChunkIndex(chunk))))
		if key := fmt.Sprint(ids); !seen[key] {
			seen[key] = true
			sets = append(sets, ids)
		}
	}
	return sets
}

// doesWithout decides how a volume does without a node: sets are where its chunks lie,
// stale the nodes that are recorded so, live those that are there and stay.
func doesWithout(node ring.NodeID, sets [][]ring.NodeID, minCopies int, stale, live map[ring.NodeID]bool) Without {
	if stale[node] {
		return WithoutLetGo
	}
	worst := WithoutSpare
	for _, set := range sets {
		if !slices.Contains(set, node) {
			continue
		}
		inSync, soon := 0, 0
		for _, id := range set {
			switch {
			case id == node:
			case !stale[id]:
				inSync++
			case live[id]:
				soon++
			}
		}
		switch need := max(minCopies, 1); {
		case inSync >= need:
		case inSync+soon >= need:
			worst = max(worst, WithoutSoon)
		default:
			worst = WithoutNot
		}
	}
	return worst
}

func decodeStopping(p Pair) (ring.NodeID, time.Time, error) {
	var r stoppingRecord
	id, err := keyID[ring.NodeID](p.Key, keyStopping)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.At, err
}

func decodeStop(p Pair) (ring.NodeID, string, error) {
	var r stopRecord
	id, err := keyID[ring.NodeID](p.Key, keyStop)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.By, err
}
