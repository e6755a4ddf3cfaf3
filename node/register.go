package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"torus/cluster"
	"torus/store"
)

// aliveEvery is how often a node says that it lives; after some 10 s without it
// counts as gone.
const aliveEvery = 3 * time.Second

// ErrRemoved: the node was taken out of the cluster.
var ErrRemoved = errors.New("removed from the cluster")

// register writes the node's record, and says from then on that it lives.
func (n *Node) register(ctx context.Context) error {
	r := cluster.Node{
		ID: n.settings.ID, Name: n.settings.Name, Zone: n.settings.Zone, Host: n.settings.Host, Roles: n.settings.Roles,
		Addresses: cluster.Addresses{
			API: n.settings.address(0),
		},
	}
	if n.settings.Has(cluster.RoleEtcd) {
		r.Addresses.Client, r.Addresses.Peer = n.settings.address(2), n.settings.address(3)
	}
	if n.store != nil {
		r.Addresses.Blocks = n.settings.address(1)
		st, err := n.store.Stat(ctx)
		if err != nil {
			return err
		}
		r.Identity, r.Capacity = st.Identity, st.Capacity
	}
	p, err := n.enrol(ctx, r)
	for errors.Is(err, cluster.ErrUnavailable) || errors.Is(err, cluster.ErrUnknown) {
		if ctx.Err() != nil {
			return err
		}
		n.starting(fmt.Sprintf("the cluster's records: %v", err)) // they were there a moment ago, and will be again
		p, err = n.enrol(ctx, r)
	}
	if err != nil {
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
		if err := p.Close(ctx); err != nil { // its lease runs out by itself
			n.log.Info("could not say that this node stops", "err", err)
		}
		return nil
	})
	return nil
}

// enrol writes the node's record once, and says that it lives.
func (n *Node) enrol(ctx context.Context, r cluster.Node) (*cluster.Presence, error) {
	if n.settings.Registered {
		there, err := n.cluster.Registered(ctx, n.settings.ID)
		if err != nil {
			return nil, err
		}
		if !there {
			return nil, n.removed()
		}
	}
	if err := n.cluster.RegisterNode(ctx, r); err != nil {
		return nil, err
	}
	n.settings.Registered = true // written down when the node has started
	if err := n.cluster.Started(ctx, n.settings.ID); err != nil {
		return nil, err
	}
	p := n.cluster.Announce(n.settings.ID)
	if err := p.Renew(ctx, n.usage(ctx)); err != nil {
		return nil, err
	}
	return p, nil
}

// leavePatience bounds how long a node that was removed waits for etcd to do
// without its member; the others see to that too.
const leavePatience = 20 * time.Second

func (n *Node) leave(ctx context.Context) {
	if n.seat == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	if err := n.seat.Leave(ctx); err != nil {
		n.log.Warn("the node was removed, and stops as an etcd member", "err", err)
	}
}

func (n *Node) removed() error {
	return fmt.Errorf("node %s: %w: its directory %s can be deleted", n.settings.Name, ErrRemoved, n.dir)
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
		there, err := n.cluster.Registered(ctx, n.settings.ID)
		if is, rerr := n.cluster.Recovered(ctx); rerr == nil {
			if err := n.follows(is.Recovery); err != nil {
				n.fail(err)
				return
			}
		} else {
			err = rerr // records that were founded anew may not have this node
		}
		if err == nil && !there {
			n.leave(ctx)
			n.fail(n.removed())
			return
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
