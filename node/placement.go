package node

import (
	"slices"

	"torus/cluster"
	"torus/ring"
)

// Distances from this process to a copy.
const (
	here = iota // the store of this process
	sameHost
	sameZone
	elsewhere
)

// distance says how near n is to the machine described by self.
func distance(self, n cluster.Node) int {
	switch {
	case n.ID == self.ID && self.ID != 0:
		return here
	case n.Host != "" && n.Host == self.Host:
		return sameHost
	case n.Zone != "" && n.Zone == self.Zone:
		return sameZone
	}
	return elsewhere
}

// nearestFirst returns where the chunks of a lineage lie, the copy to read from
// first. Among copies equally near the ring's order decides, which differs from
// partition to partition and so spreads the reads. The lists are made once, so
// that asking costs a look-up.
func nearestFirst(r *ring.Ring, l ring.LineageID, distance func(ring.NodeID) int) func(ring.ChunkIndex) []ring.NodeID {
	copies := r.Copies()
	table := make([]ring.NodeID, 0, ring.Partitions*copies)
	for p := range ring.Partitions {
		table = append(table, r.Partition(p)...)
		slices.SortStableFunc(table[p*copies:], func(a, b ring.NodeID) int { return distance(a) - distance(b) })
	}
	return func(c ring.ChunkIndex) []ring.NodeID {
		p := ring.PartitionOf(l, c) * copies
		return table[p : p+copies : p+copies]
	}
}
