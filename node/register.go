package node

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"torus/cluster"
	"torus/store"
)

// aliveEvery is how often a node says that it lives; after some 10 s without it
// counts as gone.
const aliveEvery = 3 * time.Second

// register writes the node's record, and says from then on that it lives.
func (n *Node) register(ctx context.Context) error {
	r := cluster.Node{
		ID: n.settings.ID, Name: n.settings.Name, Zone: n.settings.Zone, Host: n.settings.Host, Roles: n.settings.Roles,
		Addresses: cluster.Addresses{
			API:    addrPort(n.settings.Listen, n.settings.Port),
			Client: addrPort(n.settings.Listen, n.settings.Port+2),
			Peer:   addrPort(n.settings.Listen, n.settings.Port+3),
		},
	}
	if n.store != nil {
		st, err := n.store.Stat(ctx)
		if err != nil {
			return err
		}
		r.Identity, r.Capacity = st.Identity, st.Capacity
	}
	if err := n.cluster.RegisterNode(ctx, r); err != nil {
		return err
	}
	p := n.cluster.Announce(n.settings.ID)
	if err := p.Renew(ctx, n.usage(ctx)); err != nil {
		return err
	}
	living, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { n.keepAlive(living, p) })
	n.started("presence", func() error {
		stop()
		wg.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), aliveEvery)
		defer cancel()
		return p.Close(ctx)
	})
	return nil
}

func (n *Node) keepAlive(ctx context.Context, p *cluster.Presence) {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	var idle idleness
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := p.Renew(ctx, n.usage(ctx)); err != nil && ctx.Err() == nil {
			n.log.Warn("could not say that this node lives", "err", err)
		}
		n.releaseWhenIdle(ctx, &idle)
	}
}

// usage is what the node says of its store.
func (n *Node) usage(ctx context.Context) cluster.Usage {
	st := n.stat(ctx)
	return cluster.Usage{Used: st.Used, Live: st.Live, Corrupt: st.Corrupt, NoSpace: st.NoSpace, Failed: st.Failed}
}

// stat describes the store; without one, or when that fails, nothing but why.
func (n *Node) stat(ctx context.Context) store.Stat {
	if n.store == nil {
		return store.Stat{}
	}
	st, err := n.store.Stat(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		st.Failed = err.Error()
	}
	return st
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }
