package volume

import (
	"fmt"
	"sync/atomic"
	"time"

	"torus/ring"
)

// Status says how the copies of a volume are, now.
type Status struct {
	// Waiting says what writes wait for, some of them at least; empty if nothing.
	Waiting string
	Copies  []CopyStatus // by node
}

// CopyStatus is one node's copies.
type CopyStatus struct {
	Node  ring.NodeID
	State string    // "in sync", "pending", "failing", "away", "catching", "joining"
	Why   string    // it is not in sync; empty if it is
	At    time.Time // when it failed; zero if it is in sync
	// Done and Total are bytes: how many of those that differed have been brought
	// to it, while it is catching or joining.
	Done, Total int64
}

// InSync reports whether every copy is.
func (s Status) InSync() bool {
	for _, c := range s.Copies {
		if c.State != inSync.String() {
			return false
		}
	}
	return true
}

// Status returns how the copies are.
func (v *Volume) Status() Status {
	c := &v.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	var s Status
	for _, n := range v.place.nodes {
		state := n.view.Load().state
		is := CopyStatus{Node: n.id, State: state.String()}
		if state != inSync {
			is.Why, is.At = fmt.Sprint(n.why), n.when
		}
		if state == catching || state == joining {
			is.Done, is.Total = n.progress.done.Load(), n.progress.total.Load()
		}
		if state == failing && s.Waiting == "" {
			s.Waiting = fmt.Sprintf("node %v: %v", n.id, n.why)
		}
		s.Copies = append(s.Copies, is)
	}
	if s.Waiting == "" && !c.enough(v.place.minCopies) {
		s.Waiting = fmt.Sprintf("%d copies in sync", v.place.minCopies)
	}
	return s
}

// progress is how far a resync is.
type progress struct{ done, total atomic.Int64 } // bytes

// begin starts anew.
func (p *progress) begin() {
	p.done.Store(0)
	p.total.Store(0)
}

// requests is how many requests of clients were answered so far.
func (v *Volume) requests() int64 {
	c := &v.counts
	return c.reads.Load() + c.writes.Load() + c.zeroes.Load() + c.flushes.Load()
}
