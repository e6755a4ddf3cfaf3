package ring

import "slices"

// A rotation moves what cannot go straight. Members are the nodes of a graph, with
// an edge from a to c where some row allows c in a's place; each shortest path from
// one that has too much to one that has too little puts one replica more where it is
// to be, for as many moves as it has edges. There is such a path until all goals are
// met: rows that keep to nested caps are the bases of a matroid, what they give to
// members together is a base of the sum of these, and so are the goals (Schrijver,
// Combinatorial Optimization, chapter 42).
//
// Paths are found as in Dinic's algorithm: the distances of all members once, then
// as many paths as these allow, never looking twice at a place.
type rotation struct {
	*builder
	places [][]int // of each member, and nobody, counted through all rows
	index  []int   // where each place stands in these
	levels [][]int // members by their distance from those that have too much
	next   []int   // how many of its places each has tried
}

func newRotation(b *builder) *rotation {
	n := len(b.load)
	r := &rotation{builder: b, places: make([][]int, n), index: make([]int, len(b.rows)), next: make([]int, n)}
	for place, m := range b.rows {
		r.add(place, int(m))
	}
	return r
}

// run goes on until no path is left.
func (r *rotation) run() {
	for pushed := true; pushed && r.measure(); {
		clear(r.next)
		pushed = false // always true after this, or verify says what is wrong
		for _, m := range r.levels[0] {
			for r.over(int16(m)) > 0 && r.push(m, 0) {
				pushed = true
			}
		}
	}
}

// measure finds the distances of members, up to the first that has too little; it
// returns false if there is none that can be reached.
func (r *rotation) measure() bool {
	var first, unseen []int
	for m := range r.load {
		switch {
		case r.over(int16(m)) > 0:
			first = append(first, m)
		case m != r.nobody:
			unseen = append(unseen, m)
		}
	}
	r.levels = [][]int{first}
	for found := false; !found; {
		var level []int
		for _, m := range r.levels[len(r.levels)-1] {
			level, unseen = r.reach(m, level, unseen)
		}
		if len(level) == 0 {
			return false
		}
		for _, m := range level {
			found = found || r.over(int16(m)) < 0
		}
		r.levels = append(r.levels, level)
	}
	return true
}

// reach moves those that could get a place of m from unseen to level.
func (r *rotation) reach(m int, level, unseen []int) (reached, rest []int) {
	for _, place := range r.places[m] {
		if len(unseen) == 0 {
			break
		}
		row, slot := r.at(place)
		unseen = slices.DeleteFunc(unseen, func(to int) bool {
			if !r.fits(row, slot, to) {
				return false
			}
			level = append(level, to)
			return true
		})
	}
	return level, unseen
}

// push moves a replica from m, at a distance, along a path to one that has too
// little, the last step first: otherwise a row with two steps of the path might
// not allow the first. It returns false if there is no such path any more.
func (r *rotation) push(m, distance int) bool {
	if distance == len(r.levels)-1 {
		return r.over(int16(m)) < 0
	}
	for ; r.next[m] < len(r.places[m]); r.next[m]++ {
		place := r.places[m][r.next[m]]
		row, slot := r.at(place)
		for _, to := range r.levels[distance+1] {
			if r.fits(row, slot, to) && r.push(to, distance+1) {
				r.move(place, to)
				return true
			}
		}
	}
	return false
}

// at returns the row and slot of a place.
func (r *rotation) at(place int) ([]int16, int) { return r.row(place / r.copies), place % r.copies }

// add enters a place as member m's.
func (r *rotation) add(place, m int) {
	r.index[place] = len(r.places[m])
	r.places[m] = append(r.places[m], place)
}

// move gives a place to a member.
func (r *rotation) move(place, to int) {
	row, slot := r.at(place)
	owner := row[slot]
	places := r.places[owner]
	last := places[len(places)-1]
	places[r.index[place]], r.index[last] = last, r.index[place]
	r.places[owner] = places[:len(places)-1]
	r.add(place, to)
	r.put(row, slot, to)
}
