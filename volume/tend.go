package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"torus/ring"
	"torus/store"
)

// A tender sees to one node from when it is not in sync until it is, or the
// volume ends:
//
//	failing ──resolve──► in sync   it answers again, nothing was recorded
//	        └──resolve──► away     the record is known to be there
//	pending ──resign───► away      it said that it stops
//	away    ──catch────► in sync   it was made equal, and the record is gone
const (
	recordPatience = 5 * time.Second // for one transaction
	probePatience  = 3 * time.Second // for a node to say that it is there

	firstProbe, maxProbe = 250 * time.Millisecond, 5 * time.Second // pauses between probes of a failing node
	firstCall, maxCall   = 500 * time.Millisecond, 5 * time.Second // between calls on a node that is away
	stopsFor             = 15 * time.Second                        // until a node is called on that said that it stops, unless it is said to be there again
	// A node that was caught up with and failed again held up writes, for up to 3 s:
	// the pauses before the next time grow, until one lasted. They end well within
	// the minute in which a node that works again is to be in sync.
	firstAgain, maxAgain = time.Second, 30 * time.Second
	lasting              = time.Minute
)

// tendAll starts the tenders of the nodes that are not in sync as the volume is
// opened. Without records they stay what they are: none could be taken back.
func (v *Volume) tendAll() {
	v.copies.mu.Lock()
	defer v.copies.mu.Unlock()
	for _, n := range v.place.nodes {
		if v.records != nil && n.view.Load().state != inSync {
			v.startTender(n)
		}
	}
}

// tend is a node's tender. It is started under copies.mu, with node.tending set.
func (v *Volume) tend(n *node) {
	c := &v.copies
	for v.ctx.Err() == nil {
		c.mu.Lock()
		w := n.view.Load()
		if w.state == inSync {
			n.tending = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		switch w.state {
		case failing:
			v.resolve(n)
		case pending:
			v.resign(n)
		case away:
			v.bringBack(n)
		}
	}
}

// resolve ends a node's failing: with its record, or with the node as it was.
func (v *Volume) resolve(n *node) {
	unknown := false // a transaction was begun that may be done yet
	pause, probe := firstProbe, time.Now().Add(firstProbe)
	for v.ctx.Err() == nil {
		gen := v.copies.gen.Load()
		if v.lost() {
			return
		}
		if v.beginRecord(n) {
			switch done, known := v.record(n); {
			case done:
				return
			case known && !unknown:
				v.notRecorded(n)
			default:
				unknown = true
			}
		}
		if v.wait(probe, gen, !unknown) {
			if !unknown && v.mayReturn(n) && v.probe(n) {
				return
			}
			pause = min(2*pause, maxProbe)
			probe = time.Now().Add(pause)
		}
	}
}

// wait waits until due, or if changes is set for a change of some node's state
// since gen, and reports whether it is due.
func (v *Volume) wait(due time.Time, gen uint64, changes bool) bool {
	var changed <-chan struct{}
	if changes {
		v.copies.mu.Lock()
		changed = v.copies.changed
		moved := v.copies.gen.Load() != gen
		v.copies.mu.Unlock()
		if moved {
			return !time.Now().Before(due)
		}
	}
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-v.ctx.Done():
		return false
	case <-changed:
		return false
	case <-timer.C:
		return true
	}
}

// lost stops the volume where the last copies in sync of some chunk came back
// with another incarnation, and reports whether it has stopped.
func (v *Volume) lost() bool {
	v.copies.mu.Lock()
	lost := v.copies.lastLost()
	v.copies.mu.Unlock()
	if lost {
		v.stop(fmt.Errorf("the last copies in sync were started anew, acknowledged writes may be gone: %w", store.ErrIncarnation))
	}
	return v.stopped() != nil
}

// beginRecord decides that a failing node is to be recorded stale, unless it is
// the last copy in sync of some chunk (which is waited for). Under one lock, or
// two failing nodes might each count on the other.
func (v *Volume) beginRecord(n *node) bool {
	c := &v.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	if v.records == nil || n.view.Load().state != failing || !n.recording && !c.mayLose(n) {
		return false
	}
	n.recording = true
	return true
}

