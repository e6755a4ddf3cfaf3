package ring

import (
	"math"
	"slices"
)

// leastByCycles returns the fewest replicas that can move from one ring to any with
// the same number of partitions on each member as another, where clusters are too large for
// oracleLeast: as long as there is a cycle of members along which exchanging
// replicas, each within some row, leaves fewer of them moved, it does so. It gives up
// after a number of tries and returns 0.
func leastByCycles(from, to *Ring, tries int) int {
	b := newBuilder(to.copies, to.members)
	b.rows = make([]int16, len(to.table))
	index := map[NodeID]int{}
	for i, m := range to.members {
		index[m.ID] = i
	}
	for i, id := range to.table {
		b.rows[i] = int16(index[id])
	}
	had := make([][]bool, Partitions) // by partition and member
	for p := range Partitions {
		had[p] = make([]bool, len(to.members))
		for _, id := range from.row(p) {
			if i, ok := index[id]; ok {
				had[p][i] = true
			}
		}
	}
	for ; b.cancel(had); tries-- {
		if tries == 0 {
			return 0
		}
	}
	moved := 0
	for i, m := range b.rows {
		if !had[i/b.copies][m] {
			moved++
		}
	}
	return moved
}

// cancel looks for such a cycle and follows it once.
func (b *builder) cancel(had [][]bool) bool {
	n := len(b.members)
	cost := slices.Repeat([]int{math.MaxInt32}, n*n) // of moving a replica from one member to another
	place := make([]int, n*n)
	price := func(p, m int) int {
		if had[p][m] {
			return 0
		}
		return 1
	}
	for i, a := range b.rows {
		p := i / b.copies
		for c := range n {
			d := price(p, c) - price(p, int(a))
			if e := int(a)*n + c; d < cost[e] && b.fits(b.row(p), i%b.copies, c) {
				cost[e], place[e] = d, i
			}
		}
	}
	// Bellman and Ford: whatever still gets cheaper after n rounds is behind a cycle.
	distance, by := make([]int, n), slices.Repeat([]int{-1}, n)
	last := -1
	for range n + 1 {
		last = -1
		for a := range n {
			for c := range n {
				if d := distance[a] + cost[a*n+c]; a != c && d < distance[c] {
					distance[c], by[c], last = d, a, c
				}
			}
		}
		if last < 0 {
			return false
		}
	}
	for range n {
		last = by[last]
	}
	for c, first := last, true; first || c != last; c, first = by[c], false {
		e := by[c]*n + c
		row, slot := b.row(place[e]/b.copies), place[e]%b.copies
		if int(row[slot]) != by[c] || !b.fits(row, slot, c) {
			panic("two steps of a cycle are in each other's way")
		}
		row[slot] = int16(c)
	}
	return true
}
