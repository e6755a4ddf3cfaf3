package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"torus/cluster"
	"torus/ring"
	"torus/store"
)

// A dialer finds the stores of a ring's nodes: this node's own directly, the
// others over connections, at the addresses where they are now.
type dialer struct {
	node *Node

	mu    sync.Mutex
	known map[ring.NodeID]cluster.Node // as last read
}

// lookPatience bounds how long the records may take to say where a node is. It
// is short: while they don't answer, the address where it was does.
const lookPatience = time.Second

// newDialer reads the records of all nodes.
func (n *Node) newDialer(ctx context.Context) (*dialer, error) {
	d := &dialer{node: n}
	return d, d.look(ctx)
}

func (d *dialer) look(ctx context.Context) error {
	nodes, err := d.node.cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	known := make(map[ring.NodeID]cluster.Node, len(nodes))
	for _, n := range nodes {
		known[n.ID] = n.Node
	}
	d.mu.Lock()
	d.known = known
	d.mu.Unlock()
	return nil
}

// of returns a node's record.
func (d *dialer) of(id ring.NodeID) (cluster.Node, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, is := d.known[id]
	return n, is
}

// distances says how far the nodes are from this process.
func (d *dialer) distances() func(ring.NodeID) int {
	s := d.node.settings
	self := cluster.Node{ID: s.ID, Host: s.Host, Zone: s.Zone}
	d.mu.Lock()
	defer d.mu.Unlock()
	far := make(map[ring.NodeID]int, len(d.known))
	for id, n := range d.known {
		far[id] = distance(self, n)
	}
	return func(id ring.NodeID) int {
		if f, is := far[id]; is {
			return f
		}
		return elsewhere
	}
}

// store returns a node's store, where it is now. It may be called concurrently.
func (d *dialer) store(ctx context.Context, id ring.NodeID) (store.Store, error) {
	if id == d.node.settings.ID && d.node.store != nil {
		return d.node.store, nil
	}
	looking, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	err := d.look(looking)
	n, is := d.of(id)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, err
	case !is:
		return nil, fmt.Errorf("a copy lies on node %v, of which there is no record", id)
	}
	return d.node.peers.store(n)
}
