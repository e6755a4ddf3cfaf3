package nbd

import "encoding/binary"

// The forms of replies. head and body of a request are set here and nowhere
// else; the writer sends head, then body.

// done answers r with success and no data.
func (r *request) done() {
	if r.c.ses.mode == extendedReplies || r.cmd == cmdRead && r.c.ses.mode != simpleReplies {
		r.chunk(chunkNone, 0)
		return
	}
	r.simple(eOK)
}

// fail answers r with an error, and with a sentence where the form has room
// for one.
func (r *request) fail(e errno, why string) {
	if r.c.ses.mode == simpleReplies {
		r.simple(e)
		r.body = nil
		return
	}
	// u32 error, u16 length of message, message
	why = why[:min(len(why), maxMessage)]
	body := make([]byte, 6+len(why))
	binary.BigEndian.PutUint32(body, uint32(e))
	binary.BigEndian.PutUint16(body[4:], uint16(len(why)))
	copy(body[6:], why)
	r.body = body
	r.chunk(chunkError, len(body))
}

// maxMessage keeps error messages well below the protocol's 4096 bytes.
const maxMessage = 512

// data answers a read. The bytes are in memory, so no error can come after the
// header and one chunk says all, whether or not DF asks for that.
func (r *request) data(p []byte) {
	r.body = p
	if r.c.ses.mode == simpleReplies {
		r.simple(eOK)
		return
	}
	r.chunk(chunkOffsetData, 8+len(p))
	r.head = binary.BigEndian.AppendUint64(r.head, r.off)
}

func (r *request) simple(e errno) {
	h := r.header[:simpleReplySize]
	binary.BigEndian.PutUint32(h, magicSimpleReply)
	binary.BigEndian.PutUint32(h[4:], uint32(e))
	binary.BigEndian.PutUint64(h[8:], r.cookie)
	r.head = h
}

// chunk makes the header of the only and last chunk of a reply, n bytes of
// payload to follow.
func (r *request) chunk(typ uint16, n int) {
	h := r.header[:structuredReplySize]
	magic := magicStructuredReply
	if r.c.ses.mode == extendedReplies {
		h, magic = r.header[:extendedReplySize], magicExtendedReply
		binary.BigEndian.PutUint64(h[16:], r.off)
		binary.BigEndian.PutUint64(h[24:], uint64(n))
	} else {
		binary.BigEndian.PutUint32(h[16:], uint32(n))
	}
	binary.BigEndian.PutUint32(h, magic)
	binary.BigEndian.PutUint16(h[4:], chunkFlagDone)
	binary.BigEndian.PutUint16(h[6:], typ)
	binary.BigEndian.PutUint64(h[8:], r.cookie)
	r.head = h
}
