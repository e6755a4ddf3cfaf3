package cluster

import (
	"time"

	"torus/ring"
)

// Candidate is a node as the choice of voters sees it.
type Candidate struct {
	ID    ring.NodeID
	Name  string
	Zone  ring.Zone
	Host  string
	Etcd  bool   // has the role etcd
	Peer  string // HOST:PORT at which its member is or would be reached by others
	Alive bool
	Gone  time.Duration // for how long it has not been alive
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
	Why    string      // a sentence, for status and log
}

// Patience says how long the choice of voters waits.
type Patience struct {
	Gone    time.Duration // until a voter that is not alive is replaced, if it can be. 0: 10 min
	Started time.Duration // until a member that was added and has not started is removed. 0: 30 s
}

// NextStep decides the next single change of etcd's members.
func NextStep(nodes []Candidate, members []Seated, p Patience) Step { return Step{} }
