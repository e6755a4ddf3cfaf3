package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// serve has the device do r and answers it.
func (c *conn) serve(r *request) {
	c.perform(r)
	c.busy.Add(-1)
	c.reply(r)
}

// perform has the device do r and makes the reply.
func (c *conn) perform(r *request) {
	if r.err != eOK {
		r.fail(r.err, r.why)
		return
	}
	if r.n == 0 && r.cmd != cmdFlush {
		r.done() // nothing to do is not an error
		return
	}
	c.srv.stats.ops[r.cmd].Add(1)
	var err error
	off, n, fua := int64(r.off), int64(r.n), r.flags&cmdFlagFUA != 0
	switch r.cmd {
	case cmdRead:
		p := r.buf[r.skew():][:n]
		if err = readFull(c.dev, p, off); err == nil {
			c.srv.stats.bytesRead.Add(n)
			r.data(p)
			return
		}
	case cmdWrite:
		if fua {
			_, err = c.dev.WriteAtSync(r.payload, off)
		} else {
			_, err = c.dev.WriteAt(r.payload, off)
		}
		c.srv.stats.bytesWritten.Add(n)
	case cmdFlush:
		err = c.dev.Sync()
	case cmdTrim:
		err = c.dev.Trim(off, n, fua)
	case cmdWriteZeroes:
		err = c.zero(r, off, n, fua)
	case cmdCache:
		err = c.cache(r, off, n)
	case cmdBlockStatus:
		if err = c.blockStatus(r, off, n); err == nil {
			return
		}
	}
	if err != nil {
		if c.over() {
			c.nc.Close() // before there is a reply, which so is not sent
		}
		e := errnoOf(r.cmd, r.flags, err)
		c.srv.stats.errors.Add(1)
		c.logFailure(r, e, err)
		r.fail(e, err.Error())
		return
	}
	r.done()
}

// over reports whether the device has ended. Then a request that failed is not answered.
// The kernel's client makes EIO of an ESHUTDOWN, for which a file system turns read-only;
// what had no answer when the connection broke it sends again over the next one, where it
// was told to wait for that (dead_conn_timeout), and so does qemu's (reconnect-delay).
func (c *conn) over() bool {
	e, is := c.dev.(Ender)
	if !is {
		return false
	}
	select {
	case <-e.Done():
		return true
	default:
		return false
	}
}

// failureEvery is how often a connection's failing requests are logged: a
// broken device fails thousands a second.
const failureEvery = time.Second

func (c *conn) logFailure(r *request, e errno, err error) {
	now, last := time.Now().UnixNano(), c.failed.Load()
	if now-last < int64(failureEvery) || !c.failed.CompareAndSwap(last, now) {
		return
	}
	c.log.Warn("request failed", "command", commandName(r.cmd), "offset", r.off, "length", r.n, "errno", e.String(), "err", err)
}

// readFull reads all of p, as io.ReaderAt promises: also with io.EOF at the
// end of the device.
func readFull(dev Device, p []byte, off int64) error {
	n, err := dev.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (c *conn) zero(r *request, off, n int64, fua bool) error {
	noHole := r.flags&cmdFlagNoHole != 0
	if r.flags&cmdFlagFastZero != 0 {
		fast := !noHole
		if f, ok := c.dev.(FastZeroer); ok {
			fast = f.FastZero(noHole)
		}
		if !fast {
			return ErrNotSupported
		}
	}
	return c.dev.Zero(off, n, fua, noHole)
}

// cacheStep is the size of reads, in bytes, that NBD_CMD_CACHE is done with;
// cacheMost is where it stops: the command is a hint.
const (
	cacheStep = 256 << 10
	cacheMost = 32 << 20
)

func (c *conn) cache(r *request, off, n int64) error {
	if d, ok := c.dev.(Cacher); ok {
		return d.Cache(off, n)
	}
	for end := off + min(n, cacheMost); off < end; {
		p := r.buf[:min(int64(len(r.buf)), end-off)]
		if err := readFull(c.dev, p, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// extentsSize is the most that a reply to BLOCK_STATUS holds, in bytes: 8191
// extents, 4095 extended ones. The document allows a server to stop early,
// and a fixed size needs no other bound on memory.
const extentsSize = 64 << 10

// blockStatus answers with the extents of [off, off+n) in the one context that
// there is.
//
//	structured  u32 context, then u32 length, u32 flags for each extent
//	extended    u32 context, u32 count, then u64 length, u64 flags for each
func (c *conn) blockStatus(r *request, off, n int64) error {
	l := extentList{ext: c.ses.mode == extendedReplies, p: r.buf[:0], most: extentsSize}
	typ := chunkBlockStatus
	l.p = binary.BigEndian.AppendUint32(l.p, allocationContext)
	if l.ext {
		typ = chunkBlockStatusExt
		l.p = binary.BigEndian.AppendUint32(l.p, 0) // count, set below
	}
	if r.flags&cmdFlagReqOne != 0 {
		l.most = len(l.p) + l.size()
	}
	at, end := off, off+n
	for e, err := range c.dev.Extents(off, n) {
		if err != nil {
			if l.count == 0 {
				return err
			}
			break // the client asks again from there and gets the error
		}
		if e.Off != at || e.Len <= 0 {
			return errBadExtents
		}
		e.Len = min(e.Len, end-at)
		at += e.Len
		if !l.add(e) || at >= end {
			break
		}
	}
	if l.count == 0 {
		return errBadExtents
	}
	if l.ext {
		binary.BigEndian.PutUint32(l.p[4:], uint32(l.count))
	}
	r.body = l.p
	r.chunk(typ, len(l.p))
	return nil
}

var errBadExtents = errors.New("nbd: the device's extents are not in order or have gaps")

// An extentList is a reply to BLOCK_STATUS in the making. Neighbours of equal
// status become one.
type extentList struct {
	ext   bool // 64-bit form
	p     []byte
	most  int // bytes
	count int
	last  uint32 // flags of the last extent
}

func (l *extentList) size() int {
	if l.ext {
		return 16
	}
	return 8
}

// add appends e; false: there is no room for it or for more.
func (l *extentList) add(e Extent) bool {
	var flags uint32
	if e.Hole {
		flags |= stateHole
	}
	if e.Zero {
		flags |= stateZero
	}
	if l.count > 0 && flags == l.last {
		at := l.p[len(l.p)-l.size():]
		if l.ext {
			binary.BigEndian.PutUint64(at, binary.BigEndian.Uint64(at)+uint64(e.Len))
		} else { // a request is shorter than 4 GiB, so this does not overflow
			binary.BigEndian.PutUint32(at, binary.BigEndian.Uint32(at)+uint32(e.Len))
		}
		return true
	}
	if len(l.p)+l.size() > l.most {
		return false
	}
	if l.ext {
		l.p = binary.BigEndian.AppendUint64(l.p, uint64(e.Len))
		l.p = binary.BigEndian.AppendUint64(l.p, uint64(flags))
	} else {
		l.p = binary.BigEndian.AppendUint32(l.p, uint32(e.Len))
		l.p = binary.BigEndian.AppendUint32(l.p, flags)
	}
	l.count++
	l.last = flags
	return true
}
