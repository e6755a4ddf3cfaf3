package volume

import (
	"math"
	"sync/atomic"
)

// gate counts the requests inside the volume and can be shut for good: then
// nobody enters and the last one to leave is waited for.
type gate struct {
	inside atomic.Int64 // below zero when shut
	left   chan struct{}
}

// shutBias is what a shut gate adds to the count.
const shutBias = math.MinInt64 / 2

// newGate returns an open gate.
func newGate() gate { return gate{left: make(chan struct{}, 1)} }

// enter lets a request in, which then must leave; false if the gate is shut.
func (g *gate) enter() bool {
	if g.inside.Add(1) > 0 {
		return true
	}
	g.leave()
	return false
}

// leave undoes enter.
func (g *gate) leave() {
	if g.inside.Add(-1) == shutBias {
		select {
		case g.left <- struct{}{}:
		default:
		}
	}
}

// shut closes the gate and returns when everybody has left. True for the one
// caller that shut it; others return at once.
func (g *gate) shut() bool {
	for {
		n := g.inside.Load()
		if n < 0 {
			return false
		}
		if g.inside.CompareAndSwap(n, n+shutBias) {
			break
		}
	}
	for g.inside.Load() != shutBias {
		<-g.left
	}
	return true
}
