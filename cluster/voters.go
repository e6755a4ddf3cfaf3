package cluster

import (
	"cmp"
	"fmt"
	"time"

	"torus/ring"
)

// Candidate is a node as the choice of voters sees it.
type Candidate struct {
	ID    ring.NodeID
	Name  string
	Zone  ring.Zone
	Host  string
	Etcd  bool // has the role etcd
	Alive bool
	Gone  time.Duration // for how long it has not been alive

	Peer   string // HOST:PORT at which its member is or would be reached by others
	Client string // the same for clients
}

// Seated is an etcd member as the choice of voters sees it.
type Seated struct {
	Member
	Started bool          // it has run; a learner that has not is only a place kept free
	Waiting time.Duration // for how long it has been seen not started
}

// StepKind is what a Step does.
type StepKind uint8

const (
	// StepNone: the members are as they should be, or as good as they can be now.
	StepNone StepKind = iota
	// StepWait: the next step waits for something; Why says what.
	StepWait
	// StepAdd adds node Node as a learner.
	StepAdd
	// StepPromote gives the learner Member, of node Node, its vote.
	StepPromote
	// StepRemove removes Member.
	StepRemove
)

// Step is the next change of etcd's members.
type Step struct {
	Kind   StepKind
	Node   ring.NodeID // 0: a member whose node is not known
	Peer   string      // HOST:PORT of the member
	Member MemberID    // 0 with StepAdd
	Why    string      // a sentence, for status and log; empty with StepNone if all is as it should be
}

// Patience says how long the choice of voters waits.
type Patience struct {
	Gone    time.Duration // until a voter that is not alive is replaced, if it can be. 0: 10 min
	Started time.Duration // until a member that was added and has not started is removed. 0: 30 s
}

// orDefault fills in what was left out.
func (p Patience) orDefault() Patience {
	return Patience{Gone: cmp.Or(p.Gone, 10*time.Minute), Started: cmp.Or(p.Started, 30*time.Second)}
}

// NextStep decides the next single change of etcd's members. It is asked again after
// each, with what there is then. The rules:
//
//   - One voter with one or two nodes, three from three, five from seven on, all nodes
//     counted; never more than there are nodes with the role etcd to vote, nor an even
//     number, which tolerates no more failures than the odd one below it and asks for
//     one more answer. On the way from one odd number to the next, learners come first,
//     and are promoted when all have started: an even number lasts a moment.
//   - With one voter, one more node has the records, as a learner. Others run no etcd.
//   - A voter keeps its vote. It loses it when its node's record or role is gone; when it
//     has not been alive for p.Gone and another can take its place; when there are
//     too many; or when another in its place spreads the voters better over zones, then
//     hosts. Dead voters are removed first, since etcd adds nobody while one of three is
//     down; living ones last, when the next has its vote.
//   - Nothing is removed that leaves the living voters without a majority. The only
//     voter never is.
//   - A dead node is not added, and the number of voters shrinks only with the number of
//     nodes, not when nodes die.
func NextStep(nodes []Candidate, members []Seated, p Patience) Step {
	if len(nodes) == 0 {
		return Step{} // just founded
	}
	b := newBallot(nodes, members, p.orDefault())
	b.choose()
	for _, rule := range []func() Step{b.clearPlaces, b.removeDead, b.add, b.promote, b.removeSurplus} {
		if s := rule(); s.Kind != StepNone {
			return s
		}
	}
	return Step{Why: b.lacking()}
}

// votersFor returns how many voters a cluster of so many nodes has.
func votersFor(nodes int) int {
	switch {
	case nodes >= 7:
		return 5
	case nodes >= 3:
		return 3
	}
	return 1
}

// odd returns the greatest odd number up to n, at least 1.
func odd(n int) int { return max(1, n-1+n%2) }

// clearPlaces removes members that were added and never started: places kept for a
// node that is not wanted any more, or that does not come. A node that comes later is
// added again.
func (b *ballot) clearPlaces() Step {
	for _, s := range b.seats {
		if s.Started || !s.Learner {
			continue
		}
		switch {
		case !s.wanted():
			return s.step(StepRemove, "%s is no longer wanted as an etcd member, and has not started one", s.name())
		case s.Waiting >= b.Started:
			return s.step(StepRemove, "%s was added to etcd's members %v ago and has not started", s.name(), s.Waiting.Round(time.Second))
		}
	}
	return Step{}
}

// removeDead removes voters and learners that are not alive and not wanted.
func (b *ballot) removeDead() Step {
	for _, s := range b.seats {
		if s.alive() || s.wanted() || !b.removable(s) {
			continue
		}
		if s.node == nil {
			return s.step(StepRemove, "%s was removed from the cluster, and is still an etcd member", s.name())
		}
		return s.step(StepRemove, "%s has not been alive for %v, and is not needed as an etcd member", s.name(), s.node.Gone.Round(time.Second))
	}
	return Step{}
}

// add adds the first node that is wanted and has no member.
func (b *ballot) add() Step {
	for _, n := range b.nodes {
		if !n.wanted() || n.seat != nil || !n.Alive {
			continue
		}
		why := "node %s becomes an etcd member, and is to get a vote"
		if n.learner {
			why = "node %s becomes an etcd member without a vote: it has the records too"
		}
		return Step{Kind: StepAdd, Node: n.ID, Peer: n.Peer, Why: fmt.Sprintf(why, n.Name)}
	}
	return Step{}
}

// promote gives learners their votes, once all that are to get one have started and live.
func (b *ballot) promote() Step {
	var first *seat
	for _, n := range b.nodes {
		switch {
		case !n.vote || n.votes():
		case !n.seat.Started: // it has a seat: add comes before
			return n.seat.step(StepWait, "waiting for node %s to start its etcd member", n.Name)
		case !n.Alive:
			return n.seat.step(StepWait, "waiting for node %s, which is to get a vote in etcd and is not alive", n.Name)
		case first == nil:
			first = n.seat
		}
	}
	if b.chosen() < b.target {
		return Step{Kind: StepWait, Why: b.lacking()}
	}
	if first == nil {
		return Step{}
	}
	return first.step(StepPromote, "%s gets a vote in etcd", first.name())
}

// removeSurplus removes living members that are not wanted. All that are to have a vote have it.
func (b *ballot) removeSurplus() Step {
	for _, s := range b.seats {
		if s.wanted() || !b.removable(s) {
			continue
		}
		switch {
		case s.node == nil:
			return s.step(StepRemove, "%s was removed from the cluster, and is still an etcd member", s.name())
		case s.Learner:
			return s.step(StepRemove, "%s is no longer needed as an etcd member", s.name())
		}
		return s.step(StepRemove, "%s gives up its vote in etcd: %d are enough, and others are better spread or stay", s.name(), b.target)
	}
	return Step{}
}

// lacking says what keeps the voters from being as many as they should be; empty if nothing does.
func (b *ballot) lacking() string {
	want := votersFor(len(b.nodes))
	if min(b.target, b.chosen()) >= want {
		return ""
	}
	return fmt.Sprintf("only %d of %d voters of etcd can be chosen: more living nodes with the role etcd are needed", b.chosen(), want)
}
