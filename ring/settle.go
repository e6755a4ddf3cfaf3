package ring

import "slices"

// settle brings every member to its goal. A replica goes straight from a member
// that has too much (or from nobody) to one that has too little wherever a row
// allows it; what is left goes by way of others.
func (b *builder) settle() {
	s := &settling{builder: b, chances: make([]int, len(b.members))}
	for m := range b.members {
		if b.load[m] < b.goal[m] {
			s.lacking = append(s.lacking, m)
		}
	}
	order := b.order()
	for _, p := range order {
		row := b.row(p)
		for slot := range row {
			s.each(row, slot, func(m int) { s.chances[m]++ })
		}
	}
	for _, p := range order {
		row := b.row(p)
		for slot := range row {
			s.give(row, slot)
		}
	}
	newRotation(b).run()
}

// A settling hands places from members that have too much to others.
type settling struct {
	*builder
	lacking []int // members that have too little
	chances []int // places still to come that each of these could get
}

// each calls f with the members that could get the place at slot of a row.
func (s *settling) each(row []int16, slot int, f func(m int)) {
	if s.over(row[slot]) <= 0 {
		return
	}
	for _, m := range s.lacking {
		if s.fits(row, slot, m) {
			f(m)
		}
	}
}

// give gives a place to the member that lacks the most for the chances that it still
// has. (Drawing one in proportion to what they lack moved up to 2 % more.)
func (s *settling) give(row []int16, slot int) {
	best := s.nobody
	s.each(row, slot, func(m int) {
		if best == s.nobody || s.lack(m)*s.chances[best] > s.lack(best)*s.chances[m] {
			best = m
		}
		s.chances[m]--
	})
	if best == s.nobody {
		return
	}
	s.put(row, slot, best)
	if s.lack(best) == 0 {
		s.lacking = slices.DeleteFunc(s.lacking, func(m int) bool { return m == best })
	}
}

func (s *settling) lack(m int) int { return s.goal[m] - s.load[m] }
