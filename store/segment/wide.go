package segment

import (
	"slices"
	"sort"

	"torus/store"
)

// What is stated of whole chunks is kept as spans of chunks, not by page: a
// trim of 1 PiB, or the drop of a layer, is one record.

// A killer says that everything logged before pos with a version below below
// is dead.
type killer struct {
	pos   position
	below store.Version
}

func (k killer) kills(d *desc) bool { return d.pos < k.pos && d.version < k.below }

const anyVersion = ^store.Version(0)

// A wide is the state of chunks as a whole: what a page is that has nothing
// of its own, and what of older statements is dead. The latest killer is the
// one that made the state; earlier ones stay where it doesn't cover them.
type wide struct {
	kind    store.Kind
	version store.Version
	pos     position
	killers []killer
}

func (w *wide) kills(d *desc) bool {
	if w == nil {
		return false
	}
	for _, k := range w.killers {
		if k.kills(d) {
			return true
		}
	}
	return false
}

// desc returns what the chunk as a whole says of a page.
func (w *wide) desc() desc {
	if w == nil {
		return desc{}
	}
	return desc{kind: w.kind, version: w.version, pos: w.pos}
}

// applies reports whether c applies to a page with nothing of its own.
func (w *wide) applies(c *pageChange) bool {
	d := w.desc()
	return c.applies(&d)
}

// resolve returns what holds of a page that the index describes by d.
func resolve(d *desc, w *wide) desc {
	if d.pos != 0 && !w.kills(d) {
		return *d
	}
	return w.desc()
}

// supersedes reports whether the statement made by k, put on the state old,
// becomes the state. Where it doesn't (it came late), it may hold for single
// pages all the same, and has to be made of these.
func (k killer) supersedes(old *wide) bool {
	d := old.desc()
	return k.kills(&d)
}

// over puts a statement on the state old, which it supersedes or which is nil.
func (w *wide) over(old *wide) *wide {
	if old == nil {
		return w
	}
	return &wide{kind: w.kind, version: w.version, pos: w.pos, killers: addKiller(old.killers, w.killers[len(w.killers)-1])}
}

// addKiller appends k to a copy of old without those that it covers.
func addKiller(old []killer, k killer) []killer {
	var out []killer
	for _, o := range old {
		if o.pos > k.pos || o.below > k.below {
			out = append(out, o)
		}
	}
	return append(out, k)
}

// A span is a state over the chunks [first, end).
type span struct {
	first, end uint32
	state      *wide
}

// overlay puts w on the chunks [first, end) of spans, which are disjoint and
// in order, and returns the new ones. w supersedes each of them.
func overlay(spans []span, first, end uint32, w *wide) []span {
	var out []span
	next := first // up to here [first, end) is covered
	add := func(a, b uint32, state *wide) {
		if a < b {
			out = append(out, span{a, b, state})
		}
	}
	for _, s := range spans {
		if s.end <= first || s.first >= end {
			if s.first >= end {
				add(next, end, w)
				next = max(next, end)
			}
			out = append(out, s)
			continue
		}
		add(s.first, first, s.state)
		add(next, s.first, w)
		from, to := max(s.first, first), min(s.end, end)
		add(from, to, w.over(s.state))
		add(to, s.end, s.state)
		next = to
	}
	add(next, end, w)
	slices.SortFunc(out, func(a, b span) int { return int(int64(a.first) - int64(b.first)) })
	return out
}

// spanAt returns the state of chunk c, or nil.
func spanAt(spans []span, c uint32) *wide {
	i := sort.Search(len(spans), func(i int) bool { return spans[i].end > c })
	if i < len(spans) && spans[i].first <= c {
		return spans[i].state
	}
	return nil
}

// spanEnd returns where the state that chunk c has ends, at most end.
func spanEnd(spans []span, c, end uint32) uint32 {
	for _, s := range spans {
		switch {
		case s.first <= c && c < s.end:
			return min(s.end, end)
		case s.first > c:
			return min(s.first, end)
		}
	}
	return end
}
