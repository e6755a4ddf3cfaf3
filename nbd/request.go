package nbd

import (
	"encoding/binary"
	"fmt"
)

// A request is one command from its header to its reply. It is reused; the
// reader owns it first, then who serves it, then who writes the reply.
type request struct {
	c      *conn
	cmd    uint16
	flags  uint16
	cookie uint64
	off    uint64 // as sent; checked against the device before use
	n      uint64 // effect length in bytes; for a write the payload's

	err     errno  // refused before the device was asked
	why     string // for a person; "" if err says it all
	charge  int64  // bytes held in the limiters
	buf     []byte // from the pool, or nil
	payload []byte // lies in buf

	header [extendedReplySize + 8]byte
	head   []byte // reply: header
	body   []byte // reply: data, lies in buf or was allocated for an error
}

// Sizes of headers.
//
//	request     u32 magic, u16 flags, u16 type, u64 cookie, u64 offset, u32 length
//	extended    u32 magic, u16 flags, u16 type, u64 cookie, u64 offset, u64 length
//	simple      u32 magic, u32 error, u64 cookie
//	structured  u32 magic, u16 flags, u16 type, u64 cookie, u32 length
//	extended    u32 magic, u16 flags, u16 type, u64 cookie, u64 offset, u64 length
const (
	requestSize         = 28
	extendedRequestSize = 32
	simpleReplySize     = 16
	structuredReplySize = 20
	extendedReplySize   = 32
)

// parse reads a header into r. It fails only on a wrong magic: then nothing
// that follows makes sense.
func (r *request) parse(h []byte, mode replyMode) error {
	want := magicRequest
	if mode == extendedReplies {
		want = magicExtendedRequest
	}
	if magic := binary.BigEndian.Uint32(h); magic != want {
		return fmt.Errorf("request magic %#x, want %#x", magic, want)
	}
	r.flags = binary.BigEndian.Uint16(h[4:])
	r.cmd = binary.BigEndian.Uint16(h[6:])
	r.cookie = binary.BigEndian.Uint64(h[8:])
	r.off = binary.BigEndian.Uint64(h[16:])
	if mode == extendedReplies {
		r.n = binary.BigEndian.Uint64(h[24:])
	} else {
		r.n = uint64(binary.BigEndian.Uint32(h[24:]))
	}
	return nil
}

// session is what was negotiated, as far as it decides which requests are
// good.
type session struct {
	mode     replyMode
	readOnly bool
	contexts bool // base:allocation was selected for this export
}

// flags returns the transmission flags of an export.
func (s session) flags() uint16 {
	f := flagHasFlags | flagSendFlush | flagSendFUA | flagCanMultiConn | flagSendCache
	if s.readOnly {
		f |= flagReadOnly
	} else {
		f |= flagSendTrim | flagSendWriteZeroes | flagSendFastZero
	}
	if s.mode != simpleReplies {
		f |= flagSendDF
	}
	if s.mode == extendedReplies && s.contexts {
		f |= flagBlockStatusPayload
	}
	return f
}

// payloadLen returns how many bytes follow the header of r.
func (s session) payloadLen(r *request) uint64 {
	switch {
	case s.mode == extendedReplies:
		// With extended headers the flag decides, whatever the command.
		if r.flags&cmdFlagPayloadLen != 0 {
			return r.n
		}
		return 0
	case r.cmd == cmdWrite:
		return r.n
	}
	return 0
}

// flagsFor are the flags that a command may carry. FUA is for all, the
// document says, as clients are known to set it on anything.
func (s session) flagsFor(cmd uint16) uint16 {
	f := cmdFlagFUA
	switch cmd {
	case cmdRead:
		if s.mode != simpleReplies {
			f |= cmdFlagDF
		}
	case cmdWrite:
		if s.mode == extendedReplies {
			f |= cmdFlagPayloadLen
		}
	case cmdWriteZeroes:
		f |= cmdFlagNoHole | cmdFlagFastZero
	case cmdBlockStatus:
		f |= cmdFlagReqOne
		if s.mode == extendedReplies && s.contexts {
			f |= cmdFlagPayloadLen
		}
	}
	return f
}

