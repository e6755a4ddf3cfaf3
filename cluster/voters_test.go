package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"torus/ring"
)

// candidates reads nodes: a digit, a zone, then marks: ~ without the role etcd, ! not alive
// for a minute, !! for an hour, @ on host h like all others so marked,
// =N at the address of node N.
func candidates(text string) []Candidate {
	var all []Candidate
	for _, f := range strings.Fields(text) {
		id := ring.NodeID(f[0] - '0')
		c := Candidate{ID: id, Name: "n" + f[:1], Zone: ring.Zone(f[1:2]), Host: "h" + f[:1], Etcd: true, Alive: true,
			Peer: "10.0.0." + f[:1] + ":7483", Client: "10.0.0." + f[:1] + ":7482"}
		if strings.Contains(f, "~") {
			c.Etcd = false
		}
		if strings.Contains(f, "@") {
			c.Host = "h"
		}
		if dead := strings.Count(f, "!"); dead > 0 {
			c.Alive, c.Gone = false, []time.Duration{0, time.Minute, time.Hour}[dead]
		}
		if _, other, found := strings.Cut(f, "="); found {
			c.Peer = "10.0.0." + other + ":7483"
		}
		all = append(all, c)
	}
	return all
}

// seated reads members: a digit, then marks: - a learner, ? not started, ?? for a minute.
func seated(text string) []Seated {
	var all []Seated
	for _, f := range strings.Fields(text) {
		id := ring.NodeID(f[0] - '0')
		s := Seated{Member: Member{ID: MemberID(id) + 100, Node: id, Peer: "10.0.0." + f[:1] + ":7483",
			Learner: strings.Contains(f, "-")}, Started: true}
		if unstarted := strings.Count(f, "?"); unstarted > 0 {
			s.Node, s.Started = 0, false
			s.Waiting = []time.Duration{0, time.Second, time.Minute}[unstarted]
		}
		all = append(all, s)
	}
	return all
}

var stepWords = map[StepKind]string{StepNone: "none", StepWait: "wait", StepAdd: "add", StepPromote: "promote", StepRemove: "remove"}

func (s Step) text() string {
	if s.Kind == StepNone || s.Node == 0 {
		return stepWords[s.Kind]
	}
	return fmt.Sprintf("%s %d", stepWords[s.Kind], s.Node)
}

