package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"torus/ring"
	"torus/store"
)

// The pauses before an attach is tried again, doubled each time.
const (
	attachPause    = 50 * time.Millisecond
	maxAttachPause = 2 * time.Second
)

// attach makes the copies ready to serve, and has the records say so. Where a
// node can't be reached, or lost its power on the way, it begins again from the
// start, as often as ctx allows: a fence is only ever raised, and a reconcile
// only brings copies closer, so what was done is in vain and not wrong.
func (v *Volume) attach(ctx context.Context, o Options) error {
	var found Found
	for pause := attachPause; ; pause = min(2*pause, maxAttachPause) {
		err := v.reach(ctx, o, &found)
		v.adopted = found.Repaired > 0
		if err == nil {
			return v.record(ctx, o, found)
		}
		if !passing(err) {
			return err
		}
		v.log.Warn("attaching begins again", "volume", v.id, "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-timer.C:
		}
	}
}

// passing reports whether an attach that failed with err may succeed when it
// is tried again under the same epoch.
func passing(err error) bool {
	if errors.Is(err, store.ErrFenced) {
		return false
	}
	return errors.Is(err, store.ErrUnreachable) || errors.Is(err, store.ErrIncarnation)
}

// record has the caller's transaction record what was found. Only after it I/O
// may be served.
func (v *Volume) record(ctx context.Context, o Options, found Found) error {
	if found.UnflushedGone {
		v.log.Warn("machines stopped, or a sync failed, while the volume was served: writes that were not flushed may be gone",
			"volume", v.id, "nodes", found.Reborn)
	}
	if o.Serving == nil {
		return nil
	}
	return o.Serving(ctx, found)
}

// member is a node while the volume is attached.
type member struct {
	*node
	store    store.Store
	now      Copy
	standing standing

	stable   store.Version  // the head's mark, as it was last told here
	unstable []store.Extent // of the head, above every node's mark; in order
}

// reach fences every node, brings their copies to one value and makes that
// durable, in this order, each step on all nodes before the next:
//
//	fence ─► judge ─► marks ─► unstable extents ─► reconcile unless clean ─► sync
//
// All fences stand before anything is asked: what a node answers then is what
// it has, no lower epoch adds to it (N1).
func (v *Volume) reach(ctx context.Context, o Options, found *Found) error {
	members := v.members(o)
	each := func(do func(m *member) error) error {
		errs := make([]error, len(members))
		parallel(len(members), maxCalls, func(i int) {
			if err := do(members[i]); err != nil {
				errs[i] = fmt.Errorf("node %v: %w", members[i].id, err)
			}
		})
		return errors.Join(errs...)
	}
	if err := each(func(m *member) error { return v.fence(ctx, m) }); err != nil {
		return err
	}
	if err := each(func(m *member) (err error) {
		m.standing, err = judge(o.Recorded, m.id, m.now, o.Clean)
		return err
	}); err != nil {
		return err
	}
	if err := v.place.init(o, nodesOf(members)); err != nil {
		return err
	}
	if err := each(func(m *member) error { return v.prepare(ctx, m) }); err != nil {
		return err
	}
	mark := slices.MaxFunc(members, func(a, b *member) int { return cmp.Compare(a.stable, b.stable) }).stable
	if err := each(func(m *member) error { return v.collect(ctx, m, mark, !o.Clean) }); err != nil {
		return err
	}
	if !o.Clean {
		if err := v.reconcile(ctx, members, found); err != nil {
			return err
		}
	}
	// Also where there was nothing to bring: what all copies have alike may not
	// be durable on any, and is about to be read (I6).
	if err := each(func(m *member) error { return m.replica.Sync(ctx) }); err != nil {
		return err
	}
	found.take(members)
	return nil
}

// reconcile makes the copies equal and adds to found what that showed, which an
// attach that begins again would not see any more.
func (v *Volume) reconcile(ctx context.Context, members []*member, found *Found) error {
	gone, err := v.lostPower(ctx, members)
	if err != nil {
		return err
	}
	r := newReconcile(v, members)
	err = r.run(ctx)
	found.Repaired += r.repaired.Load()
	found.UnflushedGone = found.UnflushedGone || gone || r.gone.Load()
	return err
}

