package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"torus/store"
)

// FormatVersion is written into every file of a store; a file with another one
// is refused by name.
const FormatVersion = 1

const (
	blockSize      = store.PageSize
	segmentMagic   = "TORUSSEG"
	batchMagic     = 0x54414254 // "TBAT", little endian
	batchFixedSize = 64
	recordSize     = 48
	// maxHeaderSize bounds what a reader allocates for a batch header.
	maxHeaderSize = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// stream says which of the two logs a segment belongs to: the hot log takes
// what clients write and is replayed; the cold one takes what the collector
// copies, and is found through the index alone.
type stream uint32

const (
	hot stream = iota
	cold
)

func (s stream) String() string {
	if s == hot {
		return "hot"
	}
	return "cold"
}

// segmentHeader is the first block of a segment in use.
//
//	off len
//	  0   8  magic "TORUSSEG"
//	  8   4  format version
//	 12   4  CRC32C of bytes 16 to 4096
//	 16   8  identity of the store
//	 24   8  nonce: a random number of this use of the file
//	 32   4  segment number, as in the file's name
//	 36   4  stream: 0 hot, 1 cold
//	 40   8  sequence in its stream, from 1 without gaps in the hot log
//	 48   8  first position that a record in it may be logged at
//	 56   4  size of the segment in blocks
type segmentHeader struct {
	identity store.Identity
	nonce    uint64
	number   segNum
	stream   stream
	sequence uint64
	firstPos position
	blocks   uint32
}

func (h *segmentHeader) encode(p []byte) {
	clear(p[:blockSize])
	copy(p, segmentMagic)
	le := binary.LittleEndian
	le.PutUint32(p[8:], FormatVersion)
	le.PutUint64(p[16:], uint64(h.identity))
	le.PutUint64(p[24:], h.nonce)
	le.PutUint32(p[32:], uint32(h.number))
	le.PutUint32(p[36:], uint32(h.stream))
	le.PutUint64(p[40:], h.sequence)
	le.PutUint64(p[48:], uint64(h.firstPos))
	le.PutUint32(p[56:], h.blocks)
	le.PutUint32(p[12:], checksum(p[16:blockSize]))
}

// decodeSegmentHeader returns errBlank for a block of zeroes, which is what a
// segment that was never used begins with.
func decodeSegmentHeader(p []byte) (segmentHeader, error) {
	var h segmentHeader
	if isZero(p[:blockSize]) {
		return h, errBlank
	}
	if string(p[:8]) != segmentMagic {
		return h, fmt.Errorf("%w: no segment header", store.ErrCorrupt)
	}
	le := binary.LittleEndian
	if v := le.Uint32(p[8:]); v != FormatVersion {
		return h, &FormatError{Found: v}
	}
	if sum := checksum(p[16:blockSize]); sum != le.Uint32(p[12:]) {
		return h, fmt.Errorf("%w: segment header checksum %08x, computed %08x", store.ErrCorrupt, le.Uint32(p[12:]), sum)
	}
	h.identity = store.Identity(le.Uint64(p[16:]))
	h.nonce = le.Uint64(p[24:])
	h.number = segNum(le.Uint32(p[32:]))
	h.stream = stream(le.Uint32(p[36:]))
	h.sequence = le.Uint64(p[40:])
	h.firstPos = position(le.Uint64(p[48:]))
	h.blocks = le.Uint32(p[56:])
	if h.stream > cold {
		return h, fmt.Errorf("%w: segment header names stream %d", store.ErrCorrupt, h.stream)
	}
	return h, nil
}

// recordKind says what a record states. The numbers are on disk: append only.
type recordKind uint8

const (
	recData    recordKind = 1  // count pages of bytes, whose CRC32Cs follow the record
	recHole    recordKind = 2  // count pages are a hole
	recAbsent  recordKind = 3  // count pages are absent (adopted)
	recWide    recordKind = 4  // chunks [page, page+count) become kind flags, version; kills versions below extra
	recCreate  recordKind = 5  // layer, parent in page
	recFence   recordKind = 6  // volume in layer, epoch in version
	recForget  recordKind = 7  // volume in layer
	recStable  recordKind = 8  // layer; stable in version, settled in page
	recFreed   recordKind = 9  // segment number in layer is used no more
	recSession recordKind = 10 // a start of the store: random number in layer
	recClean   recordKind = 11 // a clean close; nothing follows but a session

	// A snapshot of all the above stands at the beginning of every hot segment;
	// its records carry the positions that they were first logged at.
	recSegment     recordKind = 12 // segment number in layer is in use
	recKiller      recordKind = 13 // chunks [page, page+count): what is older than pos and below extra is dead
	recSnapshotEnd recordKind = 14
	recLastKind               = recSnapshotEnd
)

// record is one entry of a batch header.
//
//	off len
//	  0   1  kind
//	  1   1  flags
//	  2   2  zero; 1 in bit 0 is kept for 16 bytes of the writer's per page
//	  4   4  count, in pages (or chunks)
//	  8   8  pos: the position at which it was first logged
//	 16   8  layer (or volume, or segment number)
//	 24   8  page (first page of the layer, or first chunk)
//	 32   8  version (or epoch)
//	 40   8  extra
//	 48  4n  CRC32C of each page, for recData; n = count
type record struct {
	kind    recordKind
	flags   uint8
	count   uint32
	pos     position
	layer   store.LayerID
	page    uint64
	version store.Version
	extra   uint64
	crcs    []uint32
}

func (r *record) size() int {
	if r.kind == recData {
		return recordSize + 4*int(r.count)
	}
	return recordSize
}

func (r *record) encode(p []byte) int {
	le := binary.LittleEndian
	p[0], p[1], p[2], p[3] = byte(r.kind), r.flags, 0, 0
	le.PutUint32(p[4:], r.count)
	le.PutUint64(p[8:], uint64(r.pos))
	le.PutUint64(p[16:], uint64(r.layer))
	le.PutUint64(p[24:], r.page)
	le.PutUint64(p[32:], uint64(r.version))
	le.PutUint64(p[40:], r.extra)
	n := recordSize
	if r.kind == recData {
		for _, c := range r.crcs {
			le.PutUint32(p[n:], c)
			n += 4
		}
	}
	return n
}

// batchHeader precedes the pages of a batch.
//
//	off len
//	  0   4  magic "TBAT"
//	  4   4  CRC32C of bytes 8 to the header's length
//	  8   8  nonce of the segment's present use
//	 16   4  block of the segment at which this header stands
//	 20   4  length of the header in bytes, records included
//	 24   4  pages that follow, from the next block boundary on
//	 28   4  the checksum of the batch header before it (0 behind the segment header)
//	 32   8  position of the batch's first record
//	 40   8  the last position that was synced when this was written
//	 48   4  number of records
//	 52  12  zero
//	 64      records
type batchHeader struct {
	sum      uint32
	nonce    uint64
	block    uint32
	length   uint32
	pages    uint32
	prev     uint32
	firstPos position
	synced   position
	count    uint32
}

func (h *batchHeader) headerBlocks() uint32 { return (h.length + blockSize - 1) / blockSize }

// blocks returns the length of header and pages in blocks.
func (h *batchHeader) blocks() uint32 { return h.headerBlocks() + h.pages }

// encode completes the header in p, whose records are in place, and returns
// its checksum. p is the header's length, rounded up to blocks.
func (h *batchHeader) encode(p []byte) uint32 {
	le := binary.LittleEndian
	clear(p[:batchFixedSize])
	clear(p[h.length:])
	le.PutUint32(p, batchMagic)
	le.PutUint64(p[8:], h.nonce)
	le.PutUint32(p[16:], h.block)
	le.PutUint32(p[20:], h.length)
	le.PutUint32(p[24:], h.pages)
	le.PutUint32(p[28:], h.prev)
	le.PutUint64(p[32:], uint64(h.firstPos))
	le.PutUint64(p[40:], uint64(h.synced))
	le.PutUint32(p[48:], h.count)
	h.sum = checksum(p[8:h.length])
	le.PutUint32(p[4:], h.sum)
	return h.sum
}

// decodeBatchFixed parses the fixed part and checks what can be checked
// without the rest. ok is false where no batch of this use begins.
func decodeBatchFixed(p []byte, nonce uint64, block, segBlocks uint32) (h batchHeader, ok bool) {
	le := binary.LittleEndian
	if le.Uint32(p) != batchMagic {
		return h, false
	}
	h.sum = le.Uint32(p[4:])
	h.nonce = le.Uint64(p[8:])
	h.block = le.Uint32(p[16:])
	h.length = le.Uint32(p[20:])
	h.pages = le.Uint32(p[24:])
	h.prev = le.Uint32(p[28:])
	h.firstPos = position(le.Uint64(p[32:]))
	h.synced = position(le.Uint64(p[40:]))
	h.count = le.Uint32(p[48:])
	if h.nonce != nonce || h.block != block || h.length < batchFixedSize || h.length > maxHeaderSize {
		return h, false
	}
	if h.pages > segBlocks || h.blocks() > segBlocks-block {
		return h, false
	}
	return h, true
}

// decodeRecords checks the header's checksum over p (its whole length) and
// appends its records to recs.
func (h *batchHeader) decodeRecords(p []byte, recs []record) ([]record, error) {
	if uint32(len(p)) < h.length {
		return recs, fmt.Errorf("%w: batch header of %d bytes cut at %d", store.ErrCorrupt, h.length, len(p))
	}
	if sum := checksum(p[8:h.length]); sum != h.sum {
		return recs, fmt.Errorf("%w: batch header checksum %08x, computed %08x", store.ErrCorrupt, h.sum, sum)
	}
	rest, pages := p[batchFixedSize:h.length], uint32(0)
	for range h.count {
		r, n, err := decodeRecord(rest)
		if err != nil {
			return recs, err
		}
		if r.kind == recData {
			if r.count > h.pages-pages {
				return recs, fmt.Errorf("%w: batch of %d pages has records of more", store.ErrCorrupt, h.pages)
			}
			pages += r.count
		}
		recs, rest = append(recs, r), rest[n:]
	}
	if len(rest) != 0 || pages != h.pages {
		return recs, fmt.Errorf("%w: batch header has %d bytes too many and %d of %d pages", store.ErrCorrupt, len(rest), pages, h.pages)
	}
	return recs, nil
}

func decodeRecord(p []byte) (r record, n int, err error) {
	if len(p) < recordSize {
		return r, 0, fmt.Errorf("%w: record cut at %d bytes", store.ErrCorrupt, len(p))
	}
	le := binary.LittleEndian
	r.kind, r.flags = recordKind(p[0]), p[1]
	if r.kind == 0 || r.kind > recLastKind || p[2] != 0 || p[3] != 0 {
		return r, 0, fmt.Errorf("%w: record of unknown kind %d", store.ErrCorrupt, p[0])
	}
	r.count = le.Uint32(p[4:])
	r.pos = position(le.Uint64(p[8:]))
	r.layer = store.LayerID(le.Uint64(p[16:]))
	r.page = le.Uint64(p[24:])
	r.version = store.Version(le.Uint64(p[32:]))
	r.extra = le.Uint64(p[40:])
	if r.kind != recData {
		return r, recordSize, nil
	}
	if int64(r.count) > int64(len(p)-recordSize)/4 || r.count == 0 {
		return r, 0, fmt.Errorf("%w: record of %d pages in %d bytes", store.ErrCorrupt, r.count, len(p))
	}
	r.crcs = make([]uint32, r.count)
	for i := range r.crcs {
		r.crcs[i] = le.Uint32(p[recordSize+4*i:])
	}
	return r, r.size(), nil
}

func isZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
