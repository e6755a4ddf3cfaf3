package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// A wire moves bytes of one connection: straight between socket and buffers
// where it can, through the TLS library where it must. One goroutine reads and
// one writes at a time.
type wire interface {
	// fill reads once, waiting if need be: first into p, which may be
	// empty, and what has arrived beyond that into b. It returns how many
	// bytes went to p, and whether it had to wait for any. soon says that
	// more is expected within lookoutFor.
	fill(p []byte, b *readBuffer, soon bool) (n int, waited bool, err error)

	// send writes all of bufs, in order.
	send(bufs [][]byte) error

	// pending tells whether the peer has sent what was not read yet. Unlike
	// fill it may be called by anybody.
	pending() bool

	// blocked tells whether a payload or a reply is stuck because the
	// peer moves no bytes, and how many have moved in all.
	blocked() (stuck bool, moved int64)
}

// newWire picks the way for a connection.
func newWire(nc net.Conn, l *lookouts) wire {
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			return newSocketWire(raw, l)
		}
	}
	return &streamWire{nc: nc}
}

// readBufferSize holds a dozen writes of 4 KiB, headers included.
const readBufferSize = 64 << 10

// stubSize holds what is left of an incomplete header while a connection
// waits for the rest: an extended request header is 32 bytes.
const stubSize = 32

// A readBuffer holds what was read from a socket and not yet looked at. It has
// memory only while there is something to hold: a connection that is silent,
// be it amid a header, costs nothing but itself.
type readBuffer struct {
	pool *bufferPool
	buf  []byte // nil while idle
	r, w int    // unread bytes are buf[r:w]
	stub [stubSize]byte
	kept int // bytes in stub while buf is nil
}

func (b *readBuffer) buffered() int { return b.w - b.r + b.kept }

// space returns room for reading into, moving what is unread to the front.
func (b *readBuffer) space() []byte {
	if b.buf == nil {
		b.buf = b.pool.get(readBufferSize)
		b.r, b.w = 0, copy(b.buf, b.stub[:b.kept])
		b.kept = 0
	} else if b.r > 0 {
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	}
	return b.buf[b.w:]
}

// rest gives the memory back before a wait, if what is unread fits the stub.
func (b *readBuffer) rest() {
	if b.buf == nil || b.w-b.r > stubSize {
		return
	}
	b.kept = copy(b.stub[:], b.buf[b.r:b.w])
	b.free()
}

// free gives the memory back, whatever is in it.
func (b *readBuffer) free() {
	if b.buf != nil {
		b.pool.put(b.buf)
		b.buf, b.r, b.w = nil, 0, 0
	}
}

// take moves up to len(p) unread bytes to p.
func (b *readBuffer) take(p []byte) int {
	n := copy(p, b.buf[b.r:b.w])
	b.r += n
	return n
}

// skip drops up to n unread bytes.
func (b *readBuffer) skip(n int64) int64 {
	n = min(n, int64(b.w-b.r))
	b.r += int(n)
	return n
}

// A socketWire reads and writes a socket with readv and writev, so that a
// payload goes from the kernel to its buffer in one copy, together with the
// headers behind it, and a batch of replies is one system call. The net
// package would need one call for each of these, or copying.
type socketWire struct {
	raw   syscall.RawConn
	moved atomic.Int64 // bytes, both ways
	in    struct {
		p       []byte
		b       *readBuffer
		n       int // result of the system call
		waited  bool
		err     error
		iov     [2]syscall.Iovec
		lookout lookout
		try     func(fd uintptr) bool // one method value, so that no call allocates
		stuck   atomic.Bool
	}
	out struct {
		iov   []syscall.Iovec // what is still to be written
		all   []syscall.Iovec // its backing
		err   error
		try   func(fd uintptr) bool
		stuck atomic.Bool
	}
	ask struct {
		try  func(fd uintptr)
		more atomic.Bool
	}
}

func newSocketWire(raw syscall.RawConn, l *lookouts) *socketWire {
	s := &socketWire{raw: raw}
	s.in.lookout.all = l
	s.in.try = s.tryRead
	s.out.try = s.tryWrite
	s.ask.try = s.askPending
	return s
}

func (s *socketWire) fill(p []byte, b *readBuffer, soon bool) (n int, waited bool, err error) {
	in := &s.in
	in.lookout.begin(soon)
	in.p, in.b, in.waited, in.err = p, b, false, nil
	err = s.raw.Read(in.try)
	in.p = nil
	in.iov[0].Base, in.iov[1].Base = nil, nil
	if err == nil {
		err = in.err
	}
	if err != nil {
		return 0, in.waited, err
	}
	if in.n == 0 {
		return 0, in.waited, io.EOF
	}
	s.moved.Add(int64(in.n))
	n = min(in.n, len(p))
	b.w += in.n - n
	return n, in.waited, nil
}

