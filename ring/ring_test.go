package ring

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// cluster returns n members of equal weight, each on a host and, by three, in a zone.
func cluster(n int) []Member {
	var members []Member
	for i := range n {
		members = append(members, Member{
			ID: NodeID(mix(uint64(i))), Weight: 4 << 40, Zone: Zone(fmt.Sprint("zone", i%3)), Host: fmt.Sprint("host", i),
		})
	}
	return members
}

func mustRing(t testing.TB, copies int, members []Member, earlier *Ring) *Ring {
	t.Helper()
	r, err := New(copies, members, earlier)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLookUpDoesNotAllocate(t *testing.T) {
	r := mustRing(t, 3, cluster(200), nil)
	var nodes []NodeID
	c := ChunkIndex(0)
	if n := testing.AllocsPerRun(1000, func() { nodes, c = r.Nodes(42, c), c+1 }); n != 0 || len(nodes) != 3 {
		t.Fatalf("%v allocations, %d nodes", n, len(nodes))
	}
}

// A volume of any size above a few partitions' worth is spread like the partitions.
func TestChunksAreSpreadEvenly(t *testing.T) {
	members := cluster(20)
	r := mustRing(t, 2, members, nil)
	for _, chunks := range []int{Partitions, 10 * Partitions} {
		count := map[NodeID]int{}
		for c := range chunks {
			for _, id := range r.Nodes(7, ChunkIndex(c)) {
				count[id]++
			}
		}
		for _, m := range members {
			if share := float64(count[m.ID]) / float64(chunks) * 10; math.Abs(share-1) > 0.01 {
				t.Errorf("node %s has %.3f of its share of %d chunks", m.ID, share, chunks)
			}
		}
	}
	hit := map[int]bool{} // two lineages do not begin at the same partition
	for l := range 1000 {
		hit[partition(LineageID(l), 0)] = true
	}
	if len(hit) < 900 {
		t.Errorf("the first chunks of 1000 lineages are in %d partitions", len(hit))
	}
}

// The nodes that take over from a failed one are many, so that repair is quick.
func TestCopiesOfANodeAreSpreadOverAllOthers(t *testing.T) {
	members := cluster(21)
	r := mustRing(t, 2, members, nil)
	beside := map[NodeID]int{}
	for p := range Partitions {
		if row := r.row(p); row[0] == members[0].ID {
			beside[row[1]]++
		} else if row[1] == members[0].ID {
			beside[row[0]]++
		}
	}
	for _, m := range members {
		other := m.Zone != members[0].Zone
		if n := beside[m.ID]; other && (n < 60 || n > 180) || !other && n > 0 { // 111 in the mean
			t.Errorf("node %s in %s has %d partitions in common with one in %s", m.ID, m.Zone, n, members[0].Zone)
		}
	}
}

func TestRingsAreDeterministicAndStay(t *testing.T) {
	members := cluster(30)
	r := mustRing(t, 3, members, nil)
	slices.Reverse(members)
	if again := mustRing(t, 3, members, nil); !slices.Equal(r.table, again.table) {
		t.Error("another order of members makes another ring")
	}
	if again := mustRing(t, 3, members, r); !slices.Equal(r.table, again.table) {
		t.Errorf("nothing changed, but %.4f moved", Moved(r, again))
	}
	for i := range members { // all disks doubled
		members[i].Weight *= 2
	}
	if again := mustRing(t, 3, members, r); Moved(r, again) != 0 {
		t.Errorf("the same weights in other units, but %.4f moved", Moved(r, again))
	}
}

func TestAnotherNumberOfCopiesKeepsThoseThatAre(t *testing.T) {
	two := mustRing(t, 2, cluster(12), nil)
	three := mustRing(t, 3, cluster(12), two)
	if moved := Moved(two, three); moved < 1.0/3 || moved > 0.34 {
		t.Errorf("from 2 copies to 3, %.4f are new", moved)
	}
	if moved := Moved(three, mustRing(t, 2, cluster(12), three)); moved > 0.001 {
		t.Errorf("from 3 copies to 2, %.4f are new", moved)
	}
}

// A host is one machine, whatever zones its nodes name while they are changed one by one.
func TestAHostInTwoZonesIsInTheFirst(t *testing.T) {
	members := []Member{
		{ID: 1, Weight: 1, Zone: "a", Host: "h"}, {ID: 2, Weight: 1, Zone: "b", Host: "h"},
		{ID: 3, Weight: 1, Zone: "b", Host: "i"}, {ID: 4, Weight: 1, Zone: "b"}, {ID: 5, Weight: 1, Zone: "a"},
	}
	r := mustRing(t, 2, members, nil)
	for p := range Partitions {
		if row := slices.Sorted(slices.Values(r.row(p))); row[1] <= 2 || row[0] >= 3 && row[1] != 5 {
			t.Fatalf("partition %d is on %v", p, row)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		copies  int
		members []Member
		err     error
		says    string
	}{
		{0, cluster(3), ErrInvalid, "0 copies: must be 1 to 16"},
		{17, cluster(20), ErrInvalid, "17 copies: must be 1 to 16"},
		{3, cluster(2), ErrTooFewMembers, "3 copies need 3 members, there are 2"},
		{1, cluster(MaxMembers + 1), ErrInvalid, "4097 members: at most 4096"},
		{1, []Member{{ID: 0, Weight: 1}}, ErrInvalid, "node ID 0 is no node"},
		{1, []Member{{ID: 1, Weight: 0}}, ErrInvalid, "node 0000000000000001 has weight 0: must be above 0"},
		{1, []Member{{ID: 1, Weight: -5}}, ErrInvalid, "weight -5"},
		{1, []Member{{ID: 1, Weight: 1}, {ID: 1, Weight: 1}}, ErrInvalid, "node 0000000000000001 is a member twice"},
		{1, []Member{{ID: 1, Weight: 1, Zone: Zone(strings.Repeat("z", 256))}}, ErrInvalid, "at most 255 bytes"},
		{1, []Member{{ID: 1, Weight: 1, Host: "a\nb"}}, ErrInvalid, `host "a\nb" of node`},
	} {
		if _, err := New(c.copies, c.members, nil); !errors.Is(err, c.err) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("New(%d, %d members): %v, want %q", c.copies, len(c.members), err, c.says)
		}
	}
}

// Weights are bytes; their products don't fit in 64 bits.
func TestExtremeWeights(t *testing.T) {
	members := cluster(5)
	for i, w := range []int64{math.MaxInt64, math.MaxInt64 - 1, 1 << 50, 1, 3} {
		members[i].Weight = w
	}
	r := mustRing(t, 2, members, nil)
	for i, s := range r.Shares() {
		if s.Data > s.Best*1.01 || s.Data < s.Best-0.001 {
			t.Errorf("member %d of weight %d has %v of %v", i, s.Member.Weight, s.Data, s.Best)
		}
	}
}

func BenchmarkNodes(b *testing.B) {
	r := mustRing(b, 3, cluster(200), nil)
	b.ReportAllocs()
	c := ChunkIndex(0)
	for b.Loop() {
		r.Nodes(LineageID(c>>7), c*7919) // no chunk near the one before
		c++
	}
}

func BenchmarkNew(b *testing.B) {
	for _, n := range []int{3, 200, 1000} {
		b.Run(fmt.Sprintf("%d/first", n), func(b *testing.B) {
			for b.Loop() {
				mustRing(b, 3, cluster(n), nil)
			}
		})
		b.Run(fmt.Sprintf("%d/join", n), func(b *testing.B) {
			r := mustRing(b, 3, cluster(n), nil)
			for b.Loop() {
				mustRing(b, 3, cluster(n+1), r)
			}
		})
	}
}
