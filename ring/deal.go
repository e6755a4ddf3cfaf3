package ring

import "math/bits"

// deal makes the rows of a ring that has no earlier one, exactly to the goals
// and caps.
//
// For each partition the members are laid on a line, in an order drawn anew in
// which those of a host and of a zone stay side by side; each is as long as the
// partitions it still lacks. The line is copies times as long as there are
// partitions left, so marks at that distance, from a random start, are as many as
// there are copies. A host or zone that may keep c copies is at most c marks long
// and so gets c at most; one that must be taken is as long as the distance and
// cannot be missed. What remains therefore stays feasible, to the last partition.
//
// (This is systematic sampling. What was measured instead of it stands in the
// package comment.)
func deal(copies int, t *topology, goal []int, draw *random) []int16 {
	lacks := append([]int(nil), goal...)
	rows := make([]int16, 0, Partitions*copies)
	for left := Partitions; left > 0; left-- {
		t.shuffle(draw)
		mark, end := draw.below(left), 0
		for _, zone := range t.tree {
			for _, host := range zone {
				for _, m := range host {
					end += lacks[m]
					if mark < end {
						rows = append(rows, int16(m))
						lacks[m]--
						mark += left
					}
				}
			}
		}
	}
	return rows
}

// shuffle draws a new order of zones, of hosts in them, and of members in these.
func (t *topology) shuffle(draw *random) {
	shuffle(draw, t.tree)
	for _, zone := range t.tree {
		shuffle(draw, zone)
		for _, host := range zone {
			shuffle(draw, host)
		}
	}
}

func shuffle[T any](draw *random, s []T) {
	for i := len(s) - 1; i > 0; i-- {
		j := draw.below(i + 1)
		s[i], s[j] = s[j], s[i]
	}
}

// random is splitmix64: the same numbers on every machine and with every release
// of Go, which a ring must not depend on.
type random uint64

// newRandom returns numbers that depend on the members, so that it is not the
// same partitions that each change touches first.
func newRandom(members []Member) *random {
	var seed uint64
	for _, m := range members {
		seed = mix(seed ^ uint64(m.ID))
		seed = mix(seed ^ uint64(m.Weight))
	}
	return (*random)(&seed)
}

// below returns a number from 0 to n-1; n is small, so that the bias is none to speak of.
func (r *random) below(n int) int {
	*r += 0x9e3779b97f4a7c15
	high, _ := bits.Mul64(mix(uint64(*r)), uint64(n))
	return int(high)
}
