package main_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
)

// An nbdClient is the smallest client that keeps many requests in flight, for
// tests that must know of each whether it was answered. It uses simple replies.
type nbdClient struct {
	nc net.Conn
	w  *bufio.Writer

	mu      sync.Mutex // guards what follows, and w
	next    uint64     // cookie
	waiting map[uint64]*nbdCall
	err     error // why the connection ended
}

// An nbdCall is one request.
type nbdCall struct {
	into []byte     // of a read
	done chan error // capacity 1; nil: answered well
}

const (
	nbdRead  = 0
	nbdWrite = 1
	nbdFlush = 3
	nbdTrim  = 4
	nbdZero  = 6
)

// dialNBD opens an export at HOST:PORT, or at the Unix socket of a path.
func dialNBD(addr, export string) (*nbdClient, error) {
	network := "tcp"
	if filepath.IsAbs(addr) {
		network = "unix"
	}
	nc, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	c := &nbdClient{nc: nc, w: bufio.NewWriterSize(nc, 256<<10), waiting: map[uint64]*nbdCall{}}
	r := bufio.NewReaderSize(nc, 256<<10)
	if err := c.negotiate(r, export); err != nil {
		nc.Close()
		return nil, err
	}
	go c.readReplies(r)
	return c, nil
}

// negotiate enters the export with NBD_OPT_EXPORT_NAME.
func (c *nbdClient) negotiate(r io.Reader, export string) error {
	var greeting [18]byte
	if _, err := io.ReadFull(r, greeting[:]); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	var size [10]byte // and transmission flags
	_, err := io.ReadFull(r, size[:])
	return err
}

// send sends a request; its answer comes through done.
func (c *nbdClient) send(cmd uint16, off int64, n int, payload, into []byte) *nbdCall {
	call := &nbdCall{into: into, done: make(chan error, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		call.done <- c.err
		return call
	}
	c.next++
	c.waiting[c.next] = call
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 28), 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, c.next)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	// Errors show up where replies are read.
	_, _ = c.w.Write(b)
	_, _ = c.w.Write(payload)
	_ = c.w.Flush()
	return call
}

func (c *nbdClient) write(p []byte, off int64) *nbdCall {
	return c.send(nbdWrite, off, len(p), p, nil)
}
func (c *nbdClient) read(p []byte, off int64) *nbdCall { return c.send(nbdRead, off, len(p), nil, p) }
func (c *nbdClient) flush() *nbdCall                   { return c.send(nbdFlush, 0, 0, nil, nil) }

// readReplies answers calls until the connection ends.
func (c *nbdClient) readReplies(r io.Reader) {
	var err error
	for err == nil {
		err = c.readReply(r)
	}
	c.nc.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for _, call := range c.waiting {
		call.done <- err
	}
	c.waiting = nil
}

func (c *nbdClient) readReply(r io.Reader) error {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	if magic := binary.BigEndian.Uint32(head[:]); magic != 0x67446698 {
		return fmt.Errorf("reply magic %#x", magic)
	}
	cookie := binary.BigEndian.Uint64(head[8:])
	c.mu.Lock()
	call := c.waiting[cookie]
	delete(c.waiting, cookie)
	c.mu.Unlock()
	if call == nil {
		return fmt.Errorf("reply to an unknown request %d", cookie)
	}
	if errno := binary.BigEndian.Uint32(head[4:]); errno != 0 {
		call.done <- fmt.Errorf("NBD error %d", errno)
		return nil
	}
	_, err := io.ReadFull(r, call.into)
	call.done <- err
	return err
}

func (c *nbdClient) close() { c.nc.Close() }
