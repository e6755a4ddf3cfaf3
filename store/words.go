package store

import (
	"fmt"
	"strconv"
)

// Sizes of the address space, in bytes.
const (
	// PageSize is the unit of writing, versioning and checksums.
	PageSize = 4096
	// ChunkSize is the unit of placement.
	ChunkSize = 4 << 20
	// PagesPerChunk is ChunkSize in pages.
	PagesPerChunk = ChunkSize / PageSize
	// MaxVolumeSize is the end of a layer's address space: 1 PiB.
	MaxVolumeSize = 1 << 50
)

// VolumeID names a volume for ever; it is drawn at random and never used twice.
type VolumeID uint64

// String returns the ID as 16 hexadecimal digits.
func (id VolumeID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// LayerID names a layer for ever; it is drawn at random and never used twice.
// Zero is no layer.
type LayerID uint64

// String returns the ID as 16 hexadecimal digits.
func (id LayerID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Identity is drawn when a store is made. Another one means another store,
// which holds nothing of what the first one held (N3).
type Identity uint64

// String returns the identity as 16 hexadecimal digits.
func (id Identity) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Incarnation is what a store keeps as long as it has lost nothing that it
// acknowledged (N2).
type Incarnation uint64

// String returns the incarnation as 16 hexadecimal digits.
func (id Incarnation) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Epoch is the number of an attachment: 24 bits, growing, from the lineage's
// counter. It is the fencing token. Zero is before every attachment.
type Epoch uint32

// MaxEpoch is the last epoch there is.
const MaxEpoch Epoch = 1<<24 - 1

// String returns the epoch in decimal.
func (e Epoch) String() string { return strconv.FormatUint(uint64(e), 10) }

// Version orders the writes of a layer: the epoch in the upper 24 bits, a
// sequence number in the lower 40. Zero is before every write.
type Version uint64

// MaxSequence is the last sequence number of an epoch.
const MaxSequence = 1<<40 - 1

// NewVersion puts a version together. sequence is at most MaxSequence.
func NewVersion(e Epoch, sequence uint64) Version {
	return Version(uint64(e)<<40 | sequence&MaxSequence)
}

// Epoch returns the epoch under which v was given.
func (v Version) Epoch() Epoch { return Epoch(v >> 40) }

// Sequence returns the number of v within its epoch.
func (v Version) Sequence() uint64 { return uint64(v) & MaxSequence }

// String returns the version as epoch.sequence, both in decimal.
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Epoch(), v.Sequence()) }

// Kind says what a page is in one layer.
type Kind uint8

const (
	// Absent: the layer has nothing here; a lower layer shows through.
	Absent Kind = iota
	// Data: the page has bytes.
	Data
	// Hole: the page was trimmed or zeroed; it hides lower layers and reads as zeroes.
	Hole
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case Absent:
		return "absent"
	case Data:
		return "data"
	case Hole:
		return "hole"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Extent is a run of pages of one layer with one kind and one version.
type Extent struct {
	Off, N  int64 // bytes, multiples of PageSize; N > 0
	Kind    Kind
	Version Version // 0 where Kind is Absent
}

// End returns the offset behind the extent, in bytes.
func (e Extent) End() int64 { return e.Off + e.N }

// String shows the extent as [off,end) kind version.
func (e Extent) String() string {
	return fmt.Sprintf("[%d,%d) %v %v", e.Off, e.End(), e.Kind, e.Version)
}

// Chunks is a range of a layer's 4 MiB chunks: First up to, but without, End.
type Chunks struct{ First, End uint32 }

// AllChunks is a whole layer, the layer itself included.
var AllChunks = Chunks{0, 1<<32 - 1}

// All reports whether c is a whole layer.
func (c Chunks) All() bool { return c == AllChunks }

// Contains reports whether the page at off (in bytes) lies in c.
func (c Chunks) Contains(off int64) bool {
	chunk := off / ChunkSize
	return int64(c.First) <= chunk && chunk < int64(c.End)
}

// String shows the range as [first,end), or as "all".
func (c Chunks) String() string {
	if c.All() {
		return "all"
	}
	return fmt.Sprintf("[%d,%d)", c.First, c.End)
}

// Flags modify a write.
type Flags uint8

const (
	// FlagSync: the write itself is on stable storage when it is answered (FUA).
	FlagSync Flags = 1 << iota
)
