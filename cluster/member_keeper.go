package cluster

import (
	"context"
	"errors"

	"torus/ring"
)

// MembersOptions is what keeping etcd's members needs.
type MembersOptions struct {
	Node     ring.NodeID // who keeps
	Patience Patience
	// Told is called with each new sentence on what is done or waited for, empty when all
	// is as it should be; it may be nil.
	Told func(sentence string)
}

// KeepMembers brings etcd's members to what the nodes' records ask for (see
// NextStep), one step at a time, and keeps them so until ctx ends, whose error it
// returns. All nodes call it; a record under a lease lets one at a time act.
func (c *Cluster) KeepMembers(ctx context.Context, etcd *Client, o MembersOptions) error {
	return errors.New("not built yet")
}
