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

// targetCopy is the ID of the copy that a node has of the chunks which only the
// target ring gives it. It is no node's: these are drawn at random, and so would
// be as likely to be drawn twice.
func targetCopy(id ring.NodeID) ring.NodeID { return ^id }

// nearestFirst returns where the chunks of a lineage lie, the copy to read from
// first. Among copies equally near the ring's order decides, which differs from
// partition to partition and so spreads the reads. Behind them come the copies that
// only target has, if that is not nil. The lists are made once, so that asking costs
// a look-up.
func nearestFirst(r, target *ring.Ring, l ring.LineageID, distance func(ring.NodeID) int) func(ring.ChunkIndex) []ring.NodeID {
	rows := make([][]ring.NodeID, ring.Partitions)
	for p := range rows {
		row := slices.Clone(r.Partition(p))
		slices.SortStableFunc(row, func(a, b ring.NodeID) int { return distance(a) - distance(b) })
		if target != nil {
			for _, id := range target.Partition(p) {
				if !slices.Contains(r.Partition(p), id) {
					row = append(row, targetCopy(id))
				}
			}
		}
		rows[p] = slices.Clip(row)
	}
	return func(c ring.ChunkIndex) []ring.NodeID { return rows[ring.PartitionOf(l, c)] }
}

// copiesOf are the copies of a volume, as package volume names them.
type copiesOf struct {
	ids     []ring.NodeID
	targets map[ring.NodeID]ring.NodeID // the node of each copy of the target
	target  uint64                      // number of that ring; 0: none
}

func newCopies(a *cluster.Attachment) copiesOf {
	c := copiesOf{ids: a.Ring.IDs(), targets: map[ring.NodeID]ring.NodeID{}, target: a.Target.Number}
	for _, id := range a.Gains() {
		c.ids = append(c.ids, targetCopy(id))
		c.targets[targetCopy(id)] = id
	}
	return c
}

// named returns the ID of a node's copy by a ring's number, and whether there is one.
func (c copiesOf) named(node ring.NodeID, target uint64) (ring.NodeID, bool) {
	if target == 0 {
		return node, true
	}
	id := targetCopy(node)
	_, is := c.targets[id]
	return id, is && target == c.target
}

// at returns on which node a copy lies, and the number of the target it is of.
func (c copiesOf) at(id ring.NodeID) (node ring.NodeID, target uint64) {
	if node, is := c.targets[id]; is {
		return node, c.target
	}
	return id, 0
}
