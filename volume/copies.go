package volume

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"torus/ring"
	"torus/store"
)

// A state says what requests do with a node:
//
//	           call fails               record known done            answers: fenced, told all writes
//	inSync ───────────► failing ───────────────► away ◄───────────────► catching ─► joining
//	  ▲ ▲                 │ answers again,         ▲    any failure        (equal)     │ synced
//	  │ └─────────────────┘ nothing recorded       │                                   ▼
//	  └──── record known gone ──────────────── pending ◄───────────────────────────────┘
//	  └──── LetGo (planned stop) ──► pending ──record known done──► away
//
// A transaction about a pending node is under way. Requests never change
// records: they report failures (failed) and wait for a change of state; the
// node's tender does the rest.
type state uint8

const (
	inSync state = iota
	pending
	failing
	away
	catching
	joining
)

// String names the state.
func (s state) String() string {
	return [...]string{"in sync", "pending", "failing", "away", "catching", "joining"}[s]
}

// takes reports whether writes go to the node.
func (s state) takes() bool { return s != failing && s != away }

// flushed reports whether a flush includes the node.
func (s state) flushed() bool { return s == inSync || s == pending || s == joining }

// A view is what requests see of a node. It never changes; a change of state is
// another view. So the same pointer before and after says that nothing happened.
type view struct {
	state state
	at    *attempt // nil while the node is away
}

// An attempt is a node's store as it was attached once.
type attempt struct {
	store   store.Store
	replica store.Replica
	starter store.Starter // replica, where that is one, or nil
	copy    Copy
	dirty   *dirtiness

	ctx    context.Context // of the volume's: ends with the attempt, so that nobody waits for a node that is away
	cancel context.CancelFunc
}

// begin starts the attempt's own lifetime.
func (at *attempt) begin(ctx context.Context) { at.ctx, at.cancel = context.WithCancel(ctx) }

// dirtiness is what a store has answered and not synced. It belongs to the
// incarnation: attempts of one share it.
type dirtiness struct {
	answered atomic.Uint64 // writes answered that a sync must cover: all but FUA
	synced   uint64        // answered, as of the last sync; the flusher's
}

// node is one node as this attachment sees it, or one copy of two that it has:
// those of chunks that the ring gives it, and those of chunks that only the target
// does.
type node struct {
	id     ring.NodeID          // the copy's
	target bool                 // a copy of the target: see Options.Targets
	view   atomic.Pointer[view] // stored by turn alone
	wake   chan struct{}        // the node is said to be there
	on     ring.NodeID          // the node itself
	name   string               // for people

	// What follows is guarded by copies.mu.
	since      map[store.LayerID]store.Version // what it has all of; of the record, fixed when it failed
	why        error                           // it is not in sync
	when       time.Time
	recording  bool   // Records.Stale was begun: unknown until it is known
	mustRecord bool   // it failed while pending: it may not go back without a record
	reborn     bool   // answered in another incarnation, or store.ErrFailed
	planned    bool   // away because it said that it stops
	lost       []span // writes that ended in an error and that it may have, or get yet
	tending    bool   // its tender runs

	progress progress

	// The tender's own.
	again  time.Duration // the least pause before it is caught up with again
	clear  bool          // Records.MayJoin said yes
	joined time.Time     // when it was last taken back
}

// copies are the nodes' states together.
type copies struct {
	mu       sync.Mutex    // guards what follows and the nodes'; no call is made under it
	changed  chan struct{} // closed when some state changes
	closing  bool          // no node is caught up with any more
	moved    bool          // Records said ErrMoved
	patience *time.Timer   // Close's; nil before it

	sets     [][]ring.NodeID // of copies that chunks have; made once
	groups   [][]ring.NodeID // sets without the copies of a target: none of these may lose its last copy in sync
	nodes    map[ring.NodeID]*node
	recorded map[ring.NodeID]Copy // as of the records

	held     atomic.Int64  // writes that wait for space
	enoughAt atomic.Uint64 // the gen at which each chunk was seen to have min-copies, plus one

	_   [64]byte
	gen atomic.Uint64 // counts changes; on a line of its own
	_   [56]byte
}

// turn changes a node's state. The caller has copies.mu. The view comes before
// the count: who plans a write loads the count first, then views.
func (v *Volume) turn(n *node, s state, at *attempt) {
	c := &v.copies
	n.view.Store(&view{s, at})
	c.gen.Add(1)
	close(c.changed)
	c.changed = make(chan struct{})
}

// startTender starts a node's tender unless it runs. The caller has copies.mu.
func (v *Volume) startTender(n *node) {
	if !n.tending {
		n.tending = true
		v.tenders.Go(func() { v.tend(n) })
	}
}