// notRecorded: the transaction was surely not done.
func (v *Volume) notRecorded(n *node) {
	v.copies.mu.Lock()
	n.recording = false
	v.copies.mu.Unlock()
}

// mayReturn reports whether a failing node may still go back to being in sync.
func (v *Volume) mayReturn(n *node) bool {
	v.copies.mu.Lock()
	defer v.copies.mu.Unlock()
	return !n.recording && !n.mustRecord && !n.reborn
}

// record has it recorded that a node lacks what came after n.since. done: it is,
// and the node is away, or the volume has stopped. known: it surely was not.
func (v *Volume) record(n *node) (done, known bool) {
	v.copies.mu.Lock()
	since, why := maps.Clone(n.since), fmt.Sprint(n.why)
	v.copies.mu.Unlock()
	ctx, cancel := context.WithTimeout(v.ctx, recordPatience)
	defer cancel()
	err := v.records.Stale(ctx, n.id, why, since)
	switch {
	case err == nil:
		v.log.Warn("a copy is away, it misses what is written from here on", "volume", v.id, "node", n.name, "why", why)
		if !v.goneAway(n, since) {
			return v.record(n) // that it lacks more than was known when this was begun
		}
		return true, true
	case errors.Is(err, ErrLost):
		v.stop(err)
		return true, true
	}
	v.movedBy(err)
	v.log.Warn("not recorded that a copy is away", "volume", v.id, "node", n.name, "err", err)
	return false, errors.Is(err, ErrNotDone)
}

// movedBy notes an ErrMoved, for Close: a copy that fails can't be recorded any more.
func (v *Volume) movedBy(err error) {
	if !errors.Is(err, ErrMoved) {
		return
	}
	c := &v.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.moved && c.patience != nil {
		c.patience.Reset(movedPatience)
	}
	c.moved = true
}

// goneAway: the record of the node is known to be there. Only now its calls are
// cut off, and forgiven. It reports false where the node has come to lack more
// than since, which was recorded.
func (v *Volume) goneAway(n *node, since map[store.LayerID]store.Version) bool {
	v.copies.mu.Lock()
	defer v.copies.mu.Unlock()
	for layer, lacks := range n.since {
		if recorded, is := since[layer]; !is || lacks < recorded {
			return false
		}
	}
	if at := n.view.Load().at; at != nil {
		at.cancel()
	}
	n.recording, n.mustRecord, n.reborn = false, false, false
	v.turn(n, away, nil)
	return true
}

// probe asks a failing node whether it is what it was, and takes it back then.
func (v *Volume) probe(n *node) (back bool) {
	ctx, cancel := context.WithTimeout(v.ctx, probePatience)
	defer cancel()
	at, err := v.attachNode(ctx, n.id)
	if errors.Is(err, store.ErrFenced) {
		v.stop(fmt.Errorf("node %s: %w", n.name, err))
		return false
	}
	c := &v.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	w := n.view.Load()
	switch {
	case errors.Is(err, store.ErrFailed), errors.Is(err, store.ErrIncarnation), err == nil && at.copy != w.at.copy:
		n.reborn = true
		if err == nil && at.copy.Identity != w.at.copy.Identity {
			for _, l := range v.chain {
				n.since[l] = 0 // N3
			}
		}
		return false
	case err != nil || w.state != failing || n.recording || n.mustRecord || n.reborn:
		return false
	}
	at.dirty = w.at.dirty
	at.begin(v.ctx)
	v.turn(n, inSync, at)
	w.at.cancel()
	v.log.Info("a copy answers again, nothing was missed", "volume", v.id, "node", n.name)
	return true
}

// resign records a node that said that it stops. Until it is known to be there,
// writes go on to the node.
func (v *Volume) resign(n *node) {
	unknown := false
	for pause := firstProbe; v.ctx.Err() == nil; pause = min(2*pause, maxProbe) {
		if n.view.Load().state != pending {
			return // it failed meanwhile
		}
		done, known := v.record(n)
		if done {
			return
		}
		if unknown = unknown || !known; !unknown {
			v.stays(n)
			return
		}
		sleep(v.ctx, pause)
	}
}

