package ring

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

// What these functions find out slowly and obviously, the package finds out fast.

// oracleShares raises all members together, in small steps, each until something
// that it stands in is full.
func oracleShares(copies, hostCap, zoneCap int, members []Member) []float64 {
	const steps = 20000
	shares := make([]float64, len(members))
	hosts, zones := map[string]float64{}, map[Zone]float64{}
	total, weights := 0.0, 0.0
	for _, m := range members {
		weights += float64(m.Weight)
	}
	for total < float64(copies)-1e-9 {
		before := total
		for i, m := range members {
			step := float64(copies) * float64(m.Weight) / weights / steps
			step = min(step, 1-shares[i], float64(hostCap)-hosts[m.Host], float64(zoneCap)-zones[m.Zone], float64(copies)-total)
			shares[i] += step
			hosts[m.Host] += step
			zones[m.Zone] += step
			total += step
		}
		if total == before {
			panic("the caps leave no room for all copies")
		}
	}
	return shares
}

// crowding returns how many of some members stand on one host and in one zone at most.
func crowding(members []Member) (host, zone int) {
	hosts, zones := map[string]int{}, map[Zone]int{}
	for _, m := range members {
		hosts[m.Host]++
		zones[m.Zone]++
		host, zone = max(host, hosts[m.Host]), max(zone, zones[m.Zone])
	}
	return host, zone
}

// oracleCaps tries all ways to place the copies of a partition: the least crowded
// hosts that there can be, and with these the least crowded zones.
func oracleCaps(copies int, members []Member) (hostCap, zoneCap int) {
	hostCap, zoneCap = math.MaxInt, math.MaxInt
	var choose func(from int, chosen []Member)
	choose = func(from int, chosen []Member) {
		if len(chosen) == copies {
			h, z := crowding(chosen)
			if h < hostCap || h == hostCap && z < zoneCap {
				hostCap, zoneCap = h, z
			}
			return
		}
		for i := from; i < len(members); i++ {
			choose(i+1, append(chosen, members[i]))
		}
	}
	choose(0, make([]Member, 0, copies))
	return hostCap, zoneCap
}

// oracleLeast returns the fewest replicas that can move from one ring to any with
// the same number of partitions on each member as another: the cheapest flow from
// the partitions through their zones and hosts to the members. Partitions that lie on
// the same nodes flow together.
func oracleLeast(from, to *Ring) int {
	hostCap, zoneCap := oracleCaps(to.copies, to.members)
	classes := map[string]int{}
	rows := map[string][]NodeID{}
	for p := range Partitions {
		row := slices.Sorted(slices.Values(from.row(p)))
		classes[fmt.Sprint(row)]++
		rows[fmt.Sprint(row)] = row
	}
	g := &flow{names: map[string]int{}}
	for class, n := range classes {
		g.edge("source", class, n*to.copies, 0)
		zones, hosts := map[Zone]bool{}, map[string]bool{}
		for _, m := range to.members {
			zone, host := class+" zone "+string(m.Zone), class+" host "+m.Host
			if !zones[m.Zone] {
				g.edge(class, zone, n*zoneCap, 0)
			}
			if !hosts[m.Host] {
				g.edge(zone, host, n*hostCap, 0)
			}
			zones[m.Zone], hosts[m.Host] = true, true
			cost := 1
			if slices.Contains(rows[class], m.ID) {
				cost = 0
			}
			g.edge(host, m.ID.String(), n, cost)
		}
	}
	for _, s := range to.Shares() {
		g.edge(s.Member.ID.String(), "sink", s.Partitions, 0)
	}
	amount, cost := g.run("source", "sink")
	if amount != Partitions*to.copies {
		panic(fmt.Sprintf("%d replicas flow of %d", amount, Partitions*to.copies))
	}
	return cost
}

// A flow is a network with costs, solved one cheapest path after the other.
type flow struct {
	names map[string]int
	out   [][]int // edges of each node
	edges []edge  // edge e^1 is the way back of e
}

type edge struct{ to, room, cost int }

func (g *flow) node(name string) int {
	n, ok := g.names[name]
	if !ok {
		n = len(g.out)
		g.names[name] = n
		g.out = append(g.out, nil)
	}
	return n
}

func (g *flow) edge(from, to string, room, cost int) {
	a, b := g.node(from), g.node(to)
	g.out[a] = append(g.out[a], len(g.edges))
	g.out[b] = append(g.out[b], len(g.edges)+1)
	g.edges = append(g.edges, edge{b, room, cost}, edge{a, 0, -cost})
}

func (g *flow) run(from, to string) (amount, cost int) {
	source, sink := g.node(from), g.node(to)
	for {
		distance := slices.Repeat([]int{math.MaxInt}, len(g.out))
		by, queued := make([]int, len(g.out)), make([]bool, len(g.out))
		distance[source] = 0
		for queue := []int{source}; len(queue) > 0; queue = queue[1:] {
			n := queue[0]
			queued[n] = false
			for _, e := range g.out[n] {
				to, d := g.edges[e].to, distance[n]+g.edges[e].cost
				if g.edges[e].room == 0 || d >= distance[to] {
					continue
				}
				distance[to], by[to] = d, e
				if !queued[to] {
					queue, queued[to] = append(queue, to), true
				}
			}
		}
		if distance[sink] == math.MaxInt {
			return amount, cost
		}
		room := math.MaxInt
		for n := sink; n != source; n = g.edges[by[n]^1].to {
			room = min(room, g.edges[by[n]].room)
		}
		for n := sink; n != source; n = g.edges[by[n]^1].to {
			g.edges[by[n]].room -= room
			g.edges[by[n]^1].room += room
		}
		amount += room
		cost += room * distance[sink]
	}
}

func TestBestSharesAreThoseOfFillingStepByStep(t *testing.T) {
	for seed := range uint64(40) {
		c := randomCluster(seed, 1, 10)
		hostCap, zoneCap := oracleCaps(c.copies, c.members)
		want := oracleShares(c.copies, hostCap, zoneCap, c.members)
		got := bestShares(c.copies, c.members, newTopology(c.copies, c.members))
		for i := range want {
			if math.Abs(got[i]-want[i]) > 0.002 {
				t.Fatalf("%v: shares are %.4f, step by step %.4f", c, got, want)
			}
		}
	}
}

func TestCapsAreTheLowestOfAllPlacements(t *testing.T) {
	for seed := range uint64(100) {
		c := randomCluster(seed, 1, 10)
		hostCap, zoneCap := oracleCaps(c.copies, c.members)
		topology := newTopology(c.copies, c.members)
		if topology.hostCap != hostCap || topology.zoneCap != zoneCap {
			t.Fatalf("%v: caps %d a host, %d a zone, want %d and %d", c, topology.hostCap, topology.zoneCap, hostCap, zoneCap)
		}
	}
}
