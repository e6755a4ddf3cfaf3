package ring

import (
	"cmp"
	"container/heap"
	"math/bits"
)

// targets returns how many partitions each member is to keep: whole numbers that
// come to Partitions*copies, within what member, host and zone can hold.
//
// It deals out one replica after the other, each to the member that is then the
// least full for its weight (Jefferson's method of apportionment, with caps): no
// rounding leaves a lower fullest member, at most n/(Partitions*copies-n) above
// the best share for n members. And where a weight grows or a member joins, no
// other gains unless a cap makes it, so that rounding moves nothing to and fro.
func targets(copies int, members []Member, t *topology) []int {
	goal := make([]int, len(members))
	hosts, zones := make([]int, len(members)), make([]int, len(members))
	q := &queue{members: members, goal: goal}
	for m := range members {
		q.order = append(q.order, m)
	}
	heap.Init(q)
	for left := Partitions * copies; left > 0; {
		m := q.order[0]
		host, zone := t.host[m], t.zone[m]
		if goal[m] == Partitions || hosts[host] == Partitions*t.hostCap || zones[zone] == Partitions*t.zoneCap {
			heap.Pop(q) // full, and stays so
			continue
		}
		goal[m]++
		hosts[host]++
		zones[zone]++
		left--
		heap.Fix(q, 0)
	}
	return goal
}

// A queue is a heap of members, the one that would be the least full with one
// partition more at its top; among equals the one with the lowest ID.
type queue struct {
	members []Member
	goal    []int
	order   []int
}

func (q *queue) Len() int      { return len(q.order) }
func (q *queue) Swap(i, j int) { q.order[i], q.order[j] = q.order[j], q.order[i] }
func (q *queue) Push(x any)    { q.order = append(q.order, x.(int)) }

func (q *queue) Pop() any {
	last := len(q.order) - 1
	m := q.order[last]
	q.order = q.order[:last]
	return m
}

// Less compares fractions exactly: floating point would make a ring depend on
// the machine that builds it.
func (q *queue) Less(i, j int) bool {
	a, b := q.order[i], q.order[j]
	if c := compareRatios(q.goal[a]+1, q.members[a].Weight, q.goal[b]+1, q.members[b].Weight); c != 0 {
		return c < 0
	}
	return a < b
}

// compareRatios compares a/x with b/y, of positive numbers, as cmp.Compare does.
func compareRatios(a int, x int64, b int, y int64) int {
	highA, lowA := bits.Mul64(uint64(a), uint64(y))
	highB, lowB := bits.Mul64(uint64(b), uint64(x))
	if c := cmp.Compare(highA, highB); c != 0 {
		return c
	}
	return cmp.Compare(lowA, lowB)
}
