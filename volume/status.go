package volume

import (
	"fmt"
	"sync/atomic"
	"time"

	"torus/ring"
)

// progress is how far a resync is, for Status.
type progress struct {
	done, total atomic.Int64              // bytes
	copying     atomic.Pointer[time.Time] // since when pages are brought; nil: not yet
}

// begin starts anew.
func (p *progress) begin() {
	p.done.Store(0)
	p.total.Store(0)
	p.copying.Store(nil)
}

// brings says that pages are brought from now on.
func (p *progress) brings() {
	now := time.Now()
	p.copying.CompareAndSwap(nil, &now)
}

// left returns how long the rest of it takes, at the rate so far; 0 if that is not
// known yet.
func left(done, total int64, took time.Duration) time.Duration {
	if done <= 0 || total <= done {
		return 0
	}
	return time.Duration(float64(took) * float64(total-done) / float64(done))
}

// requests is how many requests of clients were answered so far.
func (v *Volume) requests() int64 {
	c := &v.counts
	return c.reads.Load() + c.writes.Load() + c.zeroes.Load() + c.flushes.Load()
}

// Status is how an open volume is.
type Status struct {
	// Waiting says what requests wait for; "" while they go on.
	Waiting string
	Copies  []CopyStatus // by Node
}

// CopyStatus is how one node's copies are.
type CopyStatus struct {
	Node  ring.NodeID // or the ID of its copy of a target: see Options.Targets
	State string      // "in sync", "away", …: see state
	Why   string      // it is not in sync
	When  time.Time   // it ceased to be
	// Done and Total, in bytes, say how far a resync is; Total 0: none is under way.
	Done, Total int64
	Left        time.Duration // of the resync, at its rate so far; 0: not known
}

// InSync reports whether the copies have all that was acknowledged.
func (c CopyStatus) InSync() bool { return c.State == inSync.String() }

// Status returns how the volume is.
func (v *Volume) Status() Status {
	c := &v.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Copies: make([]CopyStatus, 0, len(v.place.nodes))}
	for _, n := range v.place.nodes {
		state := n.view.Load().state
		copy := CopyStatus{Node: n.id, State: state.String()}
		if state != inSync {
			copy.Why, copy.When = fmt.Sprint(n.why), n.when
		}
		if state == catching || state == joining {
			copy.Done, copy.Total = n.progress.done.Load(), n.progress.total.Load()
			if since := n.progress.copying.Load(); since != nil {
				copy.Left = left(copy.Done, copy.Total, time.Since(*since))
			}
		}
		if state == failing && s.Waiting == "" {
			s.Waiting = fmt.Sprintf("node %s: %v", n.name, n.why)
		}
		s.Copies = append(s.Copies, copy)
	}
	if s.Waiting == "" && !c.enough(v.place.minCopies) {
		s.Waiting = fmt.Sprintf("%d copies in sync", v.place.minCopies)
	}
	if s.Waiting == "" && c.held.Load() > 0 {
		s.Waiting = "space on the last copy of what is written"
	}
	return s
}
