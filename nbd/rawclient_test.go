package nbd

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// A rawClient speaks the protocol byte by byte, so that tests can also say
// what no proper client would.
type rawClient struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

const testTimeout = 20 * time.Second

// dialRaw connects and exchanges flags.
func dialRaw(t testing.TB, network, addr string, flags uint32) *rawClient {
	t.Helper()
	nc, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	c := &rawClient{t: t, nc: nc, br: bufio.NewReaderSize(nc, 256<<10)}
	nc.SetDeadline(time.Now().Add(testTimeout))
	var h [18]byte
	c.read(h[:])
	if binary.BigEndian.Uint64(h[:]) != magicInit || binary.BigEndian.Uint64(h[8:]) != magicOption ||
		binary.BigEndian.Uint16(h[16:]) != handshakeFixedNewstyle|handshakeNoZeroes {
		t.Fatalf("greeting %x", h)
	}
	c.write(binary.BigEndian.AppendUint32(nil, flags))
	return c
}

func (c *rawClient) read(p []byte) {
	c.t.Helper()
	if _, err := io.ReadFull(c.br, p); err != nil {
		c.t.Fatalf("reading %d bytes: %v", len(p), err)
	}
}

func (c *rawClient) write(p []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(p); err != nil {
		c.t.Fatalf("writing %d bytes: %v", len(p), err)
	}
}

// closed fails the test unless the server closes the connection without
// another byte.
func (c *rawClient) closed() {
	c.t.Helper()
	if b, err := c.br.ReadByte(); err == nil {
		c.t.Fatalf("got byte %#x, want the end of the connection", b)
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.t.Fatal("the connection is still open")
	}
}

// optReply is one reply to an option.
type optReply struct {
	typ  replyType
	data string
}

func rawOption(opt option, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// option sends an option and returns its replies, the final one last.
func (c *rawClient) option(opt option, data []byte) []optReply {
	c.t.Helper()
	c.write(rawOption(opt, data))
	return c.optionReplies(opt)
}

func (c *rawClient) optionReplies(opt option) (all []optReply) {
	c.t.Helper()
	for {
		var h [20]byte
		c.read(h[:])
		if m := binary.BigEndian.Uint64(h[:]); m != magicReply {
			c.t.Fatalf("reply magic %#x", m)
		}
		if o := option(binary.BigEndian.Uint32(h[8:])); o != opt {
			c.t.Fatalf("reply to option %d, want %d", o, opt)
		}
		typ := replyType(binary.BigEndian.Uint32(h[12:]))
		data := make([]byte, binary.BigEndian.Uint32(h[16:]))
		c.read(data)
		all = append(all, optReply{typ, string(data)})
		if typ == repAck || typ >= 1<<31 {
			return all
		}
	}
}

// mustAck sends an option that must be accepted.
func (c *rawClient) mustAck(opt option, data []byte) []optReply {
	c.t.Helper()
	all := c.option(opt, data)
	if last := all[len(all)-1]; last.typ != repAck {
		c.t.Fatalf("option %d: reply %#x %s", opt, uint32(last.typ), last.data)
	}
	return all
}

// goData is the data of NBD_OPT_GO and INFO.
func goData(name string, infos ...uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(infos)))
	for _, i := range infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

// metaData is the data of LIST and SET_META_CONTEXT.
func metaData(name string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// enter negotiates mode and opens an export.
func enter(t testing.TB, network, addr, name string, mode replyMode, contexts bool) *rawClient {
	t.Helper()
	c := dialRaw(t, network, addr, clientFixedNewstyle|clientNoZeroes)
	switch mode {
	case structuredReplies:
		c.mustAck(optStructuredReply, nil)
	case extendedReplies:
		c.mustAck(optExtendedHeaders, nil)
	}
	if contexts {
		c.mustAck(optSetMetaContext, metaData(name, allocationContextName))
	}
	c.mustAck(optGo, goData(name))
	return c
}

// rawRequest is a request as bytes.
func rawRequest(mode replyMode, flags, cmd uint16, cookie, off, n uint64, payload []byte) []byte {
	magic := magicRequest
	if mode == extendedReplies {
		magic = magicExtendedRequest
	}
	b := binary.BigEndian.AppendUint32(nil, magic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, off)
	if mode == extendedReplies {
		b = binary.BigEndian.AppendUint64(b, n)
	} else {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
	}
	return append(b, payload...)
}

// rawReply is a reply or one chunk of it.
type rawReply struct {
	magic  uint32
	flags  uint16
	typ    uint16
	cookie uint64
	off    uint64 // extended
	err    errno
	msg    string // of an error chunk
	data   []byte // payload; of a simple reply to a read that succeeded: dataLen bytes
}

// reply reads one reply or chunk.
func (c *rawClient) reply(dataLen int) rawReply {
	c.t.Helper()
	var h [32]byte
	c.read(h[:16])
	r := rawReply{magic: binary.BigEndian.Uint32(h[:]), cookie: binary.BigEndian.Uint64(h[8:])}
	n := dataLen
	switch r.magic {
	case magicSimpleReply:
		if r.err = errno(binary.BigEndian.Uint32(h[4:])); r.err != eOK {
			n = 0
		}
	case magicStructuredReply:
		c.read(h[16:20])
		n = int(binary.BigEndian.Uint32(h[16:]))
	case magicExtendedReply:
		c.read(h[16:32])
		r.off = binary.BigEndian.Uint64(h[16:])
		n = int(binary.BigEndian.Uint64(h[24:]))
	default:
		c.t.Fatalf("reply magic %#x", r.magic)
	}
	r.data = make([]byte, n)
	c.read(r.data)
	if r.magic != magicSimpleReply {
		r.flags = binary.BigEndian.Uint16(h[4:])
		r.typ = binary.BigEndian.Uint16(h[6:])
		if r.typ == chunkError {
			r.err = errno(binary.BigEndian.Uint32(r.data))
			r.msg = string(r.data[6:])
		}
	}
	return r
}
