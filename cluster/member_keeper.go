package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"torus/ring"
)

// MembersOptions is what keeping etcd's members needs.
type MembersOptions struct {
	Node     ring.NodeID // who keeps
	Patience Patience
	// Told is called with each new sentence on what is done or waited for, empty when all
	// is as it should be; it may be nil. Other nodes read it with Keeping.
	Told func(sentence string)
}

// keeperTTL is how long after the end of the keeping node another takes over.
const keeperTTL = 10 * time.Second

// How often the keeper looks: at rest, and while something is under way. It alone
// does, three reads each time, which is less than following three kinds of records.
const (
	lookEvery        = time.Second
	lookAgainSoon    = 100 * time.Millisecond
	lookAfterRefusal = 300 * time.Millisecond
)

// KeepMembers brings etcd's members to what the nodes' records ask for (see
// NextStep), one step at a time, and keeps them so until ctx ends, whose error it
// returns. All nodes call it; a record under a lease lets one at a time act.
func (c *Cluster) KeepMembers(ctx context.Context, etcd *Client, o MembersOptions) error {
	o.Patience = o.Patience.orDefault()
	if o.Told == nil {
		o.Told = func(string) {}
	}
	k := &keeper{c: c, etcd: etcd, o: o}
	for pause := firstPause; ctx.Err() == nil; {
		err := k.take(ctx)
		switch {
		case err == nil:
			pause = firstPause
			err = k.keep(ctx)
			k.giveUp()
		case errors.Is(err, ErrBusy):
			k.gone, k.waiting = nil, nil // what happens now, this node does not see
			err = c.watchKeeping(ctx, func(k Keeping) bool { return k.Node != 0 })
		}
		if err != nil && ctx.Err() == nil {
			c.opts.Log.Debug("keeping etcd's members begins anew", "err", err)
			wait(ctx, &pause)
		}
	}
	return ctx.Err()
}

// watchKeeping calls on with who keeps, and again whenever that changes, until it returns
// false. While the records are unavailable it waits.
func (c *Cluster) watchKeeping(ctx context.Context, on func(Keeping) bool) error {
	key := func(key string) (string, error) { return key, nil }
	for u, err := range watch(ctx, c, keyKeeper, key, decodeKeeping) {
		if err != nil {
			return err
		}
		if !on(u.Put[keyKeeper]) { // zero when it is gone
			return nil
		}
	}
	return ctx.Err()
}

// keeper is the one node that changes etcd's members.
type keeper struct {
	c    *Cluster
	etcd *Client
	o    MembersOptions

	lease Lease
	sent  time.Duration // the last renewal that was answered
	doing string        // as the record says

	gone    map[ring.NodeID]time.Duration // since when a node has not been alive
	waiting map[MemberID]time.Duration    // since when a member has been seen not started

	refused Step          // what etcd has refused last; zero: nothing since it did a step
	since   time.Duration // of the first refusal
	warned  bool          // of that
}

// refusalPatience is how long etcd may refuse a change before the log warns of it: after
// another change it does for 5 s.
const refusalPatience = 15 * time.Second

// take makes this node the keeper. ErrBusy if another one is.
func (k *keeper) take(ctx context.Context) error {
	k.sent = k.c.opts.Now()
	lease, err := k.c.kv.Grant(ctx, keeperTTL)
	if err != nil {
		return err
	}
	k.lease, k.doing = lease, ""
	err = k.c.transact(ctx, func(ctx context.Context, t *tx) error {
		p, err := t.pair(ctx, keyKeeper)
		switch {
		case err != nil:
			return err
		case p.Mod != 0 && p.Lease != lease.ID:
			return ErrBusy
		case p.Mod == 0:
			t.putLeased(keyKeeper, newKeeperRecord(Keeping{Node: k.o.Node, Since: k.c.wall()}), lease.ID)
		}
		return nil
	})
	if err != nil {
		k.giveUp()
	}
	return err
}

// giveUp lets another node keep.
func (k *keeper) giveUp() { k.c.revoke(k.lease.ID) }