// stays takes a node back that was to be recorded, and surely was not.
func (v *Volume) stays(n *node) {
	v.copies.mu.Lock()
	defer v.copies.mu.Unlock()
	if w := n.view.Load(); w.state == pending {
		n.planned, n.recording = false, false
		v.turn(n, inSync, w.at)
	}
}

// LetGo is to be called when a node says that it is about to stop: it is recorded
// stale ahead of that, so that no request has to wait for it, if others remain
// that can serve. What is written until then it still gets.
func (v *Volume) LetGo(id ring.NodeID) {
	n := v.place.byID[id]
	if n == nil || v.records == nil || !v.gate.enter() {
		return
	}
	v.tenders.Go(func() {
		defer v.gate.leave()
		if v.settleNow() != nil { // so that little has to be brought to it later
			return
		}
		c := &v.copies
		c.mu.Lock()
		defer c.mu.Unlock()
		w := n.view.Load()
		if w.state != inSync || !c.mayLose(n) {
			return
		}
		v.turn(n, pending, w.at)
		if !c.enough(v.place.minCopies) {
			v.turn(n, inSync, w.at)
			return
		}
		select {
		case <-n.wake: // of before
		default:
		}
		n.planned, n.recording, n.why, n.when = true, true, errStops, time.Now()
		n.since = map[store.LayerID]store.Version{v.chain[0]: v.durable()}
		v.startTender(n)
	})
}

// durable returns up to which version every copy in sync has all durable.
func (v *Volume) durable() store.Version {
	return max(store.Version(v.settle.told.Load()), store.NewVersion(v.epoch, 0))
}

// Wake says that a node that was away is there again, so that it is not called on
// later than need be.
func (v *Volume) Wake(id ring.NodeID) {
	if n := v.place.byID[id]; n != nil {
		signal(n.wake)
	}
}

// errStops: why a node that LetGo was called for is away.
var errStops = errors.New("it said that it stops")

// bringBack calls on a node that is away until it is in sync, or fails while a
// transaction about it is under way.
func (v *Volume) bringBack(n *node) {
	if !n.joined.IsZero() && time.Since(n.joined) >= lasting {
		n.again, n.joined = 0, time.Time{}
	}
	call := firstCall
	v.copies.mu.Lock()
	if n.planned {
		n.planned, call = false, stopsFor
	}
	v.copies.mu.Unlock()
	for n.view.Load().state == away {
		if woken, err := v.rest(n, max(call, n.again)); err != nil {
			return
		} else if woken {
			call, n.again = firstAgain, 0
			continue
		}
		tried, err := v.catch(n)
		if err == nil {
			n.joined = time.Now()
			return
		}
		v.noted(n, err)
		if tried {
			n.again = min(max(2*n.again, firstAgain), maxAgain)
		}
		call = min(2*call, maxCall)
	}
}

// rest waits for d, or until the node is said to be there.
func (v *Volume) rest(n *node, d time.Duration) (woken bool, err error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-v.ctx.Done():
		return false, v.ctx.Err()
	case <-n.wake:
		return true, nil
	case <-timer.C:
		return false, nil
	}
}

// noted says why a node is away still.
func (v *Volume) noted(n *node, err error) {
	v.log.Warn("a copy is away still", "volume", v.id, "node", n.name, "err", err)
	v.copies.mu.Lock()
	n.why = err
	v.copies.mu.Unlock()
}

// leave ends a node's attempt: it is away again, and nobody waits for it.
func (v *Volume) leave(n *node, w *view) {
	v.copies.mu.Lock()
	defer v.copies.mu.Unlock()
	if n.view.Load() == w {
		w.at.cancel()
		v.turn(n, away, nil)
	}
}

