package ring

import (
	"fmt"
	"slices"
)

// New builds the ring of the given members, for one number of copies. Where there
// is an earlier ring, for as many copies or not, as little as possible lies
// elsewhere than there. The result depends on the arguments alone; the order of
// members does not matter.
//
// Errors: ErrTooFewMembers, ErrInvalid.
func New(copies int, members []Member, earlier *Ring) (*Ring, error) {
	ordered, err := check(copies, members)
	if err != nil {
		return nil, err
	}
	b := newBuilder(copies, ordered)
	if earlier == nil {
		b.rows = deal(copies, b.topology, b.goal, b.draw)
		copy(b.load, b.goal)
	} else {
		b.take(earlier)
		b.settle()
	}
	if err := b.verify(); err != nil {
		return nil, err
	}
	b.lead()
	return b.ring(), nil
}

// A builder makes the rows of a ring. A row is the members of one partition, by
// number. The number after the last stands where a replica has no member yet; it
// is counted like a member with the goal 0.
type builder struct {
	*topology
	copies  int
	draw    *random
	members []Member
	nobody  int
	goal    []int   // partitions that each member is to keep
	load    []int   // partitions that it keeps so far
	rows    []int16 // Partitions rows of copies
}

func newBuilder(copies int, members []Member) *builder {
	t := newTopology(copies, members)
	return &builder{
		topology: t, copies: copies, draw: newRandom(members), members: members, nobody: len(members),
		goal: append(targets(copies, members, t), 0), load: make([]int, len(members)+1),
	}
}

func (b *builder) row(p int) []int16 { return b.rows[p*b.copies : (p+1)*b.copies : (p+1)*b.copies] }

// put gives the place at slot of a row to member m.
func (b *builder) put(row []int16, slot, m int) {
	b.load[row[slot]]--
	b.load[m]++
	row[slot] = int16(m)
}

// over returns by how much member m has more than its goal.
func (b *builder) over(m int16) int { return b.load[m] - b.goal[m] }

// order returns the partitions in an order drawn anew.
func (b *builder) order() []int {
	order := make([]int, Partitions)
	for p := range order {
		order[p] = p
	}
	shuffle(b.draw, order)
	return order
}

// lead spreads the first places, in proportion to what each member keeps, by
// changing the order within rows. It changes no more than that asks for.
func (b *builder) lead() {
	first := make([]int, len(b.members))
	for p := range Partitions {
		first[b.row(p)[0]]++
	}
	order := b.order() // or neighbouring partitions would get the same first node
	for changed := true; changed; {
		changed = false
		for _, p := range order {
			row := b.row(p)
			for slot := range row {
				a, c := row[0], row[slot]
				// Each change makes the higher of two fractions lower: it ends.
				if compareRatios(first[a], int64(b.load[a]), first[c]+1, int64(b.load[c])) > 0 {
					row[0], row[slot] = c, a
					first[a]--
					first[c]++
					changed = true
				}
			}
		}
	}
}

// verify finds out whether the rows keep to the caps and give every member its goal.
// Data would be lost by a ring that is wrong, so it is worth its milliseconds.
func (b *builder) verify() error {
	load := make([]int, len(b.load))
	for p := range Partitions {
		row := b.row(p)
		for slot, m := range row {
			if int(m) == b.nobody || !b.fits(row, slot, int(m)) {
				return fmt.Errorf("ring: bug: partition %d is on %v", p, row)
			}
			load[m]++
		}
	}
	if !slices.Equal(load, b.goal) {
		return fmt.Errorf("ring: bug: members have %v partitions instead of %v", load, b.goal)
	}
	return nil
}

// ring returns what was built.
func (b *builder) ring() *Ring {
	r := &Ring{copies: b.copies, members: slices.Clip(b.members), table: make([]NodeID, len(b.rows))}
	for i, m := range b.rows {
		r.table[i] = b.members[m].ID
	}
	return r
}
