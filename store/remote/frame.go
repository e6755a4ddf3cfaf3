package remote

import (
	"fmt"
	"hash/crc32"

	"torus/store"
)

// A request and its answer are one frame each: a header of fixed size and a
// body. All numbers are little-endian.
//
// Request:
//
//	 0  u32  magic "Trq1"; the digit is the protocol version
//	 4  u8   op
//	 5  u8   flags: of a write store.Flags; of a read bit 0: with page
//	          infos; of a list bit 0: go on behind the cursor
//	 6  u16  layers of the chain beyond the first; of an adopt the kind
//	 8  u32  length of the body, bytes
//	12  u32  CRC32C of the body
//	16  u64  request: chosen by the client, returned in the answer
//	24  u64  volume
//	32  u64  incarnation that the request is meant for (N2)
//	40  u64  layer, the first of a chain; 0: the chain is empty
//	48  u64  offset, bytes; of create the parent
//	56  u64  length, bytes; of a drop the chunks, first and end
//	64  u64  version; of stable the mark; of extents since; of lists the cursor
//	72  u64  settled; of unstable the cursor, bytes
//	80  u32  epoch
//	84  u32  CRC32C of the header before
//
// Answer:
//
//	 0  u32  magic "Tan1"
//	 4  u8   op of the request
//	 5  u8   flags: bit 0 more (of a list)
//	 6  u16  error, 0 if none
//	 8  u32  length of the body, bytes
//	12  u32  CRC32C of the body
//	16  u64  request
//	24  u32  0
//	28  u32  CRC32C of the header before
//
// One checksum covers a whole body. A checksum of each page, which the store
// on disk has anyway, would spare it a pass; but the contract does not carry
// them, and the pass costs 0.2 µs for 4 KiB where the request costs 5.
const (
	requestMagic = 0x31717254
	answerMagic  = 0x316e6154

	requestSize = 88
	answerSize  = 32
)

// op is what a request asks for. Append only.
type op uint8

const (
	opAlive op = iota // both ways, without answer: see keepAlive
	opAttach
	opReadSealed
	opDrop
	opForget
	opLayers
	opFences
	opStat
	opCreate
	opWrite
	opZero
	opRead
	opSync
	opExtents
	opUnstable
	opAdopt
	opStable
	opCount
)

var opNames = [opCount]string{"keep alive", "attach", "read", "drop", "forget", "list layers", "list fences", "stat",
	"create", "write", "zero", "read", "sync", "extents", "unstable", "adopt", "stable"}

