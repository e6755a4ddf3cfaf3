package volume

import (
	"math"

	"torus/store"
)

// What a node that missed writes lacks, as functions of the lists of the nodes
// alone.

// action is what a resync does with pages of which a stale node n and a copy p
// in sync say different things.
type action uint8

const (
	// leave: nothing.
	leave action = iota
	// bring: n gets what p has.
	bring
	// takeBack: n has a write that nobody acknowledged; it gets what p has now,
	// be it nothing (12/205).
	takeBack
)

// String names the action.
func (a action) String() string { return [...]string{"leave", "bring", "take back"}[a] }

// wants says what is to be done with a run of pages, given what n and p list of
// it above the same version. While n is sent all writes, one of the present epoch
// may be seen at n before it is at p; the other way round n gets it twice.
func wants(n, p store.Extent, present store.Epoch) action {
	switch {
	case same(n, p):
		return leave
	case n.Version > p.Version && n.Version.Epoch() == present:
		return leave
	case p.Version > 0:
		return bring
	}
	return takeBack
}

// walk goes through what several copies list, side by side, as sweep does
// through lists that lie in memory.
type walk struct {
	cursors []cursor
	at, end int64 // bytes; all below at was returned
}

// next returns the next run of pages [off, end) in bytes that no copy has a
// border in, and puts into state what each of them lists there, Absent where
// that is nothing. off is the walk's end behind the last.
func (w *walk) next(state []store.Extent) (off, end int64, err error) {
	off, end = math.MaxInt64, math.MaxInt64
	for i := range w.cursors {
		c := &w.cursors[i]
		if err := c.seek(w.at); err != nil {
			return 0, 0, err
		}
		if c.now.N > 0 {
			off = min(off, max(c.now.Off, w.at))
		}
	}
	if off == math.MaxInt64 {
		return w.end, w.end, nil
	}
	for i := range w.cursors {
		now := w.cursors[i].now
		state[i] = store.Extent{}
		switch {
		case now.N == 0:
		case now.Off <= off:
			state[i], end = now, min(end, now.End())
		default:
			end = min(end, now.Off)
		}
	}
	w.at = end
	return off, end, nil
}
