package cluster

import (
	"context"
	"errors"
	"sync"
	"time"

	"torus/ring"
)

// Presence keeps the record that says a node lives.
type Presence struct {
	c    *Cluster
	node ring.NodeID

	mu     sync.Mutex // guards all below, and is held over the calls
	lease  Lease
	told   Usage
	toldAt time.Duration
}

// presenceTTL is how long a node counts as alive after its last sign.
const presenceTTL = 10 * time.Second

// Announce begins the record that says node lives. Nothing is written before
// the first Renew.
func (c *Cluster) Announce(node ring.NodeID) *Presence { return &Presence{c: c, node: node} }

// Renew says that the node lives, and what it uses. It is to be called every
// three seconds or so. Small changes of use are told only now and then. An error
// leaves it to the next call.
func (p *Presence) Renew(ctx context.Context, u Usage) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lease.ID != 0 {
		err := p.c.kv.KeepAlive(ctx, p.lease.ID)
		if err == nil && !worthTelling(p.told, u, p.c.opts.Now()-p.toldAt) {
			return nil
		}
		if err == nil {
			err = p.tell(ctx, u)
		}
		if !errors.Is(err, ErrNoLease) {
			return about("node "+p.node.String(), err)
		}
	}
	lease, err := p.c.kv.Grant(ctx, presenceTTL)
	if err == nil {
		p.lease = lease
		err = p.tell(ctx, u)
	}
	return about("node "+p.node.String(), err)
}

// tell writes the record. Under mu.
func (p *Presence) tell(ctx context.Context, u Usage) error {
	key := idKey(keyAlive, p.node)
	err := p.c.transact(ctx, func(ctx context.Context, t *tx) error {
		if _, err := t.get(ctx, key, &aliveRecord{}); err != nil {
			return err
		}
		t.putLeased(key, newAliveRecord(u), p.lease.ID)
		return nil
	})
	if err == nil {
		p.told, p.toldAt = u, p.c.opts.Now()
	}
	return err
}

// Close says that the node is gone.
func (p *Presence) Close(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lease.ID == 0 {
		return nil
	}
	id := p.lease.ID
	p.lease = Lease{}
	return about("node "+p.node.String(), p.c.kv.Revoke(ctx, id))
}

// worthTelling decides whether use has changed enough, or long enough ago, to
// be written: each write is an fdatasync on every voter.
func worthTelling(told, now Usage, since time.Duration) bool {
	if told == now {
		return false
	}
	if told.NoSpace != now.NoSpace || told.Failed != now.Failed || told.Corrupt != now.Corrupt {
		return true
	}
	const muchBytes = 1 << 30
	return since >= 30*time.Second || max(now.Used-told.Used, told.Used-now.Used) >= muchBytes
}