// keep does step after step, until ctx or the lease ends.
func (k *keeper) keep(ctx context.Context) error {
	for {
		if err := k.renew(ctx); err != nil {
			return err
		}
		pause, err := k.look(ctx)
		if err != nil {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// look does the step that is due, and says when to look again.
func (k *keeper) look(ctx context.Context) (time.Duration, error) {
	step, err := k.next(ctx)
	if err == nil && (step.Kind <= StepWait || step != k.refused) { // of that the record says more
		err = k.tell(ctx, step.Why)
	}
	switch {
	case err != nil:
		return 0, err
	case step.Kind == StepNone:
		return lookEvery, nil
	case step.Kind == StepWait:
		return lookAgainSoon, nil
	}
	switch refusal, err := k.do(ctx, step); {
	case err != nil:
		return 0, err
	case refusal != nil:
		return lookAfterRefusal, k.tell(ctx, fmt.Sprintf("%s: %v", step.Why, refusal))
	}
	return lookAgainSoon, nil
}

// renew keeps the lease, three times in its time.
func (k *keeper) renew(ctx context.Context) error {
	now := k.c.opts.Now()
	if now-k.sent < k.lease.TTL/3 {
		return nil
	}
	if err := k.c.kv.KeepAlive(ctx, k.lease.ID); err != nil {
		if errors.Is(err, ErrUnavailable) && leaseLeft(k.sent, k.lease.TTL, now) > 0 {
			return nil // there is time to try again
		}
		return err
	}
	k.sent = now
	return nil
}

// next reads nodes and members, and decides.
func (k *keeper) next(ctx context.Context) (Step, error) {
	nodes, err := k.c.Nodes(ctx)
	if err != nil {
		return Step{}, err
	}
	members, err := k.etcd.Members(ctx)
	if err != nil {
		return Step{}, err
	}
	candidates := k.candidates(nodes)
	return NextStep(candidates, k.seated(ctx, members, candidates), k.o.Patience), nil
}

// candidates remembers since when nodes have not been alive, as this keeper saw it.
func (k *keeper) candidates(nodes []NodeInfo) []Candidate {
	all := make([]Candidate, len(nodes))
	gone := map[ring.NodeID]time.Duration{}
	for i, n := range nodes {
		all[i] = Candidate{
			ID: n.ID, Name: n.Name, Zone: n.Zone, Host: n.Host, Alive: n.Alive,
			Etcd: n.Has(RoleEtcd) && n.Addresses.Peer != "", Peer: n.Addresses.Peer, Client: n.Addresses.Client,
		}
		if !n.Alive {
			all[i].Gone = stillSo(k.gone, gone, n.ID, k.c.opts.Now())
		}
	}
	k.gone = gone
	return all
}

// seated finds out which members have started. That a learner has makes itself known
// through etcd only after 7 s in a third of joins, so it is asked.
func (k *keeper) seated(ctx context.Context, members []Member, nodes []Candidate) []Seated {
	all := make([]Seated, len(members))
	waiting := map[MemberID]time.Duration{}
	for i, m := range members {
		all[i] = Seated{Member: m, Started: m.Node != 0 || !m.Learner}
		for _, n := range nodes {
			if !all[i].Started && n.Alive && all[i].of(n) {
				all[i].Started = k.etcd.reachable(ctx, n.Client, m.ID)
			}
		}
		if !all[i].Started {
			all[i].Waiting = stillSo(k.waiting, waiting, m.ID, k.c.opts.Now())
		}
	}
	k.waiting = waiting
	return all
}

// stillSo notes in now what was so before or is so from this time on, and returns for how long.
func stillSo[K comparable](before, now map[K]time.Duration, key K, at time.Duration) time.Duration {
	since, known := before[key]
	if !known {
		since = at
	}
	now[key] = since
	return at - since
}

// do does a step, unless etcd refuses: it may do so for a while.
func (k *keeper) do(ctx context.Context, s Step) (refusal, err error) {
	if leaseLeft(k.sent, k.lease.TTL, k.c.opts.Now()) <= 0 {
		return nil, fmt.Errorf("%w: the keeper's", ErrNoLease) // another may be at it
	}
	switch s.Kind {
	case StepAdd:
		_, refusal = k.etcd.addLearner(ctx, s.Peer)
	case StepPromote:
		refusal = k.etcd.promote(ctx, s.Member)
	case StepRemove:
		refusal = k.etcd.remove(ctx, s.Member)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	k.note(s, refusal)
	return refusal, nil
}

// note remembers what etcd refuses, and warns, once, when that goes on for long.
func (k *keeper) note(s Step, refusal error) {
	if refusal == nil {
		k.refused, k.warned = Step{}, false
		return
	}
	now := k.c.opts.Now()
	if k.refused == (Step{}) {
		k.since = now
	}
	k.refused = s
	if !k.warned && now-k.since >= refusalPatience {
		k.warned = true
		k.c.opts.Log.Warn("etcd's members can't be changed", "step", s.Why, "for", now-k.since, "err", refusal)
	}
}

// tell makes known what is done or waited for.
func (k *keeper) tell(ctx context.Context, doing string) error {
	if doing == k.doing {
		return nil
	}
	err := k.c.transact(ctx, func(ctx context.Context, t *tx) error {
		p, err := t.pair(ctx, keyKeeper)
		switch {
		case err != nil:
			return err
		case p.Lease != k.lease.ID:
			return fmt.Errorf("%w: another node keeps etcd's members", ErrLost)
		}
		t.putLeased(keyKeeper, newKeeperRecord(Keeping{Node: k.o.Node, Doing: doing, Since: k.c.wall()}), k.lease.ID)
		return nil
	})
	if err != nil {
		return err
	}
	k.doing = doing
	if doing != "" {
		k.c.opts.Log.Info("etcd's members: " + doing)
	}
	k.o.Told(doing)
	return nil
}
