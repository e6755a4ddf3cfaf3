package volume

import (
	"errors"
	"fmt"

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
func (s *sender) settle() {
	v := s.v
	for {
		s.report()
		if s.fatal = v.stopped(); s.fatal != nil {
			return
		}
		gen := s.plan()
		again, wait := false, false
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
			case runRefused:
				s.refuse(s.calls[first:last])
			}
			first = last
		}
		switch {
		case again:
			s.makeAll()
		case !wait:
			return
		default:
			if s.fatal = v.await(gen); s.fatal != nil {
				return
			}
		}
	}
}

// report says of the nodes whose calls failed that they did. The want of space is
// no failure as long as no other copy had space.
func (s *sender) report() {
	for i := range s.calls {
		c := &s.calls[i]
		if c.made && c.err != nil && !(c.view.state == inSync && errors.Is(c.err, store.ErrNoSpace)) {
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
	runRefused
)

// judge plans one run, and marks the calls that are to be made.
func (s *sender) judge(run []call) judgement {
	if s.over(run) {
		return runDone
	}
	have, applied, again, waits := 0, false, false, false
	var refused *call
	for i := range run {
		c := &run[i]
		w := c.node.view.Load()
		same := c.made && w.at == c.view.at
		switch {
		case w.state == away:
		case w.state == failing:
			applied = applied || same && c.err == nil
			waits = waits || !same || c.err != nil
		case same && c.err == nil:
			applied = applied || w.state == inSync || w.state == pending
			if w.state == inSync {
				have++
			}
		case same && errors.Is(c.err, store.ErrNoSpace) && w.state == inSync:
			refused = c
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
			if c := &run[i]; errors.Is(c.err, store.ErrNoSpace) {
				s.v.failed(c.node, c.view, c.err)
			}
		}
		return runWaits
	case waits:
		return runWaits
	case refused != nil:
		if s.refused == nil {
			s.refused = fmt.Errorf("node %v: %w", refused.node.id, refused.err)
		}
		return runRefused
	case have < s.min:
		return runWaits
	}
	return runDone
}

// over reports whether a run was refused before.
func (s *sender) over(run []call) bool { return run[0].n == 0 }

// refuse ends a run that no copy in sync has. A node that is away, or caught up
// with, may have it all the same, or get it late (see node.lost).
func (s *sender) refuse(run []call) {
	v := s.v
	lost := span{off: run[0].off, end: run[0].off + run[0].n, version: s.write.version}
	for i := range run {
		c := &run[i]
		if !c.made || errors.Is(c.err, store.ErrNoSpace) {
			continue
		}
		v.copies.mu.Lock()
		c.node.mayHave(lost)
		v.copies.mu.Unlock()
		if w := c.node.view.Load(); w.at != nil {
			v.failed(c.node, w, errTainted)
		}
	}
	for i := range run {
		run[i].n = 0
	}
}

var errTainted = errors.New("it has a write that all copies in sync refused")
