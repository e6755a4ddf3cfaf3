package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// begin starts the life of an attachment whose lease was granted by a call
// sent at sent.
func (a *Attachment) begin(lease Lease, sent time.Duration) {
	a.lease, a.sent, a.name = lease, sent, a.Volume.Name
	if a.c.opts.ManualRenewal {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.stop = cancel
	a.kept.Add(2)
	go func() { defer a.kept.Done(); a.keep(ctx) }()
	go func() { defer a.kept.Done(); a.watchClock(ctx) }()
}

// keep renews the lease three times in its time, until the attachment is over.
func (a *Attachment) keep(ctx context.Context) {
	for {
		timer := time.NewTimer(a.leaseNow().TTL / 3)
		select {
		case <-timer.C:
		case <-a.lost:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil || a.Err() != nil {
			return
		}
		if err := a.Renew(ctx); err != nil && ctx.Err() == nil {
			a.c.opts.Log.Warn("attachment not renewed", "volume", a.nameNow(), "epoch", a.Epoch, "err", err)
		}
	}
}

// watchClock closes Done when the lease may have run out. It is apart from keep,
// which may hang in a call just then.
func (a *Attachment) watchClock(ctx context.Context) {
	for {
		if !a.Held() {
			return
		}
		lease, sent := a.renewed()
		left := leaseLeft(sent, lease.TTL, a.c.opts.Now())
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-a.done:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// renewed returns the lease and when its last answered renewal was sent.
func (a *Attachment) renewed() (Lease, time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lease, a.sent
}

// Renew renews the lease once. If it has run out, but nobody has attached the
// volume since, the attachment goes on under a new one with the same epoch.
// ErrLost if somebody has, or has taken it by force. Any other error leaves things as they are.
func (a *Attachment) Renew(ctx context.Context) error {
	a.calls.Lock()
	defer a.calls.Unlock()
	if err := a.Err(); err != nil {
		return err
	}
	lease := a.leaseNow()
	sent := a.c.opts.Now()
	err := a.c.kv.KeepAlive(ctx, lease.ID)
	if errors.Is(err, ErrNoLease) {
		return a.failed(a.resume(ctx))
	}
	if err == nil {
		err = a.stillOurs(ctx)
	}
	if err == nil { // not before: who has taken it by force counts on our stopping within a lease
		a.renewedAt(lease, sent)
	}
	a.Held()
	return a.failed(err)
}

// stillOurs looks whether the volume was taken by force, which leaves our lease
// alone: without requests nobody else would tell.
func (a *Attachment) stillOurs(ctx context.Context) error {
	t := &tx{c: a.c, reads: map[string]Revision{}}
	_, err := a.own(ctx, t)
	return err
}

func (a *Attachment) renewedAt(lease Lease, sent time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lease, a.sent = lease, sent
}

// resume takes the attachment again under a new lease.
func (a *Attachment) resume(ctx context.Context) error {
	sent := a.c.opts.Now()
	lease, err := a.c.kv.Grant(ctx, a.c.opts.Lease)
	if err != nil {
		return err
	}
	err = a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		if v.Clean {
			return fmt.Errorf("%w: the lease ran out before the volume was served", ErrLost)
		}
		holder, under, err := t.attachedUnder(ctx, v.ID)
		if err != nil {
			return err
		}
		if holder == nil || under != lease.ID {
			t.putLeased(idKey(keyAttachments, v.ID), a.record(), lease.ID)
		}
		return nil
	})
	if err != nil {
		a.c.revoke(lease.ID)
		return err
	}
	a.renewedAt(lease, sent)
	return nil
}
