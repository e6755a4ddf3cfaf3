package ring

import "slices"

// take begins with the rows of an earlier ring, without the members that are gone
// and those that may not stand together any more.
func (b *builder) take(earlier *Ring) {
	b.rows = slices.Repeat([]int16{int16(b.nobody)}, Partitions*b.copies)
	b.load[b.nobody] = len(b.rows)
	index := make(map[NodeID]int, len(b.members))
	for i, m := range b.members {
		index[m.ID] = i
	}
	for p := range Partitions {
		for slot, id := range earlier.row(p)[:min(b.copies, earlier.copies)] {
			if m, ok := index[id]; ok { // or its successor takes its place in the order
				b.put(b.row(p), slot, m)
			}
		}
	}
	for _, p := range b.order() { // now that it is known who has too much
		for _, id := range earlier.row(p)[min(b.copies, earlier.copies):] {
			if m, ok := index[id]; ok {
				b.shorten(b.row(p), m)
			}
		}
		b.part(b.row(p))
	}
}

// shorten finds a place for a member that stood behind the end of a row: an empty
// one, or that of one which has more too much.
func (b *builder) shorten(row []int16, m int) {
	slot := slices.Index(row, int16(b.nobody))
	if slot < 0 {
		slot = b.fullest(row, func(int) bool { return true })
		if b.over(row[slot]) <= b.over(int16(m))+1 {
			return
		}
	}
	b.put(row, slot, m)
}

// part takes members out of a row until it keeps to the caps of hosts and zones.
func (b *builder) part(row []int16) {
	b.partGroups(row, b.host, b.hostCap)
	b.partGroups(row, b.zone, b.zoneCap)
}

func (b *builder) partGroups(row []int16, group []int, limit int) {
	crowded := func(slot int) bool {
		n := 0
		for _, m := range row {
			if int(m) != b.nobody && group[m] == group[row[slot]] {
				n++
			}
		}
		return n > limit
	}
	for slot := b.fullest(row, crowded); slot >= 0; slot = b.fullest(row, crowded) {
		b.put(row, slot, b.nobody)
	}
}

// fullest returns the slot of the member, among those for whose slots the condition
// holds, that has the most too much; -1 if there is none.
func (b *builder) fullest(row []int16, condition func(slot int) bool) int {
	best := -1
	for slot, m := range row {
		if int(m) != b.nobody && condition(slot) && (best < 0 || b.over(m) > b.over(row[best])) {
			best = slot
		}
	}
	return best
}
