package cluster

import (
	"context"
	"time"

	"torus/ring"
)

// The record of who keeps etcd's members, under a lease: one node at a time changes
// them. It changes with what is being done, so whoever waits to become a member watches it.
//
//	key                        format  value
//	/torus/keeper              1       node, doing, since (lease)
const keyKeeper = keyRoot + "keeper"

// Keeping is who keeps etcd's members, and what of them is being changed or waited for.
type Keeping struct {
	Node  ring.NodeID
	Doing string    // a sentence; empty when all is as it should be
	Since time.Time // of that
}

type keeperRecord struct {
	format
	Node  hexID     `json:"node"`
	Doing string    `json:"doing"`
	Since time.Time `json:"since"`
}

func (r *keeperRecord) check() error { return nil }

func (r *keeperRecord) keeping() Keeping {
	return Keeping{Node: ring.NodeID(r.Node), Doing: r.Doing, Since: r.Since}
}

func newKeeperRecord(k Keeping) *keeperRecord {
	return &keeperRecord{Node: hexID(k.Node), Doing: k.Doing, Since: k.Since}
}

// Keeping returns who keeps etcd's members and what is being done: the zero Keeping if
// nobody does at the moment.
func (c *Cluster) Keeping(ctx context.Context) (Keeping, error) {
	var r keeperRecord
	found, err := c.read(ctx, keyKeeper, 0, &r)
	if err != nil || !found {
		return Keeping{}, err
	}
	return r.keeping(), nil
}

func decodeKeeping(p Pair) (string, Keeping, error) {
	var r keeperRecord
	err := decode(p.Key, p.Value, &r)
	return p.Key, r.keeping(), err
}
