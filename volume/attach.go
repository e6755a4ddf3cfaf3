package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"torus/ring"
	"torus/store"
)

// The pauses before an attach is tried again, doubled each time.
const (
	attachPause    = 50 * time.Millisecond
	maxAttachPause = 2 * time.Second
)

const (
	// attachGrace is how long an attach waits for a node that it could do without:
	// one that has just been started is spared a resync.
	attachGrace = 5 * time.Second
	// fencePatience bounds one fence, which may hang behind a disk that does.
	fencePatience = 5 * time.Second
)

// An attaching is an attach under way.
type attaching struct {
	v     *Volume
	o     Options
	began time.Time
	found Found // what earlier rounds repaired stays in it, as none sees it again

	leave   bool                 // the round under way goes on without nodes that do not answer
	leftOut map[ring.NodeID]bool // of found.Stale, those that did not answer

	mu     sync.Mutex            // guards what follows
	asked  map[ring.NodeID]bool  // which nodes, by their own IDs, said which fence they had: see notBelow
	failed map[ring.NodeID]error // of the round under way, or of the last one
	// late are the members of the last round in which some Adopt was not answered.
	// It may still arrive, and no fence of the same epoch waits for it.
	late map[ring.NodeID]Copy
	// lateFrom are the sets of members of which each has what one of these brings.
	lateFrom [][]ring.NodeID
}

// attach makes the copies ready to serve, and has the records say so. Where a
// node can't be reached, or lost its power on the way, it begins again from the
// start: a fence is only ever raised, and a reconcile only brings copies closer,
// so what was done is in vain and not wrong. A node that no chunk needs is left
// out after a while, and recorded stale; others are waited for as long as ctx
// allows.
func (v *Volume) attach(ctx context.Context, o Options) error {
	nodes := nodesOf(o)
	sets, err := v.place.init(o, nodes)
	if err != nil {
		return err
	}
	v.copies.nodes, v.copies.changed = v.place.byID, make(chan struct{})
	v.copies.place(sets)
	a := &attaching{v: v, o: o, began: time.Now(), asked: make(map[ring.NodeID]bool)}
	for pause := attachPause; ; pause = min(2*pause, maxAttachPause) {
		members, err := a.round(ctx)
		if err == nil {
			return a.record(ctx, members)
		}
		if !passing(err) || ctx.Err() != nil {
			return err
		}
		v.log.Warn("attaching begins again", "volume", v.id, "err", err)
		if wait := time.Until(a.grace()); wait > 0 {
			pause = min(pause, wait)
		}
		if ended := sleep(ctx, pause); ended != nil {
			return fmt.Errorf("%w: %w", ended, err)
		}
	}
}

// nodesOf returns the nodes that o's chunks can lie on, by ID, none of them reached.
func nodesOf(o Options) []*node {
	ids := slices.Sorted(slices.Values(o.Nodes))
	nodes := make([]*node, len(ids))
	for i, id := range ids {
		n := &node{id: id, on: id, name: id.String(), wake: make(chan struct{}, 1)}
		if on, is := o.Targets[id]; is {
			n.target, n.on, n.name = true, on, on.String()+" (of the target)"
		}
		nodes[i] = n
		n.view.Store(&view{state: away})
	}
	return nodes
}

// A nodeError is what one node answered.
type nodeError struct {
	name string
	err  error
}

// Error names the node before the cause.
func (e *nodeError) Error() string { return fmt.Sprintf("node %s: %v", e.name, e.err) }

// Unwrap returns the cause.
func (e *nodeError) Unwrap() error { return e.err }

// passing reports whether an attach that failed with err may succeed when it
// is tried again under the same epoch.
func passing(err error) bool {
	var of *nodeError
	return errors.As(err, &of) && !errors.Is(err, store.ErrFenced) && !errors.Is(err, store.ErrInvalid)
}

// grace returns until when every node is waited for. Before HeldUntil a node that
// was not fenced may still answer reads of the last holder.
func (a *attaching) grace() time.Time {
	until := a.began.Add(attachGrace)
	if a.o.HeldUntil.After(until) {
		return a.o.HeldUntil
	}
	return until
}

