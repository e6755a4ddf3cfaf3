package memstore

import (
	"math/rand/v2"

	"torus/store"
)

// An effect is what one request did to some pages: they became cell. Effects,
// not requests, are what a power cut takes: a log that lost some of its tail
// gives each page what the last surviving record says, whatever lies between.
// An effect of kind Data has one page.
type effect struct {
	first, end int64 // pages
	cell       cell
}

func (e effect) applyTo(s *pageSet, first, end int64) {
	if e.cell.kind == store.Data {
		s.put(first, e.cell)
		return
	}
	s.fill(first, end, e.cell)
}

// maxUnsynced bounds the effects kept for a layer, and so the superseded pages
// in memory: 64 MiB. As on a real disk, what has waited for long gets written.
const maxUnsynced = 16384

// note records what was just done to now. The caller holds mu.
func (l *layer) note(e effect) {
	if l.durable == nil {
		return
	}
	l.unsynced = append(l.unsynced, e)
	if len(l.unsynced) > maxUnsynced {
		l.flush(maxUnsynced / 2)
	}
}

// flush makes the first n effects durable. The caller holds mu.
func (l *layer) flush(n int) {
	for _, e := range l.unsynced[:n] {
		e.applyTo(l.durable, e.first, e.end)
	}
	l.unsynced = append([]effect(nil), l.unsynced[n:]...)
}

// sync makes everything durable.
func (l *layer) sync() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush(len(l.unsynced))
	l.durableMarks = l.marks
}

// without returns what effects leave when the pages [first, end) are cut out.
func without(effects []effect, first, end int64) []effect {
	var left []effect
	for _, e := range effects {
		if e.first < min(e.end, first) {
			left = append(left, effect{e.first, min(e.end, first), e.cell})
		}
		if max(e.first, end) < e.end {
			left = append(left, effect{max(e.first, end), e.end, e.cell})
		}
	}
	return left
}

// A powerCut decides what survives it.
type powerCut struct {
	rng   *rand.Rand
	keeps float64 // the share that survives
}

func newPowerCut(rng *rand.Rand) powerCut {
	// All and nothing are cases of their own, which a random share hardly hits.
	shares := []float64{0, 1, 0.5, rng.Float64()}
	return powerCut{rng, shares[rng.IntN(len(shares))]}
}

// powerCut leaves of the unsynced what the cut spares, and the marks or the
// older durable ones.
func (l *layer) powerCut(cut powerCut) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.unsynced {
		cut.apply(e, l.durable)
	}
	l.unsynced = nil
	l.now = l.durable.clone()
	if !cut.spares() {
		l.marks = l.durableMarks
	}
	l.durableMarks = l.marks
}

func (c powerCut) spares() bool { return c.rng.Float64() < c.keeps }

// apply applies to s those pages of e that are spared: each decided apart, or
// in pieces of random lengths where they are many.
func (c powerCut) apply(e effect, s *pageSet) {
	const each, pieces = 64, 8
	for first := e.first; first < e.end; {
		n := int64(1)
		if pages := e.end - e.first; pages > each {
			n = min(1+c.rng.Int64N(2*pages/pieces), e.end-first)
		}
		if c.spares() {
			e.applyTo(s, first, first+n)
		}
		first += n
	}
}
