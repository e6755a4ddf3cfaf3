package volume

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"torus/store"
)

// settler bounds what is unstable, that is, what would have to be compared
// between the copies after a crash: in the background it syncs and tells the
// copies the stable mark, at the latest bytes or every after a write.
type settler struct {
	bytes int64
	every time.Duration

	pending atomic.Int64 // bytes written since the mark was told

	first chan struct{} // something is pending
	full  chan struct{} // bytes are pending
	quit  chan struct{}

	running sync.WaitGroup
	turn    chan struct{} // holds one element while somebody settles; no request takes it but an overdue one
	told    atomic.Uint64
}

func (s *settler) init(bytes int64, every time.Duration) {
	s.bytes, s.every = bytes, every
	s.first, s.full = make(chan struct{}, 1), make(chan struct{}, 1)
	s.quit, s.turn = make(chan struct{}), make(chan struct{}, 1)
}

// overdue is how many times over its bound the pending bytes must be before
// writers settle themselves: a disk that syncs more slowly than it writes is
// then what the clients wait for, and the unstable stay bounded.
const overdue = 4

// written accounts for a change that has ended. After that: a mark computed
// while it was in flight does not cover it.
func (v *Volume) written(c *change) error {
	n := c.n
	if c.fill == fillHole {
		n = min(n, store.PageSize) // an extent to compare, however long
	}
	pending := v.settle.pending.Add(n)
	if pending == n {
		signal(v.settle.first)
	}
	if pending < v.settle.bytes {
		return nil
	}
	signal(v.settle.full)
	if pending >= overdue*v.settle.bytes {
		return v.settleFrom(v.settle.bytes)
	}
	return nil
}

// signal wakes the receiver of c if it is not awake already.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// settleLoop settles in the background until end, or until the volume stops.
func (v *Volume) settleLoop() {
	s := &v.settle
	for {
		select {
		case <-s.first:
		case <-s.quit:
			return
		}
		timer := time.NewTimer(s.every)
		select {
		case <-timer.C:
		case <-s.full:
		case <-s.quit:
			timer.Stop()
			return
		}
		timer.Stop()
		if v.settleNow() != nil {
			return
		}
	}
}

// end stops the loop and waits for it.
func (s *settler) end() {
	close(s.quit)
	s.running.Wait()
}

// settleNow makes all answered writes durable and tells every copy the mark up
// to which that holds.
func (v *Volume) settleNow() error { return v.settleFrom(0) }

// settleFrom is settleNow unless, when its turn comes, fewer bytes than that are
// pending: those who wait for their turn are mostly helped by whoever has it.
func (v *Volume) settleFrom(bytes int64) error {
	s := &v.settle
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	pending := s.pending.Load()
	if pending < bytes {
		return v.stopped()
	}
	// Below every write still in flight when the sync begins: what is at or
	// below it has ended, so the sync covers it, on every copy.
	mark := v.flight.low()
	if err := v.sync(); err != nil {
		return err
	}
	// A volume that stops does so before a write that some copies lack leaves the
	// flight. Where that had nothing to sync, as it was FUA, it was not noticed yet;
	// a mark above it would hide it from the reconcile.
	if err := v.stopped(); err != nil {
		return err
	}
	if mark > max(store.Version(s.told.Load()), store.NewVersion(v.epoch, 0)) {
		if err := v.tell(mark); err != nil {
			return err
		}
		s.told.Store(uint64(mark))
	}
	if left := s.pending.Add(-pending); left > 0 {
		signal(s.first)
		if left >= s.bytes {
			signal(s.full)
		}
	}
	return nil
}

// tell tells the nodes in sync the stable mark. It is the settled mark as well if
// all nodes are in sync, after the sync (12/205), and there is no target, unless this
// attachment has adopted anything: a late copy of an Adopt is not held back by the
// stable mark as a write is (N4), and would bring back what a hole hid that was
// forgotten since (I7). The fence of the next attachment ends it. A node that misses a
// mark keeps more than it needs, which the next one mends.
func (v *Volume) tell(mark store.Version) error {
	settled := mark
	if v.moving || v.adopted.Load() || slices.ContainsFunc(v.place.nodes, func(n *node) bool { return n.view.Load().state != inSync }) {
		settled = 0
	}
	nodes := v.place.nodes
	parallel(len(nodes), maxCalls, func(i int) {
		w := nodes[i].view.Load()
		if w.state != inSync {
			return
		}
		err := w.at.replica.Stable(w.at.ctx, v.chain[0], mark, settled)
		switch {
		case err == nil:
		case errors.Is(err, store.ErrFenced) || errors.Is(err, store.ErrIncarnation):
			v.failed(nodes[i], w, err)
		default:
			v.log.Warn("stable mark not told", "volume", v.id, "node", nodes[i].name, "err", err)
		}
	})
	return v.stopped()
}