// record has the caller's transaction record what was found. Only after it I/O
// may be served, by the members.
func (a *attaching) record(ctx context.Context, members []*member) error {
	if a.found.UnflushedGone {
		a.v.log.Warn("machines stopped, or a sync failed, while the volume was served: writes that were not flushed may be gone",
			"volume", a.v.id, "nodes", a.found.Reborn)
	}
	for _, s := range a.found.Stale {
		a.v.log.Warn("a copy is left out, it misses what is written from here on", "volume", a.v.id, "node", a.v.place.node(s.Node).name,
			"layer", s.Layer, "since", s.Since, "why", s.Why)
	}
	if a.o.Records != nil {
		switch err := a.o.Records.Serving(ctx, a.found); {
		case errors.Is(err, ErrMoved):
			return fmt.Errorf("%w: %w", ErrAgain, err)
		case err != nil:
			return err
		}
	}
	a.serve(members)
	return nil
}

// member is a node that the attach goes on with: its copy is in sync.
type member struct {
	*node
	attempt  *attempt
	replica  store.Replica
	standing standing

	stable   store.Version  // the head's mark, as it was last told here
	unstable []store.Extent // of the head, above every node's mark; in order

	layers map[store.LayerID]store.LayerInfo // with CompareAll: what it had of the chain
}

