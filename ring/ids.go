package ring

import "fmt"

// NodeID is the permanent identity of a node, drawn at random when its data
// directory is made. Zero is no node.
type NodeID uint64

// String returns the ID as 16 hexadecimal digits.
func (id NodeID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// LineageID names a volume together with all its clones: what shares layers,
// a redundancy policy and a ring. Drawn at random, never used twice.
type LineageID uint64

// String returns the ID as 16 hexadecimal digits.
func (id LineageID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Zone is a failure domain: a rack, a room, a power feed. Empty is a zone too.
type Zone string

// ChunkIndex counts the 4 MiB chunks of a volume's address space from 0.
type ChunkIndex uint32

// String returns the index in decimal.
func (c ChunkIndex) String() string { return fmt.Sprintf("%d", uint32(c)) }
