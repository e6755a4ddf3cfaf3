// Package ring says where the chunks of a volume lie. A ring is a pure function from
// lineage and chunk to an ordered list of nodes: numbered and kept by others, built
// once, never changed. New promises, of any members and the ring before:
//
//   - no two copies on one node; none on one host while there are as many hosts as
//     copies, nor in one zone while there are as many zones; with fewer, no more
//     together than must be;
//   - every node has its best share, within a partition or two: as much for its
//     weight as any other, but where a node, host or zone can hold no more;
//   - what moves is next to the least that must, and mostly it.
//
// Chunks are dealt to a fixed number of partitions, partitions to nodes. So look-up is
// a hash and an index (10 ns), and what is built can be as clever as it likes: goals in
// whole partitions (targets), rows that meet them exactly (deal), or the earlier rows
// with as few changes as bring every node to its goal (settle, then rotate).
//
// Rejected, with 3 copies, 5 zones, weights of 1:10, nodes joining, as the fullest
// node's part of its best share and what moved as a part of the least:
//
//	                                             12 nodes            200 nodes
//	weighted rendezvous hashing                  1.24-1.57, 0.8-1.0  1.30-1.34, 0.9-1.2
//	the same, passing over nodes at 1.05         1.05-1.15, 1.0-1.2  1.05-1.07, 1.3-2.0
//	a ring dealt anew, without the earlier one   1.0001,    6-13     1.002,     140-1100
//	this                                         1.0001,    1.0      1.002,     1.0
//
// Copies that exclude each other take from hashing the proportion to weights, and a
// bound that it keeps to by passing nodes over makes one change push on others.
package ring

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of what a ring is made of. With them an encoded ring of 1,000 members
// stays under 1 MiB, less than etcd takes in one request.
const (
	MaxCopies  = 16
	MaxMembers = 4096
	MaxName    = 255 // bytes of a zone's or a host's name
)

// Partitions is the number of partitions of every ring. Chunks are dealt to
// partitions, and partitions to nodes: a change of it is a new format.
const Partitions = 1 << 14

var (
	// ErrTooFewMembers says that there are fewer members than copies.
	ErrTooFewMembers = errors.New("too few members")
	// ErrInvalid says that members, a number of copies or an encoded ring break
	// a rule; the error that wraps it names value and bound.
	ErrInvalid = errors.New("invalid ring")
)

// A Member is a node that stores data.
type Member struct {
	ID     NodeID
	Weight int64 // capacity in bytes, above 0
	Zone   Zone
	// Host names the machine, of which all nodes fail together; empty: its own.
	// A host stands in one zone: that of its member with the lowest ID.
	Host string
}

// A Ring says which nodes keep each chunk. It never changes and may be used
// concurrently.
type Ring struct {
	copies  int
	members []Member // in order of ID
	table   []NodeID // Partitions rows of copies nodes
}

// Copies returns the number of copies of each chunk.
func (r *Ring) Copies() int { return r.copies }

// Members returns the members in order of ID; the slice is the caller's.
func (r *Ring) Members() []Member { return slices.Clone(r.members) }

// Nodes returns the Copies() nodes that keep a chunk, the preferred one first.
// The slice is the ring's, to be read only. It does not allocate.
func (r *Ring) Nodes(l LineageID, c ChunkIndex) []NodeID { return r.row(partition(l, c)) }

// row returns the nodes of a partition.
func (r *Ring) row(p int) []NodeID {
	end := (p + 1) * r.copies
	return r.table[end-r.copies : end : end]
}

// partition deals chunks to partitions. Each run of as many chunks as there are
// partitions gets every partition once: a large volume is spread more evenly than
// hashing each chunk would do it (at 16 chunks a partition the standard deviation
// would be a quarter of the mean).
func partition(l LineageID, c ChunkIndex) int {
	start := mix(uint64(l) ^ mix(uint64(c)/Partitions))
	return int((start + uint64(c)) % Partitions)
}

// mix is the finalizer of splitmix64: a bijection of 64 bits that looks random.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Moved returns the share, 0 to 1, of the replicas of `to` that lie on nodes
// which don't have them in `from`.
func Moved(from, to *Ring) float64 {
	moved := 0
	for p := range Partitions {
		had := from.row(p)
		for _, id := range to.row(p) {
			if !slices.Contains(had, id) {
				moved++
			}
		}
	}
	return float64(moved) / float64(len(to.table))
}

// check refuses what no ring can be made of, and returns the members in order.
func check(copies int, members []Member) ([]Member, error) {
	switch {
	case copies < 1 || copies > MaxCopies:
		return nil, fmt.Errorf("%w: %d copies: must be 1 to %d", ErrInvalid, copies, MaxCopies)
	case len(members) > MaxMembers:
		return nil, fmt.Errorf("%w: %d members: at most %d", ErrInvalid, len(members), MaxMembers)
	case len(members) < copies:
		return nil, fmt.Errorf("%w: %d copies need %d members, there are %d", ErrTooFewMembers, copies, copies, len(members))
	}
	ordered := slices.Clone(members)
	slices.SortFunc(ordered, func(a, b Member) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	for i, m := range ordered {
		if err := m.check(); err != nil {
			return nil, err
		}
		if i > 0 && m.ID == ordered[i-1].ID {
			return nil, fmt.Errorf("%w: node %s is a member twice", ErrInvalid, m.ID)
		}
	}
	return ordered, nil
}

func (m Member) check() error {
	switch {
	case m.ID == 0:
		return fmt.Errorf("%w: node ID 0 is no node", ErrInvalid)
	case m.Weight <= 0:
		return fmt.Errorf("%w: node %s has weight %d: must be above 0", ErrInvalid, m.ID, m.Weight)
	case !validName(string(m.Zone)):
		return fmt.Errorf("%w: zone %.40q of node %s: must be at most %d bytes of printable UTF-8", ErrInvalid, m.Zone, m.ID, MaxName)
	case !validName(m.Host):
		return fmt.Errorf("%w: host %.40q of node %s: must be at most %d bytes of printable UTF-8", ErrInvalid, m.Host, m.ID, MaxName)
	}
	return nil
}

func validName(s string) bool {
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	return len(s) <= MaxName && utf8.ValidString(s) && !strings.ContainsFunc(s, control)
}