func TestNextStep(t *testing.T) {
	for _, c := range []struct{ why, nodes, members, want string }{
		{"founded, and not registered yet", "", "1", "none"},
		{"alone", "1a", "1", "none"},
		{"the second is a learner", "1a 2a", "1", "add 2"},
		{"which has not started", "1a 2a", "1 2-?", "none"},
		{"and stays without a vote", "1a 2a", "1 2-", "none"},
		{"without the role etcd it is none", "1a 2a~", "1", "none"},
		{"the third makes three voters", "1a 2a 3a", "1 2-", "add 3"},
		{"two that come at once: one after the other", "1a 2a 3a", "1", "add 2"},
		{"and the next", "1a 2a 3a", "1 2-?", "add 3"},
		{"nobody is promoted before both can be", "1a 2a 3a", "1 2- 3-?", "wait 3"},
		{"then the first", "1a 2a 3a", "1 2- 3-", "promote 2"},
		{"then the second", "1a 2a 3a", "1 2 3-", "promote 3"},
		{"three", "1a 2a 3a", "1 2 3", "none"},
		{"a learner that died before its vote is waited for", "1a 2a 3a!", "1 2- 3-", "wait 3"},
		{"but not for ever: one voter, one learner", "1a 2a 3a!!", "1 2- 3-", "remove 3"},
		{"with two votes the third may come back", "1a 2a 3a!", "1 2", "wait"},
		{"or not: two tolerate less than one", "1a 2a 3a!!", "1 2", "remove 2"},
		{"three nodes, two with the role: one voter", "1a 2a 3a~", "1 2-", "none"},
		{"three nodes, one dead: it is not added", "1a 2a 3a!", "1 2-", "none"},
		{"a witness votes like any other", "1a 2b 3c", "1 2- 3-", "promote 2"},
		{"four and five nodes have three voters", "1a 2a 3a 4a 5a", "1 2 3", "none"},
		{"six too", "1a 2a 3a 4a 5a 6a", "1 2 3", "none"},
		{"seven have five", "1a 2a 3a 4a 5a 6a 7a", "1 2 3", "add 4"},
		{"seven have five", "1a 2a 3a 4a 5a 6a 7a", "1 2 3 4-", "add 5"},
		{"seven have five", "1a 2a 3a 4a 5a 6a 7a", "1 2 3 4- 5-", "promote 4"},
		{"seven with four that may vote have three", "1a 2a 3a 4a 5a~ 6a~ 7a~", "1 2 3", "none"},
		{"seven with four that live have three", "1a 2a 3a 4a 5a! 6a! 7a!", "1 2 3", "none"},
		{"six again: three", "1a 2a 3a 4a 5a 6a", "1 2 3 4 5", "remove 4"},
		{"and one more", "1a 2a 3a 4a 5a 6a", "1 2 3 5", "remove 5"},
		{"the dead one first", "1a 2a! 3a 4a 5a 6a", "1 2 3 4 5", "remove 2"},

		{"a dead voter is waited for", "1a 2a 3a! 4a", "1 2 3", "none"},
		{"then removed", "1a 2a 3a!! 4a", "1 2 3", "remove 3"},
		{"and replaced", "1a 2a 3a!! 4a", "1 2", "add 4"},
		{"and replaced", "1a 2a 3a!! 4a", "1 2 4-", "promote 4"},
		{"nobody can take its place", "1a 2a 3a!!", "1 2 3", "none"},
		{"nor one that is dead itself", "1a 2a 3a!! 4a!", "1 2 3", "none"},
		{"two dead, no majority: nothing can be done", "1a 2a!! 3a!! 4a 5a", "1 2 3", "add 4"},
		{"two dead of five, one spare: one is replaced", "1a 2a 3a 4a!! 5a!! 6a 7a!!", "1 2 3 4 5", "remove 4"},

		{"the other is kept: nobody is left for it", "1a 2a 3a 4a!! 5a!! 6a 7a!!", "1 2 3 5", "add 6"},
		{"not by one at the address of another's member", "1a 2a! 4a=2", "1 2-", "none"},

		{"removed: its member goes", "1a 2a", "1 2 3", "remove 3"},
		{"then one vote is enough", "1a 2a", "1 2", "remove 2"},
		{"and the other becomes a learner again", "1a 2a", "1", "add 2"},
		{"removed, with a substitute", "1a 2a 4a", "1 2 3", "remove 3"},
		{"the voter of two is removed: the learner gets the vote first", "2a", "1 2-", "promote 2"},
		{"then it goes", "2a", "1 2", "remove 1"},
		{"the role was taken away", "1a 2a 3a~ 4a", "1 2 3", "add 4"},
		{"the role was taken away: when the next has its vote", "1a 2a 3a~ 4a", "1 2 3 4", "remove 3"},
		{"the only voter never goes", "2a!", "1", "wait"},

		{"added and never started", "1a 2a", "1 2-??", "remove 2"},
		{"added and not wanted any more", "1a 2a~", "1 2-?", "remove 2"},
		{"a place of nobody", "1a", "1 9-?", "remove"},
		{"a learner too many", "1a 2a 3a 4a", "1 2 3 4-", "remove 4"},

		{"a learner whose zone is taken is no worse than none", "1a 2a 3b", "1 2-", "add 3"},
		{"zones: the other zone gets the vote", "1a 2a 3a 4b", "1 2 3", "add 4"},
		{"zones: and then one of the first gives up its", "1a 2a 3a 4b", "1 2 3 4", "remove 3"},
		{"zones: spread already", "1a 2b 3c 4d", "1 2 3", "none"},
		{"zones: 3 and 2 of five is better than 4 and 1", "1a 2a 3a 4a 5b 6b 7b", "1 2 3 4 5", "add 6"},
		{"zones: not while a voter is dead", "1a 2a 3a! 4b", "1 2 3", "none"},
		{"hosts: another host is better", "1a@ 2a@ 3a@ 4a", "1 2 3", "add 4"},
		{"hosts: a zone of its own counts more", "1a@ 2b@ 3c@ 4a", "1 2 3", "add 4"},
	} {
		t.Run(c.why, func(t *testing.T) {
			got := NextStep(candidates(c.nodes), seated(c.members), Patience{})
			if got.text() != c.want {
				t.Errorf("nodes %s, members %s: %s (%s), want %s", c.nodes, c.members, got.text(), got.Why, c.want)
			}
			if got.Kind != StepNone && got.Why == "" {
				t.Errorf("%s without a reason", got.text())
			}
		})
	}
}