// check decides whether r may go to a device of size bytes, and if not, sets
// its error. It touches nothing else: all refusing of requests is here.
func (s session) check(r *request, size int64) {
	switch {
	case r.cmd >= cmdCount:
		r.refuse(eINVAL, "unknown command %d", r.cmd)
	case r.flags&^s.flagsFor(r.cmd) != 0:
		r.refuse(eINVAL, "flags %#x are not for command %d here", r.flags&^s.flagsFor(r.cmd), r.cmd)
	case r.cmd == cmdFlush:
		if r.off != 0 || r.n != 0 {
			r.refuse(eINVAL, "flush with offset %d and length %d, which must be 0", r.off, r.n)
		}
	case s.readOnly && (r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes):
		r.refuse(ePERM, "the export is read-only")
	case r.cmd == cmdWrite && s.mode == extendedReplies && r.flags&cmdFlagPayloadLen == 0:
		r.refuse(eINVAL, "extended write without PAYLOAD_LEN")
	case r.cmd == cmdWrite && r.n > maxPayload:
		r.refuse(eINVAL, "length %d exceeds %d", r.n, maxPayload)
	case r.cmd == cmdBlockStatus && !s.contexts:
		r.refuse(eINVAL, "no metadata context was selected for this export")
	case r.cmd == cmdBlockStatus && r.flags&cmdFlagPayloadLen != 0:
		// Length and contexts are in the payload; see checkRange.
	default:
		s.checkRange(r, size)
	}
}

// checkRange is the part of check that needs the effect length.
func (s session) checkRange(r *request, size int64) {
	writes := r.cmd == cmdWrite || r.cmd == cmdWriteZeroes
	switch {
	case r.off > uint64(size) || r.n > uint64(size)-r.off:
		e := eINVAL
		if writes {
			e = eNOSPC
		}
		r.refuse(e, "offset %d and length %d exceed the size %d", r.off, r.n, size)
	case r.cmd == cmdRead && r.n > maxPayload:
		// EOVERFLOW is for clients that know of structured replies.
		e := eOVERFLOW
		if s.mode == simpleReplies {
			e = eINVAL
		}
		r.refuse(e, "length %d exceeds %d", r.n, maxPayload)
	case r.cmd == cmdBlockStatus && r.n == 0:
		// Everywhere else zero bytes are done at once; here at least
		// one extent, itself not empty, would have to be returned.
		r.refuse(eINVAL, "block status of no bytes")
	}
}

func (r *request) refuse(e errno, format string, args ...any) {
	r.err, r.why = e, fmt.Sprintf(format, args...)
}

// contextPayload reads what BLOCK_STATUS carries with PAYLOAD_LEN:
//
//	u64 effect length, then u32 context IDs
//
// and sets the effect length. There is one context, allocationContext.
func (r *request) contextPayload(p []byte) bool {
	if len(p) != 8+4 {
		return false
	}
	r.n = binary.BigEndian.Uint64(p)
	return binary.BigEndian.Uint32(p[8:]) == allocationContext
}

// bufferSize is the memory that serving r takes, in bytes.
func (r *request) bufferSize() int {
	if r.err != eOK {
		return 0
	}
	switch r.cmd {
	case cmdRead, cmdWrite:
		return r.skew() + int(r.n)
	case cmdBlockStatus:
		return extentsSize
	case cmdCache:
		return int(min(r.n, cacheStep))
	}
	return 0
}

// skew is where data begins in its buffer: congruent to the offset, so that
// whole pages amid an unaligned request are aligned in memory too.
func (r *request) skew() int {
	if r.n == 0 {
		return 0
	}
	return int(r.off % pageSize)
}
