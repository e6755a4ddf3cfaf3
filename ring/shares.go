package ring

// A Share is what a ring gives to one member. Shares are of the data before it
// is copied: 0 to 1 each, Copies() together.
type Share struct {
	Member     Member
	Partitions int     // of the ring's Partitions, those with a replica here
	First      int     // of these, those whose first node it is
	Data       float64 // the share it has
	Best       float64 // the share that weights, zones and hosts would give it at best
}

// Shares returns each member's share, in order of ID.
func (r *Ring) Shares() []Share {
	index := make(map[NodeID]int, len(r.members))
	shares := make([]Share, len(r.members))
	best := bestShares(r.copies, r.members, newTopology(r.copies, r.members))
	for i, m := range r.members {
		index[m.ID] = i
		shares[i] = Share{Member: m, Best: best[i]}
	}
	for p := range Partitions {
		row := r.row(p)
		shares[index[row[0]]].First++
		for _, id := range row {
			shares[index[id]].Partitions++
		}
	}
	for i := range shares {
		shares[i].Data = float64(shares[i].Partitions) / Partitions
	}
	return shares
}

// bestShares fills all members to one level, in proportion to their weights. A
// member that has a copy of everything stays at that; in a host or zone that is
// at its cap the level stays lower. This evens out what can be evened: no member
// could be relieved but by one that is as full for its weight.
func bestShares(copies int, members []Member, t *topology) []float64 {
	top := make([]float64, len(members)) // level at which the member's share is 1
	for i, m := range members {
		top[i] = 1 / float64(m.Weight)
	}
	// What is capped lowers the levels of its members, from the leaves to the root.
	all := make([]int, 0, len(members))
	for _, zone := range t.tree {
		first := len(all)
		for _, host := range zone {
			capLevel(members, top, host, t.hostCap)
			all = append(all, host...)
		}
		capLevel(members, top, all[first:], t.zoneCap)
	}
	capLevel(members, top, all, copies)
	shares := make([]float64, len(members))
	for i, m := range members {
		shares[i] = float64(m.Weight) * top[i]
	}
	return shares
}

// capLevel lowers top for the members of a group so that together they have at
// most limit.
func capLevel(members []Member, top []float64, group []int, limit int) {
	sum := func(level float64) (sum float64) {
		for _, m := range group {
			sum += float64(members[m].Weight) * min(level, top[m])
		}
		return sum
	}
	high := 0.0
	for _, m := range group {
		high = max(high, top[m])
	}
	if len(group) <= limit || sum(high) <= float64(limit) {
		return
	}
	// Weights differ by up to 2^63, and 53 bits are a float's: bisection ends.
	low := 0.0
	for range 128 {
		middle := (low + high) / 2
		if sum(middle) <= float64(limit) {
			low = middle
		} else {
			high = middle
		}
	}
	for _, m := range group {
		top[m] = min(top[m], low)
	}
}