// failed is a request's report that a node, as seen in w, failed with err. It is
// ignored unless that is the attempt under way still.
func (v *Volume) failed(n *node, w *view, err error) {
	if errors.Is(err, store.ErrFenced) || errors.Is(err, store.ErrInvalid) {
		v.stop(&nodeError{n.name, err})
		return
	}
	c := &v.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	now := n.view.Load()
	if now.at != w.at || v.ctx.Err() != nil {
		return
	}
	switch now.state {
	case inSync, pending:
		since := map[store.LayerID]store.Version{v.chain[0]: v.durable()}
		if n.mustRecord = now.state == pending; n.mustRecord {
			maps.Copy(since, n.since) // what is recorded may be so still
		}
		n.since = since
		if errors.Is(err, store.ErrUnknownLayer) {
			for _, l := range v.chain {
				n.since[l] = 0
			}
		}
		n.reborn = errors.Is(err, store.ErrUnknownLayer) || errors.Is(err, store.ErrFailed) || errors.Is(err, store.ErrIncarnation)
		n.why, n.when = err, time.Now()
		v.turn(n, failing, now.at)
		v.startTender(n)
	case catching, joining:
		n.why = err
		now.at.cancel()
		v.turn(n, away, nil)
	}
}

// spare is failed for a node that each of its chunks can do without, and reports
// whether it is one.
func (v *Volume) spare(n *node, w *view, err error) bool {
	v.copies.mu.Lock()
	spare := v.records != nil && v.copies.mayLose(n)
	v.copies.mu.Unlock()
	if spare {
		v.failed(n, w, err)
	}
	return spare
}

// mayLose reports whether each chunk of n has another copy in sync, but those of a
// target, or n is one of these, which groups don't know. The caller has mu.
func (c *copies) mayLose(n *node) bool {
	other := func(id ring.NodeID) bool { return id != n.id && c.nodes[id].view.Load().state == inSync }
	for _, group := range c.groups {
		if slices.Contains(group, n.id) && !slices.ContainsFunc(group, other) {
			return false
		}
	}
	return true
}

// lastLost reports whether some chunk's last copies in sync came back with
// another incarnation: all others are recorded stale, or perhaps are and can't be
// taken back without a record. The caller has mu.
func (c *copies) lastLost() bool {
	for _, group := range c.groups {
		lost, reborn := true, false
		for _, id := range group {
			switch n := c.nodes[id]; n.view.Load().state {
			case away, catching, joining:
			case failing:
				lost, reborn = lost && (n.reborn || n.mustRecord), reborn || n.reborn
			default:
				lost = false
			}
		}
		if lost && reborn {
			return true
		}
	}
	return false
}

// place tells the copies which of them have chunks together.
func (c *copies) place(sets [][]ring.NodeID) {
	c.sets = sets
	for _, set := range sets {
		group := slices.DeleteFunc(slices.Clone(set), func(id ring.NodeID) bool { return c.nodes[id].target })
		if !slices.ContainsFunc(c.groups, func(known []ring.NodeID) bool { return slices.Equal(known, group) }) {
			c.groups = append(c.groups, group)
		}
	}
}

// enough reports whether each chunk has min copies in sync. The caller has mu.
func (c *copies) enough(min int) bool {
	for _, group := range c.groups {
		have := 0
		for _, id := range group {
			if c.nodes[id].view.Load().state == inSync {
				have++
			}
		}
		if have < min {
			return false
		}
	}
	return true
}

// await returns when some node's state has changed since gen. Otherwise why the
// volume has ended.
func (v *Volume) await(gen uint64) error { return v.awaitOr(gen, nil) }

// awaitOr is await that also returns when due fires.
func (v *Volume) awaitOr(gen uint64, due <-chan time.Time) error {
	v.copies.mu.Lock()
	changed, moved := v.copies.changed, v.copies.gen.Load() != gen
	v.copies.mu.Unlock()
	if moved {
		return v.stopped()
	}
	select {
	case <-changed:
	case <-due:
	case <-v.ctx.Done():
		if v.stopped() == nil {
			return ErrClosed
		}
	}
	return v.stopped()
}

// maxLost bounds what is remembered of refused writes a node.
const maxLost = 1024

// mayHave remembers that n may have a write that ended in an error, or get it
// yet. Under mu.
func (n *node) mayHave(lost span) {
	if len(n.lost) == maxLost {
		for _, s := range n.lost {
			lost = span{off: min(lost.off, s.off), end: max(lost.end, s.end), version: max(lost.version, s.version)}
		}
		n.lost = n.lost[:0]
	}
	n.lost = append(n.lost, lost)
}

// shut ends what is being caught up with; nothing new is. It returns the timer by
// which the waiting for copies is over.
func (c *copies) shut(over func()) *time.Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing = true
	patience := closePatience
	if c.moved {
		patience = movedPatience
	}
	timer := time.AfterFunc(patience, over)
	if c.patience == nil {
		c.patience = timer
	}
	for _, n := range c.nodes {
		if w := n.view.Load(); w.state == catching || w.state == joining {
			w.at.cancel()
		}
	}
	return timer
}
