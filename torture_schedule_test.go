package main_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// A fault is what is done to a machine for a while.
type fault struct {
	kind   faultKind
	at     time.Duration // from the beginning of its round
	lasts  time.Duration
	on     int // machine; as many as there are nodes: the exporter's
	from   int // of cutOff: the machine that it does not hear any more; -1: all
	oneWay bool
}

type faultKind int

const (
	killed   faultKind = iota // with SIGKILL, and started again
	ended                     // with SIGTERM, and started again
	rebooted                  // killed, and started with another boot ID
	paused                    // with SIGSTOP
	cutOff                    // by nft
	full                      // its disk
	faultKinds
)

var faultNames = [...]string{"killed", "ended", "rebooted", "paused", "cut off", "full"}

// A round is what is done before everything is let to itself again.
type round struct {
	number int
	faults []fault
	// flips is how many pages of the node flipped lose a byte. Then there are no
	// faults: another copy of each must be there.
	flips, flipped int
	settles        bool // all is well again before the next round
}

// drawRound draws one.
func drawRound(rng *rand.Rand, number, nodes int) round {
	r := round{number: number, settles: rng.IntN(3) > 0}
	if rng.IntN(6) == 0 {
		r.flips, r.flipped, r.settles = 1+rng.IntN(32), rng.IntN(nodes), true
		return r
	}
	length := 1500 + rng.IntN(6000)
	if rng.IntN(6) == 0 { // all nodes at once, and back one by one
		kind, at := [...]faultKind{killed, rebooted}[rng.IntN(2)], time.Duration(rng.IntN(length))*time.Millisecond
		for i := range nodes {
			r.faults = append(r.faults, fault{kind: kind, on: i, from: -1, at: at, lasts: drawTime(rng)})
		}
	}
	for range 2 + rng.IntN(7) {
		f := fault{kind: faultKind(rng.IntN(int(faultKinds))), on: rng.IntN(nodes), from: -1,
			at: time.Duration(rng.IntN(length)) * time.Millisecond, lasts: drawTime(rng)}
		switch {
		case f.kind == cutOff:
			if f.oneWay = rng.IntN(3) == 0; rng.IntN(2) == 0 {
				f.from = (f.on + 1 + rng.IntN(nodes)) % (nodes + 1)
			}
		case f.kind == full:
			f.lasts += 6 * time.Second // until the segments that there are have been written
		case rng.IntN(5) == 0:
			f.on = nodes
		}
		if !slices.ContainsFunc(r.faults, f.excludes) {
			r.faults = append(r.faults, f)
		}
	}
	slices.SortFunc(r.faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return r
}

// drawTime draws how long a fault lasts: often less than the 3 s that a node has to
// answer, at times longer than a lease.
func drawTime(rng *rand.Rand) time.Duration {
	switch rng.IntN(6) {
	case 0:
		return time.Duration(8000+rng.IntN(6000)) * time.Millisecond
	case 1, 2:
		return time.Duration(2000+rng.IntN(4000)) * time.Millisecond
	default:
		return time.Duration(20+rng.IntN(1500)) * time.Millisecond
	}
}

// excludes reports whether two faults can't be done to a machine in one round:
// those of its process come one at a time.
func (f fault) excludes(o fault) bool {
	return f.on == o.on && (f.kind == o.kind || f.kind < cutOff && o.kind < cutOff)
}

// describe prints a fault, with the names of the machines.
func (f fault) describe(machines []*machine) string {
	s := fmt.Sprintf("%s %s", machines[f.on].name, faultNames[f.kind])
	if f.kind == cutOff {
		from, way := "all", ""
		if f.from >= 0 {
			from = machines[f.from].name
		}
		if f.oneWay {
			way = ", one way"
		}
		s += " from " + from + way
	}
	return s
}