func (o op) String() string {
	if o < opCount {
		return opNames[o]
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

const (
	flagInfo   = 1 << 0 // of a read
	flagCursor = 1 << 0 // of a list: go on behind the cursor
	flagMore   = 1 << 0 // of an answer to a list: there is more
)

const (
	// maxChain is the most layers that a read goes through.
	maxChain = 4096
	// listBody is the most bytes that one answer to a list has.
	listBody = 64 << 10
	// maxErrorBody is the most bytes that an error has.
	maxErrorBody = 2 << 10
	runSize      = 24 // of an encoded run of page infos
	// maxAnswerBody is a read of MaxIO with a run for every page.
	maxAnswerBody = store.MaxIO + store.MaxIO/store.PageSize*runSize
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// A request is the header of one, decoded.
type request struct {
	op          op
	flags       uint8
	count       uint16 // chain, or kind
	body        uint32 // bytes
	bodySum     uint32
	id          uint64
	volume      store.VolumeID
	incarnation store.Incarnation
	layer       store.LayerID
	off, n      int64
	version     store.Version
	extra       uint64
	epoch       store.Epoch
}

// encode writes the header; h has requestSize bytes.
func (r *request) encode(h []byte) {
	_ = h[requestSize-1]
	le.PutUint32(h, requestMagic)
	h[4], h[5] = uint8(r.op), r.flags
	le.PutUint16(h[6:], r.count)
	le.PutUint32(h[8:], r.body)
	le.PutUint32(h[12:], r.bodySum)
	le.PutUint64(h[16:], r.id)
	le.PutUint64(h[24:], uint64(r.volume))
	le.PutUint64(h[32:], uint64(r.incarnation))
	le.PutUint64(h[40:], uint64(r.layer))
	le.PutUint64(h[48:], uint64(r.off))
	le.PutUint64(h[56:], uint64(r.n))
	le.PutUint64(h[64:], uint64(r.version))
	le.PutUint64(h[72:], r.extra)
	le.PutUint32(h[80:], uint32(r.epoch))
	le.PutUint32(h[84:], checksum(h[:84]))
}

// decode reads a header of requestSize bytes. An error means that nothing
// behind it makes sense: the connection ends.
func (r *request) decode(h []byte) error {
	_ = h[requestSize-1]
	if magic := le.Uint32(h); magic != requestMagic {
		return fmt.Errorf("request magic %#x, want %#x", magic, uint32(requestMagic))
	}
	if sum := checksum(h[:84]); sum != le.Uint32(h[84:]) {
		return fmt.Errorf("request header has checksum %#x, says %#x", sum, le.Uint32(h[84:]))
	}
	*r = request{
		op: op(h[4]), flags: h[5], count: le.Uint16(h[6:]), body: le.Uint32(h[8:]), bodySum: le.Uint32(h[12:]),
		id: le.Uint64(h[16:]), volume: store.VolumeID(le.Uint64(h[24:])), incarnation: store.Incarnation(le.Uint64(h[32:])),
		layer: store.LayerID(le.Uint64(h[40:])), off: int64(le.Uint64(h[48:])), n: int64(le.Uint64(h[56:])),
		version: store.Version(le.Uint64(h[64:])), extra: le.Uint64(h[72:]), epoch: store.Epoch(le.Uint32(h[80:])),
	}
	return r.check()
}

// check refuses what no client sends, before anything is allocated for it.
// What a client's caller may get wrong (an unaligned offset) is for the store
// to refuse: that is an answer.
func (r *request) check() error {
	var want int64
	switch r.op {
	case opWrite:
		want = r.n
	case opRead, opReadSealed:
		want = int64(r.count) * 8
		if r.n <= 0 || r.n > store.MaxIO || r.count >= maxChain || r.layer == 0 && r.count > 0 {
			return fmt.Errorf("%v of %d bytes, at most %d, through %d layers, at most %d", r.op, r.n, store.MaxIO, r.count+1, maxChain)
		}
	case opAdopt:
		if store.Kind(r.count) == store.Data {
			want = r.n
		}
	default:
		if r.op >= opCount {
			return fmt.Errorf("unknown %v", r.op)
		}
	}
	if want > store.MaxIO || int64(r.body) != want {
		return fmt.Errorf("%v has a body of %d bytes, want %d, at most %d", r.op, r.body, want, store.MaxIO)
	}
	return nil
}

// An answer is the header of one, decoded.
type answer struct {
	op      op
	flags   uint8
	errno   errno
	body    uint32 // bytes
	bodySum uint32
	id      uint64
}

func (a *answer) encode(h []byte) {
	_ = h[answerSize-1]
	le.PutUint32(h, answerMagic)
	h[4], h[5] = uint8(a.op), a.flags
	le.PutUint16(h[6:], uint16(a.errno))
	le.PutUint32(h[8:], a.body)
	le.PutUint32(h[12:], a.bodySum)
	le.PutUint64(h[16:], a.id)
	le.PutUint32(h[24:], 0)
	le.PutUint32(h[28:], checksum(h[:28]))
}

func (a *answer) decode(h []byte) error {
	_ = h[answerSize-1]
	if magic := le.Uint32(h); magic != answerMagic {
		return fmt.Errorf("answer magic %#x, want %#x", magic, uint32(answerMagic))
	}
	if sum := checksum(h[:28]); sum != le.Uint32(h[28:]) {
		return fmt.Errorf("answer header has checksum %#x, says %#x", sum, le.Uint32(h[28:]))
	}
	*a = answer{op: op(h[4]), flags: h[5], errno: errno(le.Uint16(h[6:])), body: le.Uint32(h[8:]),
		bodySum: le.Uint32(h[12:]), id: le.Uint64(h[16:])}
	if a.op >= opCount || a.body > maxAnswerBody || a.errno != 0 && a.body > maxErrorBody {
		return fmt.Errorf("answer to %v with error %d and a body of %d bytes", a.op, a.errno, a.body)
	}
	return nil
}
