package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"torus/ring"
	"torus/store"
)

// AttachOptions say when an attachment gives way to another.
type AttachOptions struct {
	Purpose Purpose // "": ForExport
	// Dead decides whether the present holder is proven dead, so that its lease
	// need not be waited for: see ProvenDead and ProvenDeadHere. nil: never.
	Dead func(Holder) bool
	// Force takes the volume from whoever holds it.
	Force bool
}

// Attach takes a volume: the attachment's record under a new lease, and the
// next epoch, in one transaction (PROTOCOL.md, Attach 1). *BusyError if
// somebody has it and does not give way; ErrNotFound; ErrEpochs. The caller
// fences and reconciles, then calls Serving, and in the end Detach.
func (c *Cluster) Attach(ctx context.Context, name string, h Holder, o AttachOptions) (*Attachment, error) {
	a, err := c.attach(ctx, name, h, o)
	if err != nil {
		return nil, about(volumeNamed(name), err)
	}
	return a, nil
}

func (c *Cluster) attach(ctx context.Context, name string, h Holder, o AttachOptions) (*Attachment, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if o.Purpose == "" {
		o.Purpose = ForExport
	}
	if o.Purpose != ForExport && o.Purpose != ForMaintenance {
		return nil, fmt.Errorf("%w: purpose %q", ErrInvalid, o.Purpose)
	}
	sent := c.opts.Now()
	var lease Lease
	err := c.patiently(ctx, func(ctx context.Context) (err error) {
		sent = c.opts.Now()
		lease, err = c.kv.Grant(ctx, c.opts.Lease)
		return err
	})
	if err != nil {
		return nil, err
	}
	a := newAttachment(c, h, o.Purpose)
	err = c.transact(ctx, func(ctx context.Context, t *tx) error { return a.take(ctx, t, name, o, lease.ID) })
	if err == nil {
		err = a.describe(ctx)
	}
	if err != nil {
		c.revoke(lease.ID)
		return nil, err
	}
	a.begin(lease, sent)
	return a, nil
}

// take is the transaction of Attach.
func (a *Attachment) take(ctx context.Context, t *tx, name string, o AttachOptions, lease LeaseID) error {
	if err := t.sameRecords(ctx); err != nil {
		return err
	}
	v, err := t.volume(ctx, name)
	if err != nil {
		return err
	}
	holder, under, err := t.attachedUnder(ctx, v.ID)
	if err != nil {
		return err
	}
	if holder != nil && under == lease {
		return nil // done by a run before, whose outcome was unknown, and as that run left a
	}
	if holder != nil && !o.Force && (o.Dead == nil || !o.Dead(holder.Holder)) {
		return &BusyError{Volume: name, Holder: holder.Holder, Purpose: holder.Purpose, Epoch: holder.Epoch}
	}
	l, err := t.lineage(ctx, v.Lineage)
	if err != nil {
		return err
	}
	if l.Epoch >= store.MaxEpoch {
		return fmt.Errorf("%w: lineage %v has used all %d", ErrEpochs, l.ID, store.MaxEpoch)
	}
	l.Epoch++
	v.Epoch = l.Epoch
	a.Volume, a.Lineage, a.Epoch, a.Replaced = v, l, l.Epoch, holder
	t.put(idKey(keyLineages, l.ID), newLineageRecord(l))
	t.put(keyVolumes+v.Name, newVolumeRecord(v))
	t.putLeased(idKey(keyAttachments, v.ID), a.record(), lease)
	return nil
}

// describe reads what belongs to the attachment, after its transaction.
func (a *Attachment) describe(ctx context.Context) error {
	_, rev, err := a.c.readAll(ctx, keyCluster, 0)
	if err != nil {
		return err
	}
	// A target may have been set since the transaction.
	var l lineageRecord
	key := idKey(keyLineages, a.Lineage.ID)
	found, err := a.c.read(ctx, key, rev, &l)
	if err == nil && !found {
		err = corrupt(key, "missing, although volume %s names it", a.Volume.Name)
	}
	if err != nil {
		return err
	}
	a.Lineage = l.lineage(a.Lineage.ID)
	for layer := a.Volume.Head; layer != 0; {
		var r layerRecord
		key := idKey(keyLayers, layer)
		found, err := a.c.read(ctx, key, rev, &r)
		if err != nil {
			return err
		}
		if !found || r.Deleted {
			return corrupt(key, "missing or deleted, although it is in the chain of volume %s", a.Volume.Name)
		}
		a.Chain = append(a.Chain, layer)
		stale, err := a.c.staleBelow(ctx, staleLayer(layer), rev)
		if err != nil {
			return err
		}
		a.Stale = append(a.Stale, stale...)
		if len(a.Chain) > maxChain {
			return corrupt(key, "the chain of volume %s has more than %d layers", a.Volume.Name, maxChain)
		}
		layer = store.LayerID(r.Parent)
	}
	if a.Ring, err = a.ringAt(ctx, a.Lineage.Ring, rev); err != nil {
		return err
	}
	var u uncomparedRecord
	if a.Uncompared, err = a.c.read(ctx, idKey(keyUncompared, a.Volume.ID), rev, &u); err != nil {
		return err
	}
	a.Served = u.Served
	is, err := a.c.Recovered(ctx)
	if err != nil {
		return err
	}
	a.Unconfirmed = is.Recovery != (Recovery{}) && !is.Confirmed
	if a.Lineage.Target != 0 {
		if a.Target, err = a.ringAt(ctx, a.Lineage.Target, rev); err != nil {
			return err
		}
	}
	a.Incarnations, err = a.c.incarnations(ctx, a.Volume.ID, rev)
	return err
}

// maxChain ends the search for the end of a chain.
const maxChain = 1 << 16

// incarnationsOf returns the prefix of a volume's incarnations.
func incarnationsOf(vol store.VolumeID) string { return idKey(keyIncarnations, vol) + "/" }

func incarnationKey(vol store.VolumeID, node ring.NodeID, target uint64) string {
	return roleKey(incarnationsOf(vol), node, target)
}

// incarnations reads what is recorded for a volume, in the order of nodes, and of rings.
func (c *Cluster) incarnations(ctx context.Context, vol store.VolumeID, at Revision) ([]Incarnation, error) {
	prefix := incarnationsOf(vol)
	pairs, _, err := c.readAll(ctx, prefix, at)
	if err != nil {
		return nil, err
	}
	all := make([]Incarnation, len(pairs))
	for i, p := range pairs {
		if all[i], err = decodeIncarnation(p, prefix); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// revoke ends a lease that nobody needs, whatever became of the caller's
// context. If that fails it runs out by itself.
func (c *Cluster) revoke(id LeaseID) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := c.kv.Revoke(ctx, id); err != nil && !errors.Is(err, ErrClosed) {
		c.opts.Log.Debug("lease not revoked, runs out by itself", "err", err)
	}
}

// leaseLeft returns how long a lease lasts surely: its time since the sending
// of the last renewal that was answered.
func leaseLeft(sent, ttl, now time.Duration) time.Duration { return sent + ttl - now }

// ringAt reads a ring that the lineage names.
func (a *Attachment) ringAt(ctx context.Context, number uint64, at Revision) (Ring, error) {
	var r ringRecord
	key := idKey(keyRings, number)
	found, err := a.c.read(ctx, key, at, &r)
	if err == nil && !found {
		err = corrupt(key, "missing, although lineage %v names it", a.Lineage.ID)
	}
	return r.ring(number), err
}
