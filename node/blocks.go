package node

import (
	"fmt"
	"net"
	"sync"

	"torus/cluster"
	"torus/store/remote"
)

// listenBlocks opens the port on which exporters on other nodes reach the store.
func (n *Node) listenBlocks() (net.Listener, error) {
	if !n.settings.Has(cluster.RoleStorage) {
		return nil, nil
	}
	addr := addrPort(n.settings.Listen, n.settings.Port+1)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("blocks on %s: %w: choose another base port with --port, or any free one with --port 0", addr, cause(err))
	}
	return l, nil
}

// startBlocks serves the store to exporters on other nodes.
func (n *Node) startBlocks() {
	if n.blocksListener == nil {
		return
	}
	s := remote.NewServer(remote.ServerOptions{
		Store: n.store, Cluster: n.recordsName(), Node: uint64(n.settings.ID), Logger: n.log.With("part", "blocks"),
	})
	n.blocks = s
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(n.blocksListener); err != nil {
			n.fail(fmt.Errorf("blocks on %v: %w", n.blocksListener.Addr(), err))
		}
	})
	n.started("blocks", func() error {
		err := s.Close()
		wg.Wait()
		return err
	})
}
