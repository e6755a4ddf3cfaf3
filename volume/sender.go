package volume

import (
	"errors"
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
	v     *Volume
	write span // in flight
	flags store.Flags
	min   int // how many copies in sync must have it

	calls   []call // not settled yet; those of one run stand together
	runs    int
	refused error // the first run that no copy took
	fatal   error // the volume has stopped, or a run could not be placed
	wg      sync.WaitGroup
}

// call is one run of pages for one node.
type call struct {
	node   *node
	view   *view // as of when it was made last
	seen   *view // as of when its run was judged last
	run    int
	off, n int64
	p      []byte // nil: a hole

	todo    bool          // to be made now
	made    bool          // once or more often; err is the last answer
	may     bool          // the node may have it, or get it late: some answer was another than that there is no space
	started store.Started // the answer is waited for; nil: it is not
	err     error
}

var senders = sync.Pool{New: func() any { return new(sender) }}

// newSender makes a sender of a write in flight.
func newSender(v *Volume, write span, flags store.Flags) *sender {
	s := senders.Get().(*sender)
	s.v, s.write, s.flags, s.min = v, write, flags, v.place.minCopies
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
		s.calls = append(s.calls, call{node: s.v.place.node(id), run: s.runs, off: off, n: n, p: p})
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

// make makes the calls that wait, all at once, and again until each copy in sync
// has answered.
func (s *sender) make() {
	if len(s.calls) == 0 || s.fatal != nil {
		return
	}
	s.plan()
	for i := range s.calls {
		c := &s.calls[i]
		c.view = c.node.view.Load()
		c.todo = c.view.state.takes()
	}
	s.makeAll()
	if !s.done() {
		s.settle()
	}
	clear(s.calls)
	s.calls = s.calls[:0]
}

// plan is called before the sender looks at the nodes, and returns the change of
// state that it has seen then at least.
func (s *sender) plan() uint64 {
	gen := s.v.copies.gen.Load()
	if gen != s.write.gen {
		s.v.flight.replanned(s.write.off, s.write.end, s.write.version, gen)
		s.write.gen = gen
	}
	return gen
}

// done reports whether nothing is to be decided: every node of every run has
// applied it, is what it was, and enough of them are in sync.
func (s *sender) done() bool {
	run, have := -1, s.min
	for i := range s.calls {
		c := &s.calls[i]
		if c.run != run {
			if have < s.min {
				return false
			}
			run, have = c.run, 0
		}
		if !c.made || c.err != nil || c.node.view.Load() != c.view {
			return false
		}
		if c.view.state == inSync && !c.node.target {
			have++
		}
	}
	return have >= s.min
}

// makeAll makes the calls to be made and returns when all are answered. Those to
// other nodes are begun first; then one is made on this goroutine, that to this
// process's own store.
func (s *sender) makeAll() {
	var own *call
	for i := range s.calls {
		c := &s.calls[i]
		if !c.todo {
			continue
		}
		at := c.view.at
		switch {
		case c.p != nil && at.starter != nil:
			c.started, c.err = at.starter.StartWrite(at.ctx, s.v.chain[0], c.off, c.p, s.write.version, s.flags)
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
			c.started = nil
			s.count(c)
		}
	}
	s.wg.Wait()
	for i := range s.calls {
		if c := &s.calls[i]; c.todo {
			c.todo, c.made = false, true
			c.may = c.may || !errors.Is(c.err, store.ErrNoSpace)
		}
	}
}

func (s *sender) doThenDone(c *call) {
	defer s.wg.Done()
	s.do(c)
}

// do makes one call.
func (s *sender) do(c *call) {
	at, head := c.view.at, s.v.chain[0]
	if c.p == nil {
		c.err = at.replica.Zero(at.ctx, head, c.off, c.n, s.write.version, s.flags)
	} else {
		c.err = at.replica.Write(at.ctx, head, c.off, c.p, s.write.version, s.flags)
	}
	s.count(c)
}

// count notes a write that a sync of its node has to cover.
func (s *sender) count(c *call) {
	if c.err == nil && s.flags&store.FlagSync == 0 {
		c.view.at.dirty.answered.Add(1) // before the write ends: a sync after that must find it
	}
}
