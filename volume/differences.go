package volume

import (
	"cmp"
	"math"
	"slices"

	"torus/store"
)

// What a crash left, as functions of what the nodes list alone.
//
// After a crash two copies of a page can only differ where one of them has a
// version above the highest stable mark M that any node was told. For let the
// copies' own marks be m1 ... mk <= M, as each node may have missed, or lost
// with its power, the marks it was told last:
//
//   - M was told when every copy had all up to M durable, and nothing at or
//     below M was in flight or could still be applied (N4, and N1 for what an
//     earlier epoch sent). So each copy's version of the page is at least w, the
//     highest up to M that was ever written to it, whatever power was cut since.
//   - A version above M is above the copy's own mark, so the copy lists it as
//     unstable. Where no copy lists one above M, all have w.
//   - Where one does, the highest listed version is the highest there is: what is
//     not listed is at most M. That includes what was acknowledged and what was
//     read: both take every copy's answer, a copy with its recorded incarnation
//     has kept what it answered, so it lists that version or a higher one. What
//     a reborn copy has lost is found in this way on the others' lists.
//
// A hole at or below M that one node has forgotten and another not is no
// difference: both read as zeroes.

// mayDiffer reports whether the copies of e, which one node lists as unstable,
// may differ, given the highest mark that any node was told.
func mayDiffer(e store.Extent, mark store.Version) bool { return e.Version > mark }

// sweep walks through the lists of several nodes side by side, each in order of
// its offsets.
type sweep struct {
	lists [][]store.Extent
	at    int64 // bytes; all below was returned
}

// next returns the next run of pages [off, end) in bytes that no list has a
// border in, and puts into state what each list says of it, Absent where it
// says nothing. False behind the last.
func (s *sweep) next(state []store.Extent) (off, end int64, ok bool) {
	off, end = math.MaxInt64, math.MaxInt64
	for i, l := range s.lists {
		for len(l) > 0 && l[0].End() <= s.at {
			l = l[1:]
		}
		if s.lists[i] = l; len(l) > 0 {
			off = min(off, max(l[0].Off, s.at))
		}
	}
	if off == math.MaxInt64 {
		return 0, 0, false
	}
	for i, l := range s.lists {
		state[i] = store.Extent{}
		switch {
		case len(l) == 0:
		case l[0].Off <= off:
			state[i], end = l[0], min(end, l[0].End())
		default:
			end = min(end, l[0].Off)
		}
	}
	s.at = end
	return off, end, true
}

// highest returns which of the copies of a page has its highest version.
func highest(copies []store.Extent) store.Extent {
	return slices.MaxFunc(copies, func(a, b store.Extent) int { return cmp.Compare(a.Version, b.Version) })
}

// same reports whether two copies of a page are equal.
func same(a, b store.Extent) bool { return a.Kind == b.Kind && a.Version == b.Version }

// answer is what one copy of a page said when it was read.
type answer struct {
	info     store.PageInfo
	corrupt  bool
	standing standing
}

// salvage decides what becomes of a page whose highest version is corrupt on
// each copy that has it: the answer to take, -1 if none is sound, and whether
// something that was acknowledged may be gone with that. It is not if a whole
// copy is among the sound ones: it never had what is corrupt, so that was never
// acknowledged, and never read. Otherwise it was at least never flushed, or all
// copies would have it.
func salvage(answers []answer) (take int, gone bool) {
	take, gone = -1, true
	for i, a := range answers {
		if a.corrupt {
			continue
		}
		if take < 0 || a.info.Version > answers[take].info.Version {
			take = i
		}
		if a.standing == whole {
			gone = false
		}
	}
	return take, gone
}