// What status says.
func TestNextStepSays(t *testing.T) {
	for _, c := range []struct{ nodes, members, want string }{
		{"1a", "1", ""},
		{"1a 2a", "1", "node n2 becomes an etcd member without a vote: it has the records too"},
		{"1a 2a 3a", "1 2-", "node n3 becomes an etcd member, and is to get a vote"},
		{"1a 2a 3a", "1 2- 3-?", "waiting for node n3 to start its etcd member"},
		{"1a 2a 3a!", "1 2- 3-", "waiting for node n3, which is to get a vote in etcd and is not alive"},
		{"1a 2a 3a", "1 2 3-", "node n3 gets a vote in etcd"},
		{"1a 2a 3a!", "1 2", "only 2 of 3 voters of etcd can be chosen: more living nodes with the role etcd are needed"},
		{"1a 2a 3a~", "1 2-", "only 1 of 3 voters of etcd can be chosen: more living nodes with the role etcd are needed"},
		{"1a 2a 3a!! 4a", "1 2 3", "node n3 has not been alive for 1h0m0s, and is not needed as an etcd member"},
		{"1a 2a", "1 2 3", "node 0000000000000003 at 10.0.0.3:7483 was removed from the cluster, and is still an etcd member"},
		{"1a 2a", "1 2-??", "node n2 was added to etcd's members 1m0s ago and has not started"},
		{"1a 2a 3a 4b", "1 2 3 4", "node n3 gives up its vote in etcd: 3 are enough, and others are better spread or stay"},
		{"1a 2a 3a 4a", "1 2 3 4-", "node n4 is no longer needed as an etcd member"},
	} {
		if got := NextStep(candidates(c.nodes), seated(c.members), Patience{}); got.Why != c.want {
			t.Errorf("nodes %s, members %s: %q, want %q", c.nodes, c.members, got.Why, c.want)
		}
	}
}

// Random clusters, with nodes that come, die, return and are removed: each step leaves
// the living voters their majority, and when all live the steps end with the voters that
// the rules ask for, spread as well as could be.
func TestNextStepSettles(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range 2000 {
		w := &electorate{t: t, random: random, members: seated("1")}
		w.nodes = candidates("1a")
		for range random.IntN(12) {
			w.happen()
			w.step()
		}
		for i := range w.nodes {
			w.nodes[i].Alive, w.nodes[i].Gone = true, 0
		}
		steps := 0
		for w.step() {
			if steps++; steps > 100 {
				t.Fatalf("round %d: no end: %v", round, w)
			}
		}
		w.check()
	}
}

// electorate is a cluster on which steps are carried out.
type electorate struct {
	t       *testing.T
	random  *rand.Rand
	nodes   []Candidate
	members []Seated
	made    int
}

func (w *electorate) String() string {
	var b strings.Builder
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "%d%s%s(etcd %v, alive %v) ", n.ID, n.Zone, n.Host, n.Etcd, n.Alive)
	}
	for _, m := range w.members {
		fmt.Fprintf(&b, "[%d learner %v started %v] ", m.Node, m.Learner, m.Started)
	}
	return b.String()
}