// catch makes a node equal to its peers and takes it back (PROTOCOL.md, Resync).
// An error ends this attempt, in which nothing has changed: what lacks still is
// what the lists show the next time. tried: writes were sent to it.
func (v *Volume) catch(n *node) (tried bool, err error) {
	if err := v.mayJoin(n); err != nil {
		return false, err
	}
	if err := v.rewriteLost(n); err != nil {
		return false, err
	}
	at, since, err := v.attachStale(n)
	if err != nil {
		return false, v.unlessFenced(n, err)
	}
	defer func() {
		if w := n.view.Load(); err != nil && w.at == at && (w.state == catching || w.state == joining) {
			v.leave(n, w)
		}
		if n.view.Load().at != at {
			at.cancel()
		}
	}()
	gen, err := v.begins(n, at)
	if err != nil {
		return false, err
	}
	// From here on every write in flight is sent to the node too, or ends without
	// it before its pages are compared (10/3778).
	v.flight.awaitPlanned(gen)
	if err := v.equal(n, at, since); err != nil {
		return true, v.unlessFenced(n, err)
	}
	return true, v.join(n, at, since)
}

// errFresh: a copy of a target may hold what its node had from an earlier stay.
var errFresh = errors.New("it has yet to drop what it had from an earlier stay")

// mayJoin returns nil if a node may be written to: one that the target gives chunks
// must have dropped what it had of them.
func (v *Volume) mayJoin(n *node) error {
	if !n.target || n.clear {
		return nil
	}
	ctx, cancel := context.WithTimeout(v.ctx, recordPatience)
	defer cancel()
	may, err := v.records.MayJoin(ctx, n.id)
	if err == nil && !may {
		err = errFresh
	}
	n.clear = err == nil
	return err
}

// unlessFenced stops the volume where a node knows of another holder.
func (v *Volume) unlessFenced(n *node, err error) error {
	err = fmt.Errorf("node %s: %w", n.name, err)
	if errors.Is(err, store.ErrFenced) {
		return v.stop(err)
	}
	return err
}

// attachStale attaches a node that is away, sees to it that it knows the layers,
// and says since when it lacks what: all, where it is another store than the one
// that had the copy (N3).
func (v *Volume) attachStale(n *node) (*attempt, map[store.LayerID]store.Version, error) {
	ctx, cancel := context.WithTimeout(v.ctx, probePatience)
	defer cancel()
	at, err := v.attachNode(ctx, n.id)
	if err != nil {
		return nil, nil, err
	}
	since, err := v.lacking(ctx, n, at)
	if err != nil {
		return nil, nil, err
	}
	for i, layer := range slices.Backward(v.chain) {
		if _, lacks := since[layer]; !lacks {
			continue // or one that it has lost would come back empty, and be read
		}
		parent := store.LayerID(0)
		if i+1 < len(v.chain) {
			parent = v.chain[i+1]
		}
		if err := at.replica.Create(ctx, layer, parent); err != nil {
			return nil, nil, err
		}
	}
	at.begin(v.ctx)
	return at, since, nil
}

// lacking says since when a node that is away lacks what. If it has lost a layer in which it
// was in sync, that is all, and recorded first.
func (v *Volume) lacking(ctx context.Context, n *node, at *attempt) (map[store.LayerID]store.Version, error) {
	v.copies.mu.Lock()
	since := maps.Clone(n.since)
	was, known := v.copies.recorded[n.id]
	v.copies.mu.Unlock()
	if !known || was.Identity != at.copy.Identity {
		return v.lacksAll(), nil
	}
	for _, layer := range v.chain {
		if _, lacks := since[layer]; lacks {
			continue
		}
		for _, err := range at.replica.Extents(ctx, layer, 0, store.PageSize, 0) {
			switch {
			case errors.Is(err, store.ErrUnknownLayer):
				v.copies.mu.Lock()
				n.since, n.why = v.lacksAll(), err
				v.copies.mu.Unlock()
				if done, _ := v.record(n); !done {
					return nil, fmt.Errorf("not recorded that it has lost a layer: %w", err)
				}
				return v.lacksAll(), v.stopped()
			case err != nil:
				return nil, err
			}
		}
	}
	return since, nil
}

// lacksAll is since of a node that lacks everything.
func (v *Volume) lacksAll() map[store.LayerID]store.Version {
	since := make(map[store.LayerID]store.Version, len(v.chain))
	for _, layer := range v.chain {
		since[layer] = 0
	}
	return since
}

