package node

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"torus/cluster"
	"torus/ring"
	"torus/store"
	"torus/store/remote"
)

// peers are the stores of other nodes, one connection pool for each, shared by
// all volumes of this process. Connecting is left to the first request.
type peers struct {
	records string // Node.recordsName
	log     *slog.Logger

	mu      sync.Mutex // guards what follows; not held while connections are closed
	byNode  map[ring.NodeID]*peer
	closed  bool
	closing sync.WaitGroup // of former connections
}

// A peer is a node's store at the address where it was last.
type peer struct {
	addr  string
	store *remote.Client
}

func newPeers(records string, log *slog.Logger) *peers {
	return &peers{records: records, log: log, byNode: map[ring.NodeID]*peer{}}
}

// store returns the store of a node. If the node has moved, the connections to
// its former address are closed: volumes that use them lose them anyway.
func (p *peers) store(n cluster.Node) (store.Store, error) {
	if n.Addresses.Blocks == "" {
		return nil, fmt.Errorf("node %s keeps no blocks", n.Name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errClosed
	}
	have := p.byNode[n.ID]
	if have != nil && have.addr == n.Addresses.Blocks {
		return have.store, nil
	}
	if have != nil {
		p.closing.Go(func() {
			if err := have.store.Close(); err != nil {
				p.log.Warn("connections to a former address not closed", "node", n.Name, "addr", have.addr, "err", err)
			}
		})
	}
	c := remote.NewClient(remote.ClientOptions{
		Addr: n.Addresses.Blocks, Cluster: p.records, Node: uint64(n.ID), Logger: p.log.With("node", n.Name),
	})
	p.byNode[n.ID] = &peer{n.Addresses.Blocks, c}
	return c, nil
}

// close closes all connections. The volumes are closed before.
func (p *peers) close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.closing.Wait()
	var errs []error
	for _, c := range p.byNode { // which nobody changes any more
		errs = append(errs, c.store.Close())
	}
	return errors.Join(errs...)
}