// happen lets something happen to a node.
func (w *electorate) happen() {
	i := w.random.IntN(len(w.nodes))
	switch w.random.IntN(5) {
	case 0, 1, 2:
		w.made++
		id := ring.NodeID(1 + w.made)
		c := candidates("1" + string("abc"[w.random.IntN(3)]))[0]
		c.ID, c.Name, c.Peer = id, fmt.Sprint("n", id), fmt.Sprint("peer", id)
		c.Host = fmt.Sprint("h", w.random.IntN(6))
		c.Etcd = w.random.IntN(5) > 0
		w.nodes = append(w.nodes, c)
	case 3:
		w.nodes[i].Alive = !w.nodes[i].Alive
		w.nodes[i].Gone = []time.Duration{time.Minute, time.Hour}[w.random.IntN(2)]
		if !w.quorum() {
			w.nodes[i].Alive = true
		}
	case 4:
		if removed := w.nodes[i]; len(w.nodes) > 1 {
			w.nodes = slices.Delete(slices.Clone(w.nodes), i, i+1)
			if !w.quorum() {
				w.nodes = append(w.nodes, removed)
			}
		}
	}
}

func (w *electorate) alive(id ring.NodeID) bool {
	return slices.ContainsFunc(w.nodes, func(n Candidate) bool { return n.ID == id && n.Alive })
}

// quorum reports whether the living voters are a majority.
func (w *electorate) quorum() bool {
	voters, alive := 0, 0
	for _, m := range w.members {
		if !m.Learner {
			voters++
			if w.alive(m.Node) {
				alive++
			}
		}
	}
	return alive > voters/2
}

// step carries out one step; false if there is none.
func (w *electorate) step() bool {
	before := w.String()
	hadQuorum := w.quorum()
	s := NextStep(w.nodes, w.members, Patience{})
	i := slices.IndexFunc(w.members, func(m Seated) bool { return m.ID == s.Member })
	switch s.Kind {
	case StepNone, StepWait:
		return false
	case StepAdd:
		w.made++
		w.members = append(w.members, Seated{Member: Member{ID: MemberID(1000 + w.made), Node: s.Node, Peer: s.Peer, Learner: true}, Started: true})
	case StepPromote:
		w.members[i].Learner = false
	case StepRemove:
		w.members = slices.Delete(w.members, i, i+1)
	}
	if hadQuorum && !w.quorum() {
		w.t.Fatalf("%s (%s) of %s: no majority left: %v", s.text(), s.Why, before, w)
	}
	return true
}

// check compares what all steps led to with the rules, counted anew.
func (w *electorate) check() {
	w.t.Helper()
	eligible := 0
	zones := map[ring.Zone]bool{}
	for _, n := range w.nodes {
		if n.Etcd {
			eligible++
			zones[n.Zone] = true
		}
	}
	if eligible == 0 {
		return // the last voter stays, whatever it is
	}
	want := 1
	if len(w.nodes) >= 3 && eligible >= 3 {
		want = 3
	}
	if len(w.nodes) >= 7 && eligible >= 5 {
		want = 5
	}
	voters, learners, in := 0, 0, map[ring.Zone]bool{}
	for _, m := range w.members {
		i := slices.IndexFunc(w.nodes, func(n Candidate) bool { return n.ID == m.Node })
		switch {
		case i < 0 || !w.nodes[i].Etcd:
			w.t.Fatalf("member of node %d, which is none or may not vote: %v", m.Node, w)
		case m.Learner:
			learners++
		default:
			voters++
			in[w.nodes[i].Zone] = true
		}
	}
	wantLearners := 0
	if want == 1 && eligible > 1 {
		wantLearners = 1
	}
	if voters != want || learners != wantLearners || len(in) < min(want, len(zones)) {
		w.t.Fatalf("%d voters in %d zones and %d learners, want %d in %d and %d: %v", voters, len(in), learners, want, min(want, len(zones)), wantLearners, w)
	}
}
