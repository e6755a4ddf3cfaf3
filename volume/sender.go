package volume

import (
	"fmt"
	"sync"

	"torus/ring"
	"torus/store"
)

// maxCalls bounds how many calls to nodes one request has under way.
const maxCalls = 64

// sender brings the pages of one write to all their copies: cut into runs with
// the same copies, one call for each run and copy, up to maxCalls at a time. A
// write to one copy in this process and to any number on other nodes needs no
// goroutine but the caller's; that, and senders being used again, is why it
// allocates nothing.
type sender struct {
	v       *Volume
	version store.Version
	flags   store.Flags

	calls   []call // not made yet; those of one run stand together
	runs    int
	refused error // the first run that no copy took
	fatal   error // the first run that is mixed, or could not be placed
	wg      sync.WaitGroup
}

// call is one run of pages for one node.
type call struct {
	node   *node
	at     *attempt
	run    int
	off, n int64
	p      []byte // nil: a hole

	started store.Started // the answer is waited for; nil: it is not
	err     error
}

var senders = sync.Pool{New: func() any { return new(sender) }}

func newSender(v *Volume, version store.Version, flags store.Flags) *sender {
	s := senders.Get().(*sender)
	s.v, s.version, s.flags = v, version, flags
	return s
}

// release gives the sender back when nothing is under way.
func (s *sender) release() {
	clear(s.calls) // keeps nobody's bytes alive
	s.v, s.calls, s.runs, s.refused, s.fatal = nil, s.calls[:0], 0, nil, nil
	senders.Put(s)
}

// pages queues the pages [off, end), with fillData from p.
func (s *sender) pages(off, end int64, p []byte, f fill) {
	for off < end && s.fatal == nil {
		limit := end
		switch f {
		case fillData:
			limit = min(end, off+store.MaxIO)
		case fillZeroes:
			limit = min(end, off+int64(len(zeroes())))
		}
		stop, copies, err := s.v.place.writeRun(off, limit)
		if err != nil {
			s.fatal = err
			return
		}
		n := stop - off
		switch f {
		case fillData:
			s.queue(off, n, p[:n:n], copies)
			p = p[n:]
		case fillZeroes:
			s.queue(off, n, zeroes()[:n], copies)
		case fillHole:
			s.queue(off, n, nil, copies)
		}
		off = stop
	}
}

// queue adds one run, making the calls that wait if there would be too many.
func (s *sender) queue(off, n int64, p []byte, copies []ring.NodeID) {
	if len(s.calls) > 0 && len(s.calls)+len(copies) > maxCalls {
		s.make()
	}
	for _, id := range copies {
		w, err := s.v.settled(s.v.place.node(id))
		if err != nil {
			s.fatal = err
			return
		}
		if !w.state.takes() {
			continue
		}
		s.calls = append(s.calls, call{node: s.v.place.node(id), at: w.at, run: s.runs, off: off, n: n, p: p})
	}
	s.runs++
}

// flush makes the calls that wait and returns what became of the whole write.
func (s *sender) flush() error {
	s.make()
	if s.fatal != nil {
		return s.fatal
	}
	return s.refused
}

// make makes the calls that wait, all at once, and judges the answers.
func (s *sender) make() {
	if len(s.calls) == 0 || s.fatal != nil {
		return
	}
	s.makeAll()
	for first := 0; first < len(s.calls); {
		first = s.judge(first)
	}
	clear(s.calls)
	s.calls = s.calls[:0]
}

// makeAll makes the calls that wait and returns when all are answered. Those to
// other nodes are begun first; then one is made on this goroutine, that to this
// process's own store.
func (s *sender) makeAll() {
	var own *call
	for i := range s.calls {
		c := &s.calls[i]
		switch {
		case c.p != nil && c.at.starter != nil:
			c.started, c.err = c.at.starter.StartWrite(s.v.ctx, s.v.chain[0], c.off, c.p, s.version, s.flags)
		case own == nil:
			own = c
		default:
			s.wg.Add(1)
			go s.doThenDone(c)
		}
	}
	if own != nil {
		s.do(own)
	}
	for i := range s.calls {
		if c := &s.calls[i]; c.started != nil {
			c.err = c.started.Wait()
			s.count(c)
		}
	}
	s.wg.Wait()
}

func (s *sender) doThenDone(c *call) {
	defer s.wg.Done()
	s.do(c)
}

// do makes one call.
func (s *sender) do(c *call) {
	v := s.v
	if c.p == nil {
		c.err = c.at.replica.Zero(v.ctx, v.chain[0], c.off, c.n, s.version, s.flags)
	} else {
		c.err = c.at.replica.Write(v.ctx, v.chain[0], c.off, c.p, s.version, s.flags)
	}
	s.count(c)
}

// count notes a write that a sync of its node has to cover.
func (s *sender) count(c *call) {
	if c.err == nil && s.flags&store.FlagSync == 0 {
		c.at.dirty.answered.Add(1) // before the write ends: a sync after that must find it
	}
}

// judge decides about the run whose calls begin at first and returns where the
// next one's begin. Here a failing copy will be recorded stale, so that the
// write can be completed without it.
func (s *sender) judge(first int) int {
	var t tally
	var failed, refused *call
	i := first
	for ; i < len(s.calls) && s.calls[i].run == s.calls[first].run; i++ {
		c := &s.calls[i]
		before := t
		t.add(c.err)
		switch {
		case t.failed > before.failed && failed == nil:
			failed = c
		case t.refused > before.refused && refused == nil:
			refused = c
		}
	}
	switch t.verdict() {
	case writeRefused:
		if s.refused == nil {
			s.refused = fmt.Errorf("node %v: %w", refused.node.id, refused.err)
		}
	case writeMixed:
		if failed == nil {
			failed = refused
		}
		if s.fatal == nil {
			s.fatal = s.v.stop(fmt.Errorf("node %v failed a write that %d of %d copies applied: %w",
				failed.node.id, t.applied, i-first, failed.err))
		}
	}
	return i
}
