package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"torus/store"
)

// Attachment is one holding of a volume, from Attach to Detach:
//
//	Attach ──► taken ──Serving──► serving ──Detach──► over
//	             │                   │  ▲               ▲
//	             │            lapsed │  │ renewed       │
//	             └──────lapsed──────►└──┴───────────────┘ lost: another has it
//
// It is lapsed when its lease may have run out, and Done is closed; it may be
// renewed yet, as long as nobody else has attached the volume. It is lost when
// somebody has, or the volume is gone, and then Lost is closed.
//
// The exported fields do not change after Attach.
type Attachment struct {
	Volume       Volume // as the transaction left it; Clean: as the last holder left it
	Lineage      Lineage
	Epoch        store.Epoch
	Chain        []store.LayerID // head first
	Ring         Ring
	Target       Ring          // that is to follow; its Number is 0 if there is none
	Incarnations []Incarnation // as recorded, in the order of nodes
	Stale        []Stale       // as recorded, of the layers of Chain
	Holder       Holder
	Purpose      Purpose
	// Replaced is the holder that did not detach. Unless it is nil every
	// in-sync copy must be fenced before anything is served.
	Replaced *Attached

	// Uncompared: the records were founded anew, and nobody has served the volume
	// since. What they say of its copies, and epochs, may be of any age; Served: it
	// had been served when they were saved.
	Uncompared, Served bool
	// Unconfirmed: no operator has confirmed the recovery of the records yet, so
	// nothing is to be collected (I8).
	Unconfirmed bool

	c     *Cluster
	since time.Time
	done  chan struct{}
	lost  chan struct{}
	stop  context.CancelFunc // ends keep; nil with manual renewal
	kept  sync.WaitGroup

	// calls is held over Renew and Detach, and taken before mu: a renewal under
	// way must not take again what Detach gives up.
	calls sync.Mutex

	mu       sync.Mutex // guards all below
	name     string     // of the volume, as last seen
	lease    Lease
	sent     time.Duration // of the last renewal that was answered, on c.opts.Now
	isDone   bool
	lostErr  error
	served   bool // Serving was recorded
	detached bool
}

func newAttachment(c *Cluster, h Holder, p Purpose) *Attachment {
	return &Attachment{
		c: c, Holder: h, Purpose: p, since: c.wall(),
		done: make(chan struct{}), lost: make(chan struct{}),
	}
}

// record returns the attachment as it is stored.
func (a *Attachment) record() *attachedRecord {
	return newAttachedRecord(Attached{
		Volume: a.Volume.ID, Epoch: a.Epoch, Holder: a.Holder, Purpose: a.Purpose, Since: a.since,
	})
}

// MinCopies is how many in-sync copies an acknowledged write needs: no more than the
// ring gives a chunk, which may be fewer until it has followed the policy.
func (a *Attachment) MinCopies() int { return min(a.Lineage.MinCopies, a.Ring.Copies()) }

// Done is closed as soon as the lease may have run out, judged by our own clock.
func (a *Attachment) Done() <-chan struct{} { return a.done }

// Lost is closed when the attachment is over for good: somebody else has, or
// had, the volume, or it was detached. Err says which.
func (a *Attachment) Lost() <-chan struct{} { return a.lost }

// Err returns why the attachment is over; nil while it isn't. It is ErrLost.
func (a *Attachment) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lostErr
}

// Held reports whether the lease surely has not run out: to be asked when a
// request arrives, as timers stand still while the machine is suspended.
// After false it may be true again.
func (a *Attachment) Held() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lostErr == nil && leaseLeft(a.sent, a.lease.TTL, a.c.opts.Now()) > 0 {
		return true
	}
	a.lapse()
	return false
}

// Serving records, in one transaction guarded by the epoch, that the volume is
// about to be served: the incarnations that were reconciled and synced, what the
// other nodes lack (as MarkStale does), and that it is no longer clean
// (PROTOCOL.md, Attach 5), nor to be compared. Only after nil may I/O be served. It may be called
// again with other incarnations. ErrLost if somebody
// else has the volume, or if the lease had run out before the first call; ErrMoved.
func (a *Attachment) Serving(ctx context.Context, found []Incarnation, stale []Stale) error {
	err := a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		if err := a.headUnmoved(ctx, t, v); err != nil {
			return err
		}
		if err := a.unmoved(ctx, t, rolesOf(found, stale)); err != nil {
			return err
		}
		for _, i := range found {
			var have incarnationRecord
			key := incarnationKey(v.ID, i.Node, i.Target)
			if _, err := t.get(ctx, key, &have); err != nil {
				return err
			}
			if want := newIncarnationRecord(i); !equalRecords(&have, want) {
				t.put(key, want)
			}
		}
		if err := a.putStale(ctx, t, v.ID, stale); err != nil {
			return err
		}
		if a.Uncompared {
			key := idKey(keyUncompared, v.ID)
			p, err := t.pair(ctx, key)
			if err != nil {
				return err
			}
			if p.Mod != 0 {
				t.delete(key)
			}
		}
		if v.Clean {
			v.Clean = false
			t.put(keyVolumes+v.Name, newVolumeRecord(v))
		}
		return nil
	})
	if err == nil {
		a.mu.Lock()
		a.served = true
		a.mu.Unlock()
	}
	return a.failed(err)
}