// round fences every node that is not recorded stale, brings the copies of those
// it can go on with to one value and makes that durable, in this order, each step
// on all nodes before the next:
//
//	fence ─► judge ─► marks ─► unstable extents ─► reconcile unless clean ─► sync
//
// All fences stand before anything is asked: what a node answers then is what
// it has, no lower epoch adds to it (N1). A stale copy needs none here: whoever
// held the volume before takes it for stale too, and can't record otherwise.
func (a *attaching) round(ctx context.Context) ([]*member, error) {
	v := a.v
	members, err := a.reach(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.sameAsBefore(members); err != nil {
		return nil, err
	}
	each := func(do func(m *member) error) error {
		errs := make([]error, len(members))
		parallel(len(members), maxCalls, func(i int) { errs[i] = a.blame(members[i].id, do(members[i])) })
		return errors.Join(errs...)
	}
	if a.o.CompareAll {
		if err := each(func(m *member) error { return a.survey(ctx, m) }); err != nil {
			return nil, err
		}
		if err := a.haveAll(members); err != nil {
			return nil, err
		}
	}
	if err := each(func(m *member) error { return v.prepare(ctx, m) }); err != nil {
		return nil, err
	}
	mark := slices.MaxFunc(members, func(a, b *member) int { return cmp.Compare(a.stable, b.stable) }).stable
	if err := each(func(m *member) error { return v.collect(ctx, m, mark, !a.o.Clean && !a.o.CompareAll) }); err != nil {
		return nil, err
	}
	switch {
	case a.o.CompareAll:
		err = a.compareAll(ctx, members)
	case !a.o.Clean:
		err = a.reconcile(ctx, members)
	}
	if err != nil {
		return nil, err
	}
	// Also where there was nothing to bring: what all copies have alike may not
	// be durable on any, and is about to be read (I6).
	if err := each(func(m *member) error { return m.replica.Sync(ctx) }); err != nil {
		return nil, err
	}
	a.take(members, mark)
	return members, nil
}

// blame notes that a node failed with err, for the next round, and names it.
func (a *attaching) blame(id ring.NodeID, err error) error {
	if err == nil {
		return nil
	}
	// One that was started anew meanwhile answers, and is no worse for that.
	if !errors.Is(err, store.ErrIncarnation) && !errors.Is(err, context.Canceled) {
		a.mu.Lock()
		a.failed[id] = err
		a.mu.Unlock()
	}
	return &nodeError{a.v.place.node(id).name, err}
}

// reach fences the nodes that are not recorded stale and returns those that the
// attach goes on with. The error says which have to be waited for.
func (a *attaching) reach(ctx context.Context) ([]*member, error) {
	a.leave = a.o.Records != nil && !time.Now().Before(a.grace())
	before := a.failed
	a.failed = make(map[ring.NodeID]error)
	all := a.candidates()
	errs := make([]error, len(all))
	each := func(do func(ctx context.Context, m *member) error) {
		parallel(len(all), maxCalls, func(i int) {
			if errs[i] == nil {
				ctx, cancel := context.WithTimeout(ctx, fencePatience)
				defer cancel()
				errs[i] = a.blame(all[i].id, do(ctx, all[i]))
			}
		})
	}
	for i, m := range all {
		if err := before[m.id]; err != nil && a.leaves(m.node) {
			errs[i] = a.blame(m.id, err) // it was fenced, and then failed
		}
	}
	if a.o.CompareAll { // all before any: a node may have two copies
		each(a.notBelow)
	}
	each(a.v.fence)
	if err := errors.Join(errs...); err != nil && !passing(err) {
		return nil, err
	}
	return a.choose(all, errs)
}

// leaves reports whether the round goes on without a node that does not answer and
// that no chunk needs. Nobody waits for a copy of a target: nothing was read from it.
// But the records that CompareAll goes by may be from before the target was the ring.
func (a *attaching) leaves(n *node) bool {
	if n.target {
		return !a.o.CompareAll
	}
	return a.leave
}

// candidates are the nodes that are not recorded stale, by ID, not yet reached.
func (a *attaching) candidates() []*member {
	var all []*member
	for _, n := range a.v.place.nodes {
		if !slices.ContainsFunc(a.o.Stale, func(s Stale) bool { return s.Node == n.id }) {
			all = append(all, &member{node: n})
		}
	}
	return all
}

// choose judges the nodes, of which errs say how their fences went, and returns
// those whose copies are in sync. found gets those that are left out.
func (a *attaching) choose(all []*member, errs []error) ([]*member, error) {
	a.found.Stale, a.leftOut = nil, make(map[ring.NodeID]bool)
	standings := make(map[ring.NodeID]standing)
	for _, s := range a.o.Stale {
		standings[s.Node] = stale
	}
	var members []*member
	var others, away []error
	stay := false
	for i, m := range all {
		if errs[i] != nil {
			stay = stay || !a.leaves(m.node)
			standings[m.id], away, a.leftOut[m.id] = absent, append(away, errs[i]), true
			a.found.Stale = append(a.found.Stale, Stale{Node: m.id, Layer: a.v.chain[0], Why: errs[i].Error()})
			continue
		}
		var err error
		if m.standing, err = judge(a.o.Recorded, m.id, m.attempt.copy, a.o.Clean); m.standing == stale {
			others = append(others, fmt.Errorf("node %s: %w", m.name, err))
			for _, l := range a.v.chain {
				a.found.Stale = append(a.found.Stale, Stale{Node: m.id, Layer: l, Why: err.Error()})
			}
		} else {
			members = append(members, m)
		}
		if a.o.CompareAll { // whichever copies were in sync: all are needed
			m.standing = reborn
		}
		standings[m.id] = m.standing
	}
	wait, err := mayServe(a.v.copies.groups, standings)
	switch {
	case err != nil:
		return nil, errors.Join(append(others, err)...)
	case len(others) > 0 && a.o.Records == nil:
		return nil, errors.Join(others...) // nobody to write down that it is to be repaired
	case len(wait) > 0:
		for _, id := range wait {
			delete(a.failed, id)
		}
		return nil, errors.Join(away...)
	case stay:
		return nil, errors.Join(away...)
	}
	return members, nil
}

// sameAsBefore returns ErrAgain where an Adopt of an earlier round may still
// arrive, and bring what is not what this round brings to all: as none of those
// that had it is there as it was, or as a member that was not there then may have
// a higher version. The node that did not answer need not be there: it would be
// lost again under each new epoch.
func (a *attaching) sameAsBefore(members []*member) error {
	if a.late == nil {
		return nil
	}
	for _, m := range members {
		if a.late[m.id] != m.attempt.copy {
			return fmt.Errorf("%w: node %s came while copies were brought to one value", ErrAgain, m.name)
		}
	}
	now := copiesOf(members)
	for _, from := range a.lateFrom {
		if !slices.ContainsFunc(from, func(id ring.NodeID) bool { _, is := now[id]; return is }) {
			return fmt.Errorf("%w: nodes %v were lost while copies were brought to one value", ErrAgain, from)
		}
	}
	return nil
}

func copiesOf(members []*member) map[ring.NodeID]Copy {
	copies := make(map[ring.NodeID]Copy, len(members))
	for _, m := range members {
		copies[m.id] = m.attempt.copy
	}
	return copies
}

// reconcile makes the copies equal and adds to found what that showed, which an
// attach that begins again would not see any more.
func (a *attaching) reconcile(ctx context.Context, members []*member) error {
	gone := lostPower(a.v.copies.groups, members)
	r := newReconcile(a, members)
	err := r.run(ctx)
	a.note(r, members)
	a.found.UnflushedGone = a.found.UnflushedGone || gone
	return err
}

// note adds what a reconcile did.
func (a *attaching) note(r *reconcile, members []*member) {
	repaired := r.repaired.Load()
	a.found.Repaired += repaired
	if repaired > 0 {
		a.v.adopted.Store(true)
	}
	a.found.UnflushedGone = a.found.UnflushedGone || r.gone.Load()
	if len(r.late) > 0 {
		a.late, a.lateFrom = copiesOf(members), append(a.lateFrom, r.late...)
	}
}

// lostPower reports whether the pages of some chunk have no whole copy: what was
// acknowledged there and not flushed may be gone (Attach 4).
func lostPower(groups [][]ring.NodeID, members []*member) bool {
	kept := make(map[ring.NodeID]bool)
	for _, m := range members {
		kept[m.id] = m.standing == whole
	}
	return slices.ContainsFunc(groups, func(group []ring.NodeID) bool {
		return !slices.ContainsFunc(group, func(id ring.NodeID) bool { return kept[id] })
	})
}

// take enters the copies as they are now into found, whatever was found of them
// before. What is left out has all up to mark, which was told when every copy in
// sync had that durable; but nothing of a volume that was never served.
func (a *attaching) take(members []*member, mark store.Version) {
	a.found.Copies, a.found.Reborn = copiesOf(members), nil
	for _, m := range members {
		if m.standing == reborn {
			a.found.Reborn = append(a.found.Reborn, m.id)
		}
	}
	for i := range a.found.Stale {
		if s := &a.found.Stale[i]; a.leftOut[s.Node] && len(a.o.Recorded) > 0 {
			s.Since = mark
		}
	}
}

// serve makes the members the copies that requests go to; all other nodes are
// stale, and their tenders see to them.
func (a *attaching) serve(members []*member) {
	v, c := a.v, &a.v.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recorded = maps.Clone(a.o.Recorded)
	if c.recorded == nil {
		c.recorded = make(map[ring.NodeID]Copy)
	}
	maps.Copy(c.recorded, a.found.Copies)
	for _, s := range slices.Concat(a.o.Stale, a.found.Stale) {
		n := v.place.node(s.Node)
		if n.since == nil {
			n.since = make(map[store.LayerID]store.Version)
		}
		if since, is := n.since[s.Layer]; !is || s.Since < since {
			n.since[s.Layer] = s.Since
		}
		n.why, n.when = errors.New(s.Why), time.Now()
	}
	for _, m := range members {
		m.attempt.begin(v.ctx)
		v.turn(m.node, inSync, m.attempt)
	}
}

// fence attaches a node. The replica's incarnation is the one that counts: it
// answers in no other, so should the store be replaced between the two questions,
// the next one begins the attach again (N2).
func (v *Volume) fence(ctx context.Context, m *member) (err error) {
	if m.attempt, err = v.attachNode(ctx, m.id); err != nil {
		return err
	}
	m.replica = m.attempt.replica
	return nil
}

// attachNode attaches a node's store as it is now, and asks which it is.
func (v *Volume) attachNode(ctx context.Context, id ring.NodeID) (*attempt, error) {
	s, err := v.dial(ctx, id)
	if err != nil {
		return nil, err
	}
	r, err := s.Attach(ctx, v.id, v.epoch)
	if err != nil {
		return nil, err
	}
	st, err := s.Stat(ctx)
	if err != nil {
		return nil, err
	}
	at := &attempt{store: s, replica: r, copy: Copy{Identity: st.Identity, Incarnation: r.Incarnation()}, dirty: new(dirtiness)}
	at.starter, _ = r.(store.Starter)
	return at, nil
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
	for l, err := range m.attempt.store.Layers(ctx) {
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
