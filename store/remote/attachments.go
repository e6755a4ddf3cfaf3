package remote

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"torus/store"
)

// attachments are the replicas that the server has for its clients: of each
// volume the one of the highest epoch. Clients share them, and they outlive
// connections. They are no more than handles: the fence is the store's (I1), so
// any of them may be forgotten and attached again.
type attachments struct {
	store store.Store
	most  int

	mu      sync.RWMutex // guards volumes and refs
	volumes map[store.VolumeID]*volumeEntry
}

type volumeEntry struct {
	refs int // of those that have or wait for mu

	mu      sync.Mutex // held while the volume is attached or forgotten
	current atomic.Pointer[attachment]
}

type attachment struct {
	epoch       store.Epoch
	incarnation store.Incarnation
	replica     store.Replica
}

func newAttachments(s store.Store, most int) *attachments {
	return &attachments{store: s, most: most, volumes: make(map[store.VolumeID]*volumeEntry)}
}

// lock returns the volume's entry, locked.
func (a *attachments) lock(id store.VolumeID) *volumeEntry {
	a.mu.Lock()
	v := a.volumes[id]
	if v == nil {
		a.makeRoom()
		v = new(volumeEntry)
		a.volumes[id] = v
	}
	v.refs++
	a.mu.Unlock()
	v.mu.Lock()
	return v
}

func (a *attachments) unlock(v *volumeEntry) {
	v.mu.Unlock()
	a.mu.Lock()
	v.refs--
	a.mu.Unlock()
}

// makeRoom forgets some attachment; the caller has mu. Should none be idle,
// those that wait are bounded by the connections' requests.
func (a *attachments) makeRoom() {
	if len(a.volumes) < a.most {
		return
	}
	for id, v := range a.volumes {
		if v.refs == 0 {
			delete(a.volumes, id)
			return
		}
	}
}

// attach raises the fence and returns the incarnation that the replica has.
func (a *attachments) attach(ctx context.Context, id store.VolumeID, e store.Epoch) (store.Incarnation, error) {
	v := a.lock(id)
	defer a.unlock(v)
	at, err := a.attachLocked(ctx, v, id, e)
	if err != nil {
		return 0, err
	}
	return at.incarnation, nil
}

func (a *attachments) attachLocked(ctx context.Context, v *volumeEntry, id store.VolumeID, e store.Epoch) (*attachment, error) {
	r, err := a.store.Attach(ctx, id, e)
	if err != nil {
		return nil, err
	}
	at := &attachment{epoch: e, incarnation: r.Incarnation(), replica: r}
	v.current.Store(at)
	return at, nil
}

func (a *attachments) forget(ctx context.Context, id store.VolumeID) error {
	v := a.lock(id)
	defer a.unlock(v)
	v.current.Store(nil)
	return a.store.Forget(ctx, id)
}

// replica returns what a request is for. A request is bound to epoch and
// incarnation by what it names, whoever attached over which connection (I1, N2).
func (a *attachments) replica(ctx context.Context, r *request) (store.Replica, error) {
	a.mu.RLock()
	v := a.volumes[r.volume]
	a.mu.RUnlock()
	if v != nil {
		if at := v.current.Load(); at != nil && at.epoch >= r.epoch {
			return at.serve(r)
		}
	}
	return a.reattach(ctx, r)
}

func (at *attachment) serve(r *request) (store.Replica, error) {
	switch {
	case at.epoch > r.epoch:
		return nil, &store.FencedError{Volume: r.volume, Epoch: r.epoch, Recorded: at.epoch}
	case at.incarnation != r.incarnation:
		return nil, otherIncarnation(r, at.incarnation)
	}
	return at.replica, nil
}

func otherIncarnation(r *request, has store.Incarnation) error {
	return fmt.Errorf("volume %v: %w: the request is for %v, the store has %v", r.volume, store.ErrIncarnation, r.incarnation, has)
}

// reattach attaches for a client that did so before, when another process had
// the store, or before the attachment was forgotten here. It raises no fence:
// only what is on record exactly is attached again. A volume without a fence
// was forgotten, and stays so.
func (a *attachments) reattach(ctx context.Context, r *request) (store.Replica, error) {
	v := a.lock(r.volume)
	defer a.unlock(v)
	if at := v.current.Load(); at != nil && at.epoch >= r.epoch {
		return at.serve(r)
	}
	stat, err := a.store.Stat(ctx)
	if err != nil {
		return nil, err
	}
	if stat.Incarnation != r.incarnation {
		return nil, otherIncarnation(r, stat.Incarnation)
	}
	for fence, err := range a.store.Fences(ctx) {
		switch {
		case err != nil:
			return nil, err
		case fence.Volume != r.volume:
			continue
		case fence.Epoch > r.epoch:
			return nil, &store.FencedError{Volume: r.volume, Epoch: r.epoch, Recorded: fence.Epoch}
		case fence.Epoch == r.epoch:
			at, err := a.attachLocked(ctx, v, r.volume, r.epoch)
			if err != nil {
				return nil, err
			}
			return at.serve(r)
		}
	}
	return nil, fmt.Errorf("volume %v: epoch %v is not on record, the volume was forgotten: %w", r.volume, r.epoch, store.ErrFenced)
}