// lostPower reports whether the pages of some chunk have no whole copy: what was
// acknowledged there and not flushed may be gone (Attach 4).
func (v *Volume) lostPower(ctx context.Context, members []*member) (bool, error) {
	lost := make(map[ring.NodeID]bool)
	for _, m := range members {
		if m.standing == reborn {
			lost[m.id] = true
		}
	}
	if len(lost) < v.place.minCopies {
		return false, nil // a chunk has at least so many
	}
	for off := int64(0); off < v.size && len(lost) < len(members); off += store.ChunkSize {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		copies, err := v.place.copies(ring.ChunkIndex(off / store.ChunkSize))
		if err != nil {
			return false, err
		}
		if !slices.ContainsFunc(copies, func(id ring.NodeID) bool { return !lost[id] }) {
			return true, nil
		}
	}
	return len(lost) == len(members), nil
}

// members are the nodes of o, by ID, not yet reached.
func (v *Volume) members(o Options) []*member {
	members := make([]*member, 0, len(o.Stores))
	for id, s := range o.Stores {
		members = append(members, &member{node: &node{id: id}, store: s})
	}
	slices.SortFunc(members, func(a, b *member) int { return cmp.Compare(a.id, b.id) })
	return members
}

func nodesOf(members []*member) []*node {
	nodes := make([]*node, len(members))
	for i, m := range members {
		nodes[i] = m.node
	}
	return nodes
}

// take enters the nodes as they are now, whatever was found of them before.
func (f *Found) take(members []*member) {
	f.Copies, f.Reborn = make(map[ring.NodeID]Copy, len(members)), nil
	for _, m := range members {
		f.Copies[m.id] = m.now
		if m.standing == reborn {
			f.Reborn = append(f.Reborn, m.id)
		}
	}
}

// fence attaches a node, and asks which store it is. The replica's incarnation is
// the one that counts: it answers in no other, so should the store be replaced
// between the two questions, the next one begins the attach again (N2).
func (v *Volume) fence(ctx context.Context, m *member) error {
	r, err := m.store.Attach(ctx, v.id, v.epoch)
	if err != nil {
		return err
	}
	st, err := m.store.Stat(ctx)
	if err != nil {
		return err
	}
	m.replica, m.now = r, Copy{Identity: st.Identity, Incarnation: r.Incarnation()}
	m.starter, _ = r.(store.Starter)
	return nil
}

// prepare makes the head known on a node and asks up to where it is stable.
func (v *Volume) prepare(ctx context.Context, m *member) error {
	head, parent := v.chain[0], store.LayerID(0)
	if len(v.chain) > 1 {
		parent = v.chain[1]
	}
	if err := m.replica.Create(ctx, head, parent); err != nil {
		return err
	}
	for l, err := range m.store.Layers(ctx) {
		if err != nil {
			return err
		}
		if l.ID == head {
			m.stable = l.Stable
		}
	}
	return v.checkUnused(m.stable)
}

// collect asks a node what of the head is unstable, refuses an epoch that was
// used, and keeps what may differ from other copies. That is no more than the
// last exporter left between two marks: see Options.SyncBytes.
func (v *Volume) collect(ctx context.Context, m *member, mark store.Version, keep bool) error {
	for e, err := range m.replica.Unstable(ctx, v.chain[0]) {
		if err == nil {
			err = v.checkUnused(e.Version)
		}
		if err != nil {
			return err
		}
		if keep && mayDiffer(e, mark) {
			m.unstable = append(m.unstable, e)
		}
	}
	return nil
}

// checkUnused refuses an epoch under which the head was written before: its
// versions would begin again, and the node would take the new writes for old
// ones and drop them (N4). Each version on a node is at or below its stable
// mark, or unstable.
func (v *Volume) checkUnused(found store.Version) error {
	if found.Epoch() >= v.epoch {
		return fmt.Errorf("%w: epoch %v was used before: the head has version %v", store.ErrInvalid, v.epoch, found)
	}
	return nil
}
