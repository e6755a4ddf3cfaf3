package segment

import (
	"context"
	"sync"
	"sync/atomic"

	"torus/store"
)

// A volume is the fence of one volume.
type volume struct {
	id store.VolumeID
	// durable is the epoch whose record is on stable storage.
	durable atomic.Uint32
	pos     atomic.Uint64 // position of that record

	mu      sync.Mutex // held over I/O: attaching is not the data path
	epoch   store.Epoch
	session *session // nil where no attach under epoch succeeded yet
}

// A session is what all replicas attached under one epoch share. Requests hold
// it for reading; the next attach ends it when all of them are done (N1).
type session struct {
	volume *volume
	epoch  store.Epoch
	rw     sync.RWMutex
	ended  bool // guarded by rw
}

func (s *session) end() {
	if s == nil {
		return
	}
	s.rw.Lock()
	s.ended = true
	s.rw.Unlock()
}

func (t *tables) volume(id store.VolumeID) *volume {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.volumes[id]
	if v == nil {
		v = &volume{id: id}
		t.volumes[id] = v
	}
	return v
}

// Attach implements store.Store. The fence is raised in memory before it is
// durable: a failure on the way leaves it higher than on record, never lower.
func (st *Store) Attach(ctx context.Context, id store.VolumeID, e store.Epoch) (store.Replica, error) {
	if err := st.enter(ctx); err != nil {
		return nil, err
	}
	defer st.gate.RUnlock()
	if e == 0 || e > store.MaxEpoch {
		return nil, invalid("epoch %d is not in [1, %d]", e, store.MaxEpoch)
	}
	v := st.tables.volume(id)
	v.mu.Lock()
	defer v.mu.Unlock()
	if e < v.epoch {
		return nil, &store.FencedError{Volume: id, Epoch: e, Recorded: v.epoch}
	}
	if e > v.epoch {
		v.epoch = e
		v.session.end()
		v.session = nil
	}
	if v.session == nil {
		if err := st.recordFence(v, e); err != nil {
			return nil, err
		}
		v.session = &session{volume: v, epoch: e}
	}
	return &replica{st: st, session: v.session, incarnation: st.currentIncarnation()}, nil
}

func (st *Store) recordFence(v *volume, e store.Epoch) error {
	r := newRequest()
	r.need = forFacts
	r.add(record{kind: recFence, layer: store.LayerID(v.id), version: store.Version(e)})
	r.meta = func() {
		v.pos.Store(uint64(r.recs[0].pos))
		v.durable.Store(uint32(e))
	}
	return st.commitDurable(r)
}

// Forget implements store.Store.
func (st *Store) Forget(ctx context.Context, id store.VolumeID) error {
	if err := st.enter(ctx); err != nil {
		return err
	}
	defer st.gate.RUnlock()
	v := st.tables.volume(id)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.session.end()
	v.session = nil
	r := newRequest()
	r.need = forFacts
	r.add(record{kind: recForget, layer: store.LayerID(id)})
	r.meta = func() {
		v.durable.Store(0)
		st.tables.mu.Lock()
		delete(st.tables.volumes, id)
		st.tables.mu.Unlock()
	}
	return st.commitDurable(r)
}

// commitDurable logs r and syncs.
func (st *Store) commitDurable(r *request) error {
	if err := st.commit(r); err != nil {
		return err
	}
	return st.log.sync()
}
