package volume

import (
	"errors"
	"fmt"
	"time"

	"torus/store"
)

// settle carries a write on that not every copy has applied at once, until each
// copy that is in sync now has, and enough of them. After each change of a
// node's state it plans anew:
//
//	away                it is on record: nothing is owed to it
//	failing             waited for, until it is away or answers again
//	catching, joining   owed the write, also if it began before they came back;
//	                    if they fail they are away
//	in sync, pending    owed the write
//
// What copies of a target say of a write decides nothing but what becomes of them.
func (s *sender) settle() {
	v := s.v
	for {
		s.report()
		if s.fatal = v.stopped(); s.fatal != nil {
			return
		}
		gen := s.plan()
		again, wait, hold := false, false, false
		for first := 0; first < len(s.calls); {
			last := first
			for last < len(s.calls) && s.calls[last].run == s.calls[first].run {
				last++
			}
			switch s.judge(s.calls[first:last]) {
			case runAgain:
				again = true
			case runWaits:
				wait = true
			case runHeld:
				hold = true
			}
			first = last
		}
		switch {
		case again:
			s.makeAll()
		case hold:
			s.fatal = s.hold(gen)
		case !wait:
			return
		default:
			s.fatal = v.await(gen)
		}
		if s.fatal != nil {
			return
		}
	}
}

// report says of the nodes whose calls failed that they did. The want of space is
// no failure as long as no other copy had space, but one of a target's copies: no
// write is refused for these.
func (s *sender) report() {
	for i := range s.calls {
		c := &s.calls[i]
		if c.made && c.err != nil && !(c.view.state == inSync && !c.node.target && errors.Is(c.err, store.ErrNoSpace)) {
			s.v.failed(c.node, c.view, c.err)
		}
	}
}

// judgement is what is to be done about a run.
type judgement uint8

const (
	runDone judgement = iota
	runAgain
	runWaits
	runHeld
)

// judge plans one run, and marks the calls that are to be made.
func (s *sender) judge(run []call) judgement {
	if s.over(run) {
		return runDone
	}
	have, applied, again, waits := 0, false, false, false
	var refused, torn, ahead *call
	for i := range run {
		c := &run[i]
		w := c.node.view.Load()
		c.seen = w
		same := c.made && w.at == c.view.at
		// One that answered has it still if it was taken back as what it was.
		has := c.made && c.err == nil && w.at != nil && w.at.dirty == c.view.at.dirty
		switch {
		case w.state == away:
		case w.state == failing:
			applied = applied || has && !c.node.target
			waits = waits || !has
			if has && c.node.target {
				ahead = c
			}
		case has && c.node.target:
			if w.state == inSync || w.state == pending {
				ahead = c
			}
		case has:
			applied = applied || w.state == inSync || w.state == pending
			if w.state == inSync {
				have++
			}
		case same && errors.Is(c.err, store.ErrNoSpace) && w.state == inSync:
			if refused = c; c.may {
				torn = c
			}
		default:
			c.view, c.todo, again = w, true, true
		}
	}
	switch {
	case again:
		return runAgain
	case refused != nil && applied:
		// Applied here and refused there: it is completed without whoever refused.
		for i := range run {
			if c := &run[i]; c.seen.state == inSync && errors.Is(c.err, store.ErrNoSpace) {
				s.v.failed(c.node, c.seen, c.err)
			}
		}
		return runWaits
	case waits:
		return runWaits
	case torn != nil && s.v.spare(torn.node, torn.seen, errTorn):
		return runWaits
	case torn != nil:
		return runHeld
	case refused != nil && ahead != nil:
		// It has what the ring's copies refused, until it is recorded to lack something.
		s.v.failed(ahead.node, ahead.seen, errTorn)
		return runWaits
	case refused != nil:
		return s.refuse(run, refused)
	case have < s.min:
		return runWaits
	}
	return runDone
}

// over reports whether a run was refused before.
func (s *sender) over(run []call) bool { return run[0].n == 0 }

// refuse ends a run that no copy in sync has. Nodes that are away, or caught up
// with, may have it all the same: their own, late, or as they adopted it from one
// that is away by now (see node.lost). That is decided under one lock, as a node
// that has it may be taken back at any time.
func (s *sender) refuse(run []call, refused *call) judgement {
	c := &s.v.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	somebody := false
	for i := range run {
		if run[i].node.view.Load() != run[i].seen {
			return runWaits
		}
		somebody = somebody || run[i].may
	}
	lost := span{off: run[0].off, end: run[0].off + run[0].n, version: s.write.version}
	for i := range run {
		n, w := run[i].node, run[i].seen
		if !somebody || w.state == inSync {
			continue
		}
		n.mayHave(lost)
		if w.state != away {
			n.why = errTorn
			w.at.cancel()
			s.v.turn(n, away, nil)
		}
	}
	for i := range run {
		run[i].n = 0
	}
	if s.refused == nil {
		s.refused = fmt.Errorf("node %s: %w", refused.node.name, refused.err)
	}
	return runDone
}

// holdPause is how long a write waits for space that its copies have none for now.
const holdPause = time.Second

// hold waits for a change, or for space, before copies in sync that refused a run
// are asked again. One of them may have it, or get it late, and can't be done
// without: so nobody can be told yet that it was refused.
func (s *sender) hold(gen uint64) error {
	s.v.copies.held.Add(1)
	defer s.v.copies.held.Add(-1)
	timer := time.NewTimer(holdPause)
	defer timer.Stop()
	err := s.v.awaitOr(gen, timer.C)
	for i := range s.calls {
		if c := &s.calls[i]; errors.Is(c.err, store.ErrNoSpace) {
			c.made = false
		}
	}
	return err
}

var errTorn = errors.New("it may have a write that the copies in sync refused")
