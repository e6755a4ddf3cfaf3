package cluster

import (
	"cmp"
	"fmt"
	"slices"

	"torus/ring"
)

// ballot is the choice of voters in the making.
type ballot struct {
	Patience
	nodes  []*voter // in the order of IDs
	seats  []*seat  // in the order of IDs
	target int      // how many voters there are to be
}

// voter is a node with what was chosen for it.
type voter struct {
	Candidate
	seat    *seat // nil: no member of etcd
	vote    bool  // is to have a vote
	learner bool  // is to be a member without one
}

// seat is a member of etcd with the node it belongs to.
type seat struct {
	Seated
	node *voter // nil: there is no record of it
}

func newBallot(nodes []Candidate, members []Seated, p Patience) *ballot {
	b := &ballot{Patience: p}
	for _, n := range nodes {
		b.nodes = append(b.nodes, &voter{Candidate: n})
	}
	slices.SortFunc(b.nodes, func(x, y *voter) int { return cmp.Compare(x.ID, y.ID) })
	for _, m := range members {
		b.seats = append(b.seats, &seat{Seated: m})
	}
	slices.SortFunc(b.seats, func(x, y *seat) int { return cmp.Compare(x.ID, y.ID) })
	for _, s := range b.seats {
		for _, n := range b.nodes {
			if s.of(n.Candidate) && n.seat == nil {
				s.node, n.seat = n, s
				break
			}
		}
	}
	return b
}

// of reports whether the member is the node's. One that has not made itself known is
// told by the address at which it was added.
func (s Seated) of(n Candidate) bool {
	if s.Node != 0 {
		return s.Node == n.ID
	}
	return s.Peer == n.Peer
}

func (n *voter) wanted() bool { return n.vote || n.learner }
func (s *seat) alive() bool   { return s.node != nil && s.node.Alive }

// wanted reports whether the member may stay. A voter that is to be a learner may not: etcd
// takes no vote away, so it is removed and added again.
func (s *seat) wanted() bool {
	return s.node != nil && (s.node.vote || s.node.learner && s.Learner)
}

func (s *seat) name() string {
	if s.node != nil {
		return "node " + s.node.Name
	}
	return fmt.Sprintf("node %v at %s", s.Node, s.Peer)
}

func (s *seat) step(kind StepKind, format string, args ...any) Step {
	return Step{Kind: kind, Node: s.nodeID(), Peer: s.Peer, Member: s.ID, Why: fmt.Sprintf(format, args...)}
}

func (s *seat) nodeID() ring.NodeID {
	if s.node != nil {
		return s.node.ID
	}
	return s.Node
}

// choose decides who is to have a vote, and who is to be a learner.
func (b *ballot) choose() {
	b.target = b.count()
	for _, n := range b.nodes {
		n.vote = n.votes() && !b.replaceable(n)
	}
	for b.chosen() > b.target {
		b.dropOne()
	}
	for b.chosen() < b.target && b.takeOne() {
	}
	b.spread()
	if b.target == 1 {
		b.chooseLearner()
	}
}

// votes reports whether the node has a vote and may keep it.
func (n *voter) votes() bool { return n.Etcd && n.seat != nil && !n.seat.Learner }

// count returns how many voters there are to be.
func (b *ballot) count() int {
	want := votersFor(len(b.nodes))
	voting, alive, soon := 0, 0, 0
	for _, n := range b.nodes {
		switch {
		case n.votes():
			voting++
		case b.eligible(n):
			alive++
		case n.Etcd && n.Gone < b.Gone && !b.taken(n):
			soon++
		}
	}
	if voting%2 == 0 { // rather wait for one that may come back than take a vote away
		alive += soon
	}
	return min(want, odd(voting+alive))
}

// taken reports whether the address of the node's member is that of another's.
func (b *ballot) taken(n *voter) bool {
	return slices.ContainsFunc(b.seats, func(s *seat) bool { return s.Peer == n.Peer && s.node != n })
}

// replaceable reports whether a voter has been gone for too long, and another can
// take its place: one that is not needed for a place that is empty already, or for
// a voter of a lower ID.
func (b *ballot) replaceable(n *voter) bool {
	if n.Alive || n.Gone < b.Gone {
		return false
	}
	spare, voting := 0, 0
	for _, other := range b.nodes {
		switch {
		case other.Alive && b.eligible(other):
			spare++
		case other.votes():
			voting++
			if !other.Alive && other.Gone >= b.Gone && other.ID < n.ID {
				spare--
			}
		}
	}
	return spare > max(0, b.target-voting)
}

