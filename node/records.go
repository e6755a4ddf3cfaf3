package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"torus/cluster"
	"torus/volume"
)

// serverOptions are those of a member on this node.
func (n *Node) serverOptions() cluster.ServerOptions {
	s := n.settings
	return cluster.ServerOptions{
		Dir: etcdDir(n.dir, s.Recovery), Cluster: s.Cluster, Recovery: s.Recovery, Node: s.ID, Listen: s.Listen, Advertise: s.Advertise, Insecure: s.Insecure,
		ClientPort: s.Port + 2, PeerPort: s.Port + 3, Log: n.log,
	}
}

// startMember starts the etcd member of a node that founds a cluster, or that
// was a member when it ran last. The others are made members later, if at all.
func (n *Node) startMember(ctx context.Context) (err error) {
	founds := len(n.settings.Join) == 0
	dir := etcdDir(n.dir, n.settings.Recovery)
	has, err := cluster.HasMember(dir)
	switch {
	case err != nil:
		return err
	case !founds && !has:
		return nil
	case founds && n.settings.Founded && !has:
		return fmt.Errorf("directory %s: the records of cluster %s were here and are gone: if no other etcd member has them, "+
			"found them anew with \"torus recover --data-dir %s --from FILE\", from a snapshot: see \"torus metadata list --data-dir %s\"",
			dir, n.settings.Cluster, n.dir, n.dir)
	}
	if n.member, err = cluster.StartServer(ctx, n.serverOptions()); err != nil {
		return n.orRemoved(ctx, err)
	}
	n.started("etcd", n.member.Close)
	return nil
}

// orRemoved returns why a member does not start: that the node was removed, if
// the others say so.
func (n *Node) orRemoved(ctx context.Context, cause error) error {
	if !n.settings.Registered || len(n.settings.Join) == 0 || ctx.Err() != nil {
		return cause
	}
	kv, err := cluster.Dial(n.settings.Join)
	if err != nil {
		return cause
	}
	defer kv.Close()
	c, err := cluster.Open(ctx, kv, n.settings.Cluster, cluster.Options{Patience: askTimeout})
	if err != nil {
		return cause
	}
	if err := n.follows(c.Info().Recovery); err != nil {
		return err
	}
	if there, err := c.Registered(ctx, n.settings.ID); err != nil || there {
		return cause
	}
	return n.removed()
}

// openCluster opens the records, or writes the first one.
func (n *Node) openCluster(ctx context.Context) (err error) {
	if n.settings.Founded || len(n.settings.Join) > 0 {
		if err := n.dialCluster(ctx); err != nil {
			return err
		}
	} else if err := n.foundCluster(ctx); err != nil {
		return err
	}
	if n.settings.Founded {
		return nil
	}
	n.settings.Founded = true
	return n.settings.save(n.dir)
}

// foundCluster writes the first record.
func (n *Node) foundCluster(ctx context.Context) (err error) {
	if err := n.dial(); err != nil {
		return err
	}
	f := cluster.Founding{ID: n.settings.Cluster, Replicas: n.settings.Replicas}
	n.cluster, err = cluster.Found(ctx, n.records, f, cluster.Options{Log: n.log.With("part", "cluster")})
	return err
}

// dialCluster opens the records that are there. Without a majority of etcd's
// members it waits: others may be about to start.
func (n *Node) dialCluster(ctx context.Context) (err error) {
	if err := n.dial(); err != nil {
		return err
	}
	for {
		n.cluster, err = cluster.Open(ctx, n.records, n.settings.Cluster, cluster.Options{Log: n.log.With("part", "cluster")})
		if err == nil {
			return n.follows(n.cluster.Info().Recovery)
		}
		if !errors.Is(err, cluster.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		n.starting(fmt.Sprintf("the cluster's records: no majority of the etcd members at %v answers yet "+
			"(if most are lost for good: \"torus recover\" on one node, then \"torus join\" on the others)", n.records.Endpoints()))
	}
}

// dial makes the client of etcd, of the member that runs here first.
func (n *Node) dial() (err error) {
	endpoints := slices.Clone(n.settings.Join)
	if n.member != nil && !slices.Contains(endpoints, n.member.Endpoint()) {
		endpoints = append([]string{n.member.Endpoint()}, endpoints...)
	}
	if n.records, err = cluster.Dial(endpoints); err != nil {
		return err
	}
	n.started("records", n.records.Close)
	return nil
}

// startSeat makes the node an etcd member whenever it is chosen, from now on.
func (n *Node) startSeat() {
	if !n.settings.Has(cluster.RoleEtcd) {
		return
	}
	n.seat = n.cluster.TakeSeat(n.records, cluster.SeatOptions{Server: n.serverOptions(), Running: n.member})
	closed := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-n.seat.Failed():
			n.fail(n.seat.Err())
		case <-closed:
		}
	})
	n.started("etcd seat", func() error {
		close(closed)
		wg.Wait()
		return n.closeSeat()
	})
}

// seatPatience is how long a node that stops waits for its etcd member: longer
// than one takes that runs.
const seatPatience = 4 * time.Second

// closeSeat stops the etcd member. One that is still starting may ask members
// that are gone for half a minute, and cannot be called off: it is left as the
// end of the process finds it, which the next start makes good.
func (n *Node) closeSeat() error {
	done := make(chan error, 1)
	go func() { done <- n.seat.Close() }()
	select {
	case err := <-done:
		return err
	case <-time.After(seatPatience):
		n.log.Info("the etcd member is still starting: left to the end of the process")
		return nil
	}
}

// startMembership has this node take its part in keeping etcd's members.
func (n *Node) startMembership() {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := n.cluster.KeepMembers(ctx, n.records, cluster.MembersOptions{Node: n.settings.ID, Told: n.toldOfMembers})
		if ctx.Err() == nil {
			n.fail(fmt.Errorf("etcd's members are no longer looked after: %w", err))
		}
	})
	wg.Go(func() { n.rememberEndpoints(ctx) })
	n.started("membership", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

// toldOfMembers logs what becomes of etcd's members.
func (n *Node) toldOfMembers(sentence string) {
	if sentence != "" {
		n.log.Info("etcd members", "now", sentence)
	}
}

// rememberEvery is how often the node looks whether etcd's members have moved.
const rememberEvery = 5 * time.Second

// rememberEndpoints keeps in the settings where etcd's members are, so that the
// node finds the cluster when it is started again.
func (n *Node) rememberEndpoints(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, rememberEvery)
		if err := n.remember(n.records.Endpoints()); err != nil {
			n.log.Warn("etcd's endpoints not written down", "err", err)
		}
	}
}

// remember writes endpoints into the settings file, unless they are there.
func (n *Node) remember(endpoints []string) error {
	alone := len(endpoints) == 1 && n.member != nil && endpoints[0] == n.member.Endpoint()
	s, err := Load(n.dir)
	if err != nil || alone && len(s.Join) == 0 || slices.Equal(s.Join, endpoints) || len(endpoints) == 0 {
		return err
	}
	s.Join = endpoints
	return s.save(n.dir)
}

// startPeers makes the connections to other nodes' stores possible, and what the
// volumes share that bring them up to date.
func (n *Node) startPeers() {
	n.peers = newPeers(n.recordsName(), n.log.With("part", "peers"))
	n.pace = volume.NewPace(n.repairRate.Load)
	n.started("peers", n.peers.close)
}
