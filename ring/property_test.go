package ring

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// A testCluster is a cluster drawn at random, and its source of more.
type testCluster struct {
	seed    uint64
	rand    *rand.Rand
	copies  int
	zones   int
	members []Member // in order of ID
}

// randomCluster draws a cluster of up to most nodes: zones of any size, hosts with
// up to four nodes, weights up to ten times each other.
func randomCluster(seed uint64, least, most int) *testCluster {
	r := rand.New(rand.NewPCG(seed, 0))
	c := &testCluster{seed: seed, rand: r, copies: 1 + r.IntN(4), zones: 1 + r.IntN(8)}
	if r.IntN(3) == 0 {
		c.zones = 1
	}
	least = max(least, c.copies)
	for n := least + r.IntN(most-least+1); len(c.members) < n; {
		host := c.newMember()
		for range min(max(1, r.IntN(8)-3), n-len(c.members)) {
			m := c.newMember()
			m.Host, m.Zone = host.Host, host.Zone
			c.members = append(c.members, m)
		}
	}
	c.sort()
	return c
}

func (c *testCluster) sort() {
	slices.SortFunc(c.members, func(a, b Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
}

func (c *testCluster) newMember() Member {
	return Member{
		ID: NodeID(c.rand.Uint64() | 1), Weight: (1 + c.rand.Int64N(10)) << 40,
		Zone: Zone(fmt.Sprint("zone", c.rand.IntN(c.zones))), Host: fmt.Sprintf("host%x", c.rand.Uint64()),
	}
}

// change lets a node join or leave, or gives one another weight, and says so.
func (c *testCluster) change() string {
	c.members = slices.Clone(c.members)
	i := c.rand.IntN(len(c.members))
	switch what := c.rand.IntN(3); {
	case what == 0 && len(c.members) > c.copies:
		m := c.members[i]
		c.members = slices.Delete(c.members, i, i+1)
		return fmt.Sprint("without ", m)
	case what == 1:
		c.members[i].Weight = (c.members[i].Weight>>40%10 + 1 + c.rand.Int64N(9)) % 10 << 40
		c.members[i].Weight = max(c.members[i].Weight, 1<<40)
		return fmt.Sprint("another weight of ", c.members[i])
	default:
		m := c.newMember()
		if c.rand.IntN(2) == 0 { // on a host that is there
			m.Host, m.Zone = c.members[i].Host, c.members[i].Zone
		}
		c.members = append(c.members, m)
		c.sort()
		return fmt.Sprint("with ", m)
	}
}

func (c *testCluster) String() string {
	return fmt.Sprintf("seed %d, %d nodes, %d copies", c.seed, len(c.members), c.copies)
}

// ring builds and checks a ring: that it keeps the rules, and is balanced.
func (c *testCluster) ring(t *testing.T, earlier *Ring) *Ring {
	t.Helper()
	r, err := New(c.copies, c.members, earlier)
	if err != nil {
		t.Fatalf("%v: %v", c, err)
	}
	c.checkRules(t, r)
	c.checkBalance(t, r)
	return r
}

func (c *testCluster) checkRules(t *testing.T, r *Ring) {
	t.Helper()
	members, hosts, zones := map[NodeID]Member{}, map[string]bool{}, map[Zone]bool{}
	for _, m := range c.members {
		members[m.ID] = m
		hosts[m.Host], zones[m.Zone] = true, true
	}
	for p := range Partitions {
		var row []Member
		for _, id := range r.row(p) {
			row = append(row, members[id])
			delete(members, id) // so that it cannot be there twice
		}
		for _, m := range row {
			members[m.ID] = m
		}
		onHost, inZone := crowding(row)
		switch {
		case len(row) != c.copies || slices.ContainsFunc(row, func(m Member) bool { return m.ID == 0 }):
			t.Fatalf("%v: partition %d is on %v", c, p, r.row(p))
		case len(hosts) >= c.copies && onHost > 1, len(zones) >= c.copies && inZone > 1:
			t.Fatalf("%v: %d zones, %d hosts: partition %d is on %v", c, len(zones), len(hosts), p, row)
		}
	}
}

func (c *testCluster) checkBalance(t *testing.T, r *Ring) {
	t.Helper()
	bound := 1.05
	if len(c.members) < 10 {
		bound = 1.10
	}
	for _, s := range r.Shares() {
		if s.Data > bound*s.Best {
			t.Fatalf("%v: node %s has %.5f of the data, at best %.5f", c, s.Member.ID, s.Data, s.Best)
		}
		// A reader that asks the first node loads it as its data does.
		if first := float64(s.Partitions) / float64(c.copies); float64(s.First) > 1.2*first+1 && len(c.members) > 2*c.copies {
			t.Fatalf("%v: node %s is first of %d of %d partitions", c, s.Member.ID, s.First, s.Partitions)
		}
	}
}

// leastByShares is a bound below what must move: what the best shares grow by.
func leastByShares(from, to *Ring) float64 {
	had := map[NodeID]float64{}
	for _, s := range from.Shares() {
		had[s.Member.ID] = s.Best
	}
	least := 0.0
	for _, s := range to.Shares() {
		least += max(0, s.Best-had[s.Member.ID])
	}
	return least / float64(to.copies)
}

// seeds returns how many random clusters a test draws.
func seeds(short, long uint64) uint64 {
	if os.Getenv("TORUS_LONG_TESTS") != "" {
		return long
	}
	return short
}

// checkMoved compares what moved with the least possible. Mostly that is what the
// best shares grow by; but where a host or zone is or comes to be at its cap, rows
// must change for others to fit, and the exact least is looked for.
func (c *testCluster) checkMoved(t *testing.T, from, to *Ring, change string) {
	t.Helper()
	moved := Moved(from, to) * float64(len(to.table))
	if moved <= 1.15*leastByShares(from, to)*float64(len(to.table))+1 {
		return
	}
	if least := leastByCycles(from, to, 100); moved > 1.15*float64(least)+1 {
		t.Fatalf("%v, %s: %.0f replicas moved, the least is %d (0: by more than 100 less)", c, change, moved, least)
	}
}

func TestRandomClusters(t *testing.T) {
	for seed := range seeds(10, 60) {
		c := randomCluster(seed, 3, 200)
		from := c.ring(t, nil)
		for range 3 { // what one change leaves behind, the next finds
			change := c.change()
			to := c.ring(t, from)
			c.checkMoved(t, from, to, change)
			from = to
		}
	}
}

func TestSmallClustersMoveTheLeast(t *testing.T) {
	for seed := range seeds(16, 120) {
		c := randomCluster(seed, 3, 9)
		from := c.ring(t, nil)
		change := c.change()
		to := c.ring(t, from)
		least := oracleLeast(from, to)
		if moved := Moved(from, to) * float64(len(to.table)); moved > 1.05*float64(least)+1 {
			t.Fatalf("%v, %s: %.0f replicas moved, the least is %d", c, change, moved, least)
		}
		if cycles := leastByCycles(from, to, 5000); cycles != least {
			t.Fatalf("%v, %s: the least is %d, by cycles %d", c, change, least, cycles)
		}
	}
}

// Whatever the change, rules and balance hold: zones, hosts, copies, and many nodes at once.
func TestAnyChangeKeepsTheRules(t *testing.T) {
	for seed := range seeds(12, 60) {
		c := randomCluster(seed, 3, 60)
		r := c.ring(t, nil)
		for range 3 {
			for range c.rand.IntN(5) {
				c.change()
			}
			c.copies = 1 + c.rand.IntN(min(5, len(c.members)))
			zone := c.newMember().Zone
			host := c.members[c.rand.IntN(len(c.members))].Host
			for i, m := range c.members {
				if m.Host == host { // moves to another room
					c.members[i].Zone = zone
				}
			}
			r = c.ring(t, r)
		}
	}
}