// eligible reports whether the node, that has no vote, can get one: it lives, or is a member
// already and may be back soon.
func (b *ballot) eligible(n *voter) bool {
	return n.Etcd && !n.votes() && !b.taken(n) && (n.Alive || n.seat != nil && n.Gone < b.Gone)
}

func (b *ballot) chosen() (count int) {
	for _, n := range b.nodes {
		if n.vote {
			count++
		}
	}
	return count
}

// dropOne takes a chosen vote away: from a dead node, or else where the rest is spread
// best; among equals from the highest ID.
func (b *ballot) dropOne() {
	b.best(func(n *voter) bool { return n.vote }, func(n *voter) []int {
		n.vote = false
		defer func() { n.vote = true }()
		return append([]int{avoid(n.Alive)}, b.crowding()...)
	}, true).vote = false
}

// takeOne chooses the node with which the voters are spread best; among equals one that is
// alive, then one that is a learner already. False if there is none.
func (b *ballot) takeOne() bool {
	n := b.best(func(n *voter) bool { return !n.vote && b.eligible(n) }, func(n *voter) []int {
		n.vote = true
		defer func() { n.vote = false }()
		return append(b.crowding(), avoid(!n.Alive), avoid(n.seat == nil))
	}, false)
	if n == nil {
		return false
	}
	n.vote = true
	return true
}

// spread exchanges one voter for a node with which the voters are spread better, if
// all are alive: what waits or is mended already comes first.
func (b *ballot) spread() {
	for _, n := range b.nodes {
		if n.vote && !n.votes() || n.votes() && !(n.vote && n.Alive) {
			return
		}
	}
	best := b.crowding()
	var from, to *voter
	for _, out := range b.nodes {
		for _, in := range b.nodes {
			if !out.vote || in.vote || !in.Alive || !b.eligible(in) {
				continue
			}
			out.vote, in.vote = false, true
			if now := b.crowding(); slices.Compare(now, best) < 0 {
				best, from, to = now, out, in
			}
			out.vote, in.vote = true, false
		}
	}
	if from != nil {
		from.vote, to.vote = false, true
	}
}

// chooseLearner chooses the one node that has the records beside the only voter: the
// one that has them already, unless it has been gone for too long, or the best spread.
func (b *ballot) chooseLearner() {
	n := b.best(func(n *voter) bool {
		return !n.vote && (b.eligible(n) || n.votes() && n.Alive)
	}, func(n *voter) []int {
		n.vote = true
		defer func() { n.vote = false }()
		return append([]int{avoid(n.seat == nil || !n.seat.Learner)}, b.crowding()...)
	}, false)
	if n != nil {
		n.learner = true
	}
}

// best returns the node with the lowest cost among those that may; of equals the one with
// the lowest ID, or the last.
func (b *ballot) best(may func(*voter) bool, cost func(*voter) []int, last bool) *voter {
	var best *voter
	var least []int
	for _, n := range b.nodes {
		if !may(n) {
			continue
		}
		c := cost(n)
		if d := slices.Compare(c, least); best == nil || d < 0 || d == 0 && last {
			best, least = n, c
		}
	}
	return best
}

// crowding measures how closely the voters stand together: for zones, then for
// hosts, the sum of the squares of how many share one. Less is better.
func (b *ballot) crowding() []int {
	zones, hosts := map[ring.Zone]int{}, map[string]int{}
	for _, n := range b.nodes {
		if n.vote {
			zones[n.Zone]++
			hosts[n.Host]++
		}
	}
	return []int{squares(zones), squares(hosts)}
}

func squares[K comparable](counts map[K]int) (sum int) {
	for _, n := range counts {
		sum += n * n
	}
	return sum
}

// fewer is a cost of 1 for what is better avoided.
func avoid(is bool) int {
	if is {
		return 1
	}
	return 0
}

// removable reports whether the voters that live have a majority without this one.
func (b *ballot) removable(gone *seat) bool {
	if gone.Learner {
		return true
	}
	voters, alive := 0, 0
	for _, s := range b.seats {
		if s.Learner || s == gone {
			continue
		}
		voters++
		if s.alive() {
			alive++
		}
	}
	return alive > voters/2
}
