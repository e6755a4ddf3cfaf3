package remote

import (
	"errors"
	"hash/crc32"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
)

const (
	// inputSize holds a dozen requests of 4 KiB: so many come with one system call.
	inputSize = 128 << 10
	// direct is how much of a body must be missing for reading it straight to
	// where it goes: below, copying costs less than a system call that brings
	// nothing of the next frame.
	direct = 16 << 10
)

// An input reads frames. One goroutine at a time uses it.
type input struct {
	nc   net.Conn
	buf  []byte
	r, w int // unread bytes are buf[r:w]

	moved   atomic.Uint64 // reads that brought something
	waiting atomic.Bool   // for the peer
}

func newInput(nc net.Conn) *input { return &input{nc: nc, buf: make([]byte, inputSize)} }

// next returns n bytes, at most inputSize, good until the next call.
func (in *input) next(n int) ([]byte, error) {
	for in.w-in.r < n {
		if err := in.fill(); err != nil {
			if errors.Is(err, io.EOF) && in.w > in.r {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	b := in.buf[in.r:][:n]
	in.r += n
	return b, nil
}

// fill reads once into the buffer.
func (in *input) fill() error {
	if in.r > 0 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	n, err := in.read(in.buf[in.w:])
	in.w += n
	return err
}

func (in *input) read(p []byte) (int, error) {
	in.waiting.Store(true)
	n, err := in.nc.Read(p)
	in.waiting.Store(false)
	if n > 0 {
		in.moved.Add(1)
		return n, nil // an error comes again
	}
	return n, err
}

// full fills p and returns the checksum sum continued over it, taken while the
// bytes are in the processor's cache.
func (in *input) full(p []byte, sum uint32) (uint32, error) {
	for len(p) > 0 {
		if in.r == in.w {
			if len(p) < direct {
				if err := in.fill(); err != nil {
					return 0, unexpected(err)
				}
				continue
			}
			n, err := in.read(p)
			if err != nil {
				return 0, unexpected(err)
			}
			sum = crc32.Update(sum, castagnoli, p[:n])
			p = p[n:]
			continue
		}
		n := copy(p, in.buf[in.r:in.w])
		in.r += n
		sum = crc32.Update(sum, castagnoli, p[:n])
		p = p[n:]
	}
	return sum, nil
}

// skip drops n bytes.
func (in *input) skip(n int64) error {
	for {
		k := min(n, int64(in.w-in.r))
		in.r += int(k)
		n -= k
		if n == 0 {
			return nil
		}
		if err := in.fill(); err != nil {
			return unexpected(err)
		}
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// An output gathers what leaves with one system call. One goroutine at a time
// uses it.
type output struct {
	nc       net.Conn
	vectored bool // writev, straight from where the bytes are
	bufs     net.Buffers
	work     net.Buffers // what WriteTo consumes
	scratch  []byte      // for connections without writev: few large writes
}

const scratchSize = 64 << 10

func newOutput(nc net.Conn) *output {
	o := &output{nc: nc}
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
		o.vectored = true
	}
	return o
}

// add adds p, which the output reads until flush has returned.
func (o *output) add(p []byte) {
	if len(p) > 0 {
		o.bufs = append(o.bufs, p)
	}
}

// discard forgets what was added.
func (o *output) discard() {
	clear(o.bufs) // keep nothing reachable
	o.bufs = o.bufs[:0]
}

// flush sends what was added.
func (o *output) flush() error {
	defer o.discard()
	if o.vectored {
		release()
		o.work = o.bufs
		_, err := o.work.WriteTo(o.nc)
		o.work = nil
		return err
	}
	return o.gather()
}

// gather copies, so that a TLS connection makes few records.
func (o *output) gather() error {
	if o.scratch == nil {
		o.scratch = make([]byte, 0, scratchSize)
	}
	s := o.scratch[:0]
	for _, b := range o.bufs {
		for len(b) > 0 {
			n := min(len(b), scratchSize-len(s))
			s, b = append(s, b[:n]...), b[n:]
			if len(s) == scratchSize {
				if _, err := o.nc.Write(s); err != nil {
					return err
				}
				s = s[:0]
			}
		}
	}
	if len(s) == 0 {
		return nil
	}
	_, err := o.nc.Write(s)
	return err
}

// isClosed tells errors that only say that a peer went away from those worth
// a line in the log.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrDeadlineExceeded)
}