// tryRead is called by the runtime until it returns true; between calls the
// goroutine waits for the socket.
func (s *socketWire) tryRead(fd uintptr) bool {
	in := &s.in
	space := in.b.space()
	for {
		var n uintptr
		var e syscall.Errno
		if len(in.p) > 0 {
			in.iov[0].Base = &in.p[0]
			in.iov[0].SetLen(len(in.p))
			in.iov[1].Base = &space[0]
			in.iov[1].SetLen(len(space))
			n, e = readv(fd, in.iov[:])
		} else {
			in.iov[0].Base = &space[0]
			in.iov[0].SetLen(len(space))
			n, e = readv(fd, in.iov[:1])
		}
		switch e {
		case 0:
			in.n = int(n)
			in.stuck.Store(false)
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			in.waited = true
			if in.lookout.wait(fd) {
				continue
			}
			in.b.rest()
			if len(in.p) > 0 {
				in.stuck.Store(true)
			}
			return false
		default:
			in.err = os.NewSyscallError("readv", e)
			return true
		}
	}
}

// maxIOV is the kernel's bound on buffers in one writev.
const maxIOV = 1024

func (s *socketWire) pending() bool {
	return s.raw.Control(s.ask.try) == nil && s.ask.more.Load()
}

func (s *socketWire) askPending(fd uintptr) {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	s.ask.more.Store(err == nil && n > 0)
}

func (s *socketWire) send(bufs [][]byte) error {
	out := &s.out
	out.all = out.all[:0]
	for _, b := range bufs {
		if len(b) > 0 {
			v := syscall.Iovec{Base: &b[0]}
			v.SetLen(len(b))
			out.all = append(out.all, v)
		}
	}
	out.iov, out.err = out.all, nil
	err := s.raw.Write(out.try)
	clear(out.all) // keep no buffers reachable
	if err == nil {
		err = out.err
	}
	return err
}

func (s *socketWire) tryWrite(fd uintptr) bool {
	out := &s.out
	for len(out.iov) > 0 {
		n, e := writev(fd, out.iov[:min(len(out.iov), maxIOV)])
		switch e {
		case 0:
			s.moved.Add(int64(n))
			out.iov = advance(out.iov, n)
		case syscall.EINTR:
		case syscall.EAGAIN:
			out.stuck.Store(true)
			return false
		default:
			out.err = os.NewSyscallError("writev", e)
			return true
		}
	}
	if out.stuck.Load() {
		out.stuck.Store(false)
	}
	return true
}

func (s *socketWire) blocked() (bool, int64) {
	return s.in.stuck.Load() || s.out.stuck.Load(), s.moved.Load()
}

// A streamWire is for connections that are not plain sockets: TLS, and pipes
// in tests.
type streamWire struct {
	nc      net.Conn
	moved   atomic.Int64
	reading atomic.Bool // amid a payload
	writing atomic.Bool
	head    [stubSize]byte
	scratch []byte // replies are gathered here, so that few TLS records are made
}

// scratchSize is four TLS records.
const scratchSize = 64 << 10

// pending is not known: bytes may lie in the library.
func (s *streamWire) pending() bool { return true }

// fill never says that it waited, as it cannot know: so the connection takes
// no shortcut meant for clients that have one request under way.
func (s *streamWire) fill(p []byte, b *readBuffer, _ bool) (n int, waited bool, err error) {
	if len(p) == 0 {
		b.rest()
		n, err = s.nc.Read(s.head[:])
		b.w += copy(b.space(), s.head[:n])
	} else {
		b.rest()
		s.reading.Store(true)
		n, err = s.nc.Read(p)
		s.reading.Store(false)
	}
	s.moved.Add(int64(n))
	if n > 0 {
		err = nil // an error comes again
	}
	if len(p) == 0 {
		n = 0
	}
	return n, false, err
}

func (s *streamWire) send(bufs [][]byte) error {
	s.writing.Store(true)
	defer s.writing.Store(false)
	if s.scratch == nil {
		s.scratch = make([]byte, 0, scratchSize)
	}
	s.scratch = s.scratch[:0]
	for _, b := range bufs {
		for len(b) > 0 {
			n := min(len(b), scratchSize-len(s.scratch))
			s.scratch = append(s.scratch, b[:n]...)
			b = b[n:]
			if len(s.scratch) == scratchSize {
				if err := s.flush(); err != nil {
					return err
				}
			}
		}
	}
	return s.flush()
}

func (s *streamWire) flush() error {
	n, err := s.nc.Write(s.scratch)
	s.moved.Add(int64(n))
	s.scratch = s.scratch[:0]
	return err
}

func (s *streamWire) blocked() (bool, int64) {
	return s.reading.Load() || s.writing.Load(), s.moved.Load()
}

// isClosed tells errors that only say that a peer went away from those worth
// a line in the log.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrDeadlineExceeded)
}