// begins has writes sent to the node, unless the volume is about to end, or a
// write was refused since rewriteLost. Those that have planned for gen include it.
func (v *Volume) begins(n *node, at *attempt) (gen uint64, err error) {
	v.copies.mu.Lock()
	defer v.copies.mu.Unlock()
	switch {
	case v.copies.closing || v.ctx.Err() != nil:
		return 0, ErrClosed
	case len(n.lost) > 0:
		return 0, errMore
	}
	v.turn(n, catching, at)
	return v.copies.gen.Load(), nil
}

// equal makes the node's copies of the layers that are stale equal to its peers'.
func (v *Volume) equal(n *node, at *attempt, since map[store.LayerID]store.Version) error {
	// A late copy of what is adopted from here on would bring back what a hole
	// hid that was forgotten since; see tell.
	v.adopted.Store(true)
	r := &resync{v: v, n: n, at: at, progress: &n.progress}
	n.progress.begin()
	for _, p := range v.place.nodes {
		shares := func(set []ring.NodeID) bool { return slices.Contains(set, n.id) && slices.Contains(set, p.id) }
		if w := p.view.Load(); w.state == inSync && !p.target && slices.ContainsFunc(v.copies.sets, shares) {
			r.peers = append(r.peers, peer{p, w})
		}
	}
	for _, layer := range slices.Backward(v.chain) {
		if since, is := since[layer]; is {
			if err := r.run(at.ctx, layer, since); err != nil {
				return err
			}
		}
	}
	return nil
}

// join takes a node back whose copy is equal: every flush includes it from now
// on, then it syncs (10/2299), then its record goes, then it is read (4/39330).
func (v *Volume) join(n *node, at *attempt, since map[store.LayerID]store.Version) error {
	if !v.moves(n, at, catching, joining) {
		return errLeft
	}
	if err := at.replica.Sync(at.ctx); err != nil {
		return v.unlessFenced(n, err)
	}
	layers := slices.Sorted(maps.Keys(since))
	unknown := false
	for pause := firstProbe; ; pause = min(2*pause, maxProbe) {
		if !unknown && !v.moves(n, at, joining, pending) {
			return errLeft
		}
		ctx, cancel := context.WithTimeout(v.ctx, recordPatience)
		err := v.records.InSync(ctx, n.id, at.copy, layers)
		cancel()
		switch {
		case err == nil:
			return v.joined(n, at)
		case errors.Is(err, ErrLost):
			return v.stop(err)
		case errors.Is(err, ErrNotDone) && !unknown:
			v.moves(n, at, pending, joining)
		default:
			unknown = true
		}
		v.movedBy(err)
		v.log.Warn("not recorded that a copy is in sync", "volume", v.id, "node", n.name, "err", err)
		if err := sleep(v.ctx, pause); err != nil {
			return err
		}
		if w := n.view.Load(); w.at != at || w.state == failing {
			return errLeft
		}
	}
}

// errLeft: a request saw the node fail while it was caught up with.
var errLeft = errors.New("it failed again")

// moves changes the state of an attempt that has not ended.
func (v *Volume) moves(n *node, at *attempt, from, to state) bool {
	v.copies.mu.Lock()
	defer v.copies.mu.Unlock()
	if w := n.view.Load(); w.at != at || w.state != from {
		return false
	}
	v.turn(n, to, at)
	return true
}

// joined: the record is known to be gone. A node that failed meanwhile needs a
// new one, and resolve sees to that.
func (v *Volume) joined(n *node, at *attempt) error {
	v.copies.mu.Lock()
	v.copies.recorded[n.id] = at.copy
	v.copies.mu.Unlock()
	if !v.moves(n, at, pending, inSync) {
		return errLeft
	}
	v.log.Info("a copy is in sync again", "volume", v.id, "node", n.name, "bytes", n.progress.done.Load())
	if err := at.replica.Stable(at.ctx, v.chain[0], v.durable(), 0); err != nil {
		v.log.Warn("stable mark not told", "volume", v.id, "node", n.name, "err", err)
	}
	return nil
}