// own reads the volume, wherever it was renamed to, and makes it a condition
// that its last attachment is this one.
func (a *Attachment) own(ctx context.Context, t *tx) (Volume, error) {
	err := t.sameRecords(ctx) // an epoch of these says nothing in others
	if errors.Is(err, ErrRecovered) {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	if err != nil {
		return Volume{}, err
	}
	v, err := t.volume(ctx, a.nameNow())
	if errors.Is(err, ErrNotFound) || err == nil && v.ID != a.Volume.ID {
		if v, err = a.find(ctx, t); errors.Is(err, ErrNotFound) {
			return v, fmt.Errorf("%w: the volume was deleted", ErrLost)
		}
	}
	if err != nil {
		return v, err
	}
	if v.Epoch != a.Epoch {
		return v, fmt.Errorf("%w: epoch %v was followed by %v", ErrLost, a.Epoch, v.Epoch)
	}
	return v, nil
}

// find looks a renamed volume up by its ID.
func (a *Attachment) find(ctx context.Context, t *tx) (Volume, error) {
	pairs, err := t.list(ctx, keyVolumes)
	if err != nil {
		return Volume{}, err
	}
	for _, p := range pairs {
		name, v, err := decodeVolume(p)
		if err != nil {
			return v, err
		}
		if v.ID == a.Volume.ID {
			a.mu.Lock()
			a.name = name
			a.mu.Unlock()
			return t.volume(ctx, name)
		}
	}
	return Volume{}, ErrNotFound
}

func (a *Attachment) nameNow() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.name
}

// headUnmoved guards the first Serving: until then the volume may still be
// marked as clean, and whoever sees that without an attachment may change its
// chain by a transaction alone.
func (a *Attachment) headUnmoved(ctx context.Context, t *tx, v Volume) error {
	if !v.Clean {
		return nil
	}
	holder, err := t.attached(ctx, v.ID)
	if err != nil {
		return err
	}
	if holder == nil || holder.Epoch != a.Epoch || v.Head != a.Volume.Head {
		return fmt.Errorf("%w: the lease ran out before the volume was served", ErrLost)
	}
	return nil
}

// Detach gives the volume up: no I/O is served any more. clean says that all
// writes were applied and synced on all in-sync copies, so that the next
// attachment has nothing to reconcile. It counts only after Serving. ErrLost if
// somebody else has the volume already. The attachment is over whatever Detach
// returns; if the records can't be reached, the lease runs out by itself.
func (a *Attachment) Detach(ctx context.Context, clean bool) error {
	a.mu.Lock()
	if a.detached {
		a.mu.Unlock()
		return nil
	}
	a.detached = true
	clean = clean && a.served
	a.mu.Unlock()
	if a.stop != nil {
		a.stop()
	}
	a.kept.Wait()
	a.calls.Lock()
	defer a.calls.Unlock()

	err := a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		holder, err := t.attached(ctx, v.ID)
		if err != nil {
			return err
		}
		if holder != nil && holder.Epoch == a.Epoch {
			t.delete(idKey(keyAttachments, v.ID))
		}
		if clean && !v.Clean {
			v.Clean = true
			t.put(keyVolumes+v.Name, newVolumeRecord(v))
		}
		return nil
	})
	a.end(fmt.Errorf("%w: detached", ErrLost))
	a.c.revoke(a.leaseNow().ID)
	return about(volumeNamed(a.nameNow()), err)
}

// failed ends the attachment if err says that it is over.
func (a *Attachment) failed(err error) error {
	if errors.Is(err, ErrLost) {
		a.end(err)
	}
	return about(volumeNamed(a.nameNow()), err)
}

// end closes Done and Lost.
func (a *Attachment) end(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lostErr == nil {
		a.lostErr = about(volumeNamed(a.name), err)
		close(a.lost)
	}
	a.lapse()
}

// lapse closes Done. Under mu.
func (a *Attachment) lapse() {
	if !a.isDone {
		a.isDone = true
		close(a.done)
	}
}

func (a *Attachment) leaseNow() Lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lease
}

func decodeIncarnation(p Pair, prefix string) (Incarnation, error) {
	var r incarnationRecord
	node, target, err := parseRole(p.Key, strings.TrimPrefix(p.Key, prefix))
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return r.incarnation(node, target), err
}
