package nbd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
)

// A conn is one connection after its negotiation.
//
//	reader ──request──▶ worker ──reply──▶ writer
//	   └───── or serves it itself ───────────┘
//
// One goroutine at a time is the reader. It hands requests to workers, except
// when the client waits for each reply before it sends the next request: then
// handing over would only cost time, and the reader serves the request itself.
// Should that take long after all, the watch gives the reading to a new
// goroutine (see turn), so no request waits behind a slow one for more than a
// few milliseconds. Whoever has finished a request writes its reply, and those
// that others finish meanwhile (see reply).
type conn struct {
	srv  *Server
	nc   net.Conn
	wire wire
	log  *slog.Logger
	dev  Device
	ses  session

	limit  *limiter // what this connection may have in flight
	waiter waiter

	in    readBuffer // the reader's
	alone int        // the reader's: requests in a row that came alone
	doubt bool       // the reader's: the last one was there when it was looked for

	// turn says who reads. Even: the reader reads. Odd: it serves a request
	// itself; then either it takes the turn back, or the watch takes it
	// and starts another reader.
	turn    atomic.Uint64
	watched uint64       // turn as the watch saw it last
	busy    atomic.Int32 // requests that workers have and have not finished

	readDone chan struct{} // closed when nobody reads any more
	readErr  error         // why, set before

	draining atomic.Bool
	failed   atomic.Int64 // when a failing request was logged last, Unix nanoseconds
	out      writer
}

// aloneEnough is how many requests in a row must have come alone before the
// reader serves them itself.
const aloneEnough = 8

func newConn(s *Server, nc net.Conn, w wire, log *slog.Logger, dev Device, ses session) *conn {
	c := &conn{
		srv: s, nc: nc, wire: w, log: log, dev: dev, ses: ses,
		limit:    newLimiter(s.opt.MaxConnInFlight, s.opt.MaxConnBytes),
		waiter:   waiter{ready: make(chan bool, 1)},
		in:       readBuffer{pool: &s.buffers},
		alone:    aloneEnough,
		readDone: make(chan struct{}),
	}
	c.out.idle.L = &c.out.mu
	return c
}

// run serves the connection to its end: until the client has disconnected or
// broken the protocol, and all its requests have been answered.
func (c *conn) run() error {
	c.read()
	<-c.readDone
	c.waitIdle()
	c.in.free()
	return c.readErr
}

// read is the reader. It returns when reading has ended, or when the watch has
// given it to somebody else.
func (c *conn) read() {
	for {
		r, err := c.next()
		if err != nil {
			c.readErr = err
			close(c.readDone)
			return
		}
		c.out.running.Add(1)
		if c.draining.Load() && r.err == eOK {
			r.refuse(eSHUTDOWN, "the server is shutting down")
		}
		if c.alone >= aloneEnough && c.in.buffered() == 0 {
			if !c.serveInTurn(r) {
				return
			}
			continue
		}
		c.busy.Add(1)
		c.srv.workers.run(r)
	}
}

// serveInTurn serves r on the reader's goroutine. False: this took long, and
// another goroutine reads now. If there is a doubt, what has arrived before the
// reply is sent tells whether the client waits for it.
func (c *conn) serveInTurn(r *request) bool {
	doubt := c.doubt // no longer this goroutine's once the turn may be lost
	turn := c.turn.Add(1)
	c.srv.watch.alert()
	c.perform(r)
	more := doubt && c.wire.pending()
	c.reply(r)
	if !c.turn.CompareAndSwap(turn, turn+1) {
		return false
	}
	if more {
		c.alone = 0
	}
	return true
}

// takeTurn is called by the watch: if the reader has been serving one request
// since the last call, another reader takes over.
func (c *conn) takeTurn() (serving bool) {
	turn := c.turn.Load()
	if turn%2 == 0 {
		c.watched = turn
		return false
	}
	if turn != c.watched {
		c.watched = turn
		return true
	}
	if c.turn.CompareAndSwap(turn, turn+1) {
		go func() {
			c.alone = 0
			c.read()
		}()
	}
	return true
}

// errDisconnect ends reading as the client asked.
var errDisconnect = errors.New("client disconnected")

// next reads one request, its payload included. What it needs is taken from
// the limiters before anything is allocated.
func (c *conn) next() (*request, error) {
	r := c.srv.getRequest(c)
	waited, err := c.readHeader(r)
	if err != nil {
		c.srv.putRequest(r)
		return nil, err
	}
	if r.cmd == cmdDisc {
		c.srv.putRequest(r)
		return nil, errDisconnect
	}
	// A client that waits for replies is one whose request comes after a
	// wait, when nothing else is under way. Once that is known, a request that
	// was quicker than the reader only raises a doubt: see serveInTurn.
	c.doubt = !waited
	if c.busy.Load() > 0 || c.doubt && c.alone < aloneEnough {
		c.alone = 0
	} else {
		c.alone++
	}
	payload := c.ses.payloadLen(r)
	c.ses.check(r, c.dev.Size())
	if r.err == eOK && payload > 0 && r.cmd == cmdBlockStatus {
		err = c.readContexts(r, payload)
		payload = 0
	}
	if err == nil {
		err = c.prepare(r, payload)
	}
	if err != nil {
		c.srv.putRequest(r)
		return nil, err
	}
	return r, nil
}

func (c *conn) readHeader(r *request) (waited bool, err error) {
	size := requestSize
	if c.ses.mode == extendedReplies {
		size = extendedRequestSize
	}
	for c.in.buffered() < size {
		_, w, err := c.wire.fill(nil, &c.in, c.alone >= aloneEnough)
		if err != nil {
			if errors.Is(err, io.EOF) && c.in.buffered() > 0 {
				err = io.ErrUnexpectedEOF
			}
			return waited, err
		}
		waited = waited || w
	}
	h := c.in.buf[c.in.r:][:size]
	c.in.r += size
	return waited, r.parse(h, c.ses.mode)
}

// prepare takes from the limiters what r needs, and reads its payload.
func (c *conn) prepare(r *request, payload uint64) error {
	size := r.bufferSize()
	r.charge = bufferCharge(size)
	if !c.limit.acquire(r.charge, &c.waiter) {
		return ErrServerClosed
	}
	if !c.srv.limit.acquire(r.charge, &c.waiter) {
		c.limit.release(1, r.charge)
		return ErrServerClosed
	}
	if size > 0 {
		r.buf = c.srv.buffers.get(size)
	}
	var err error
	switch {
	case payload == 0:
		return nil
	case r.err != eOK:
		err = c.skip(payload)
	default:
		r.payload = r.buf[r.skew():][:payload]
		err = c.readFull(r.payload)
	}
	if err != nil {
		c.release(r)
	}
	return err
}

// readFull fills p from the client.
func (c *conn) readFull(p []byte) error {
	p = p[c.in.take(p):]
	for len(p) > 0 {
		n, _, err := c.wire.fill(p, &c.in, false)
		if err != nil {
			return unexpected(err)
		}
		p = p[n:]
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// skip drops a payload that was refused, so that the next request is found.
// One too long for that ends the connection, as the document allows.
func (c *conn) skip(n uint64) error {
	most := uint64(maxSkip)
	if c.ses.mode == extendedReplies {
		most = maxPayload
	}
	if n > most {
		return fmt.Errorf("payload of %d bytes, more than %d", n, most)
	}
	left := int64(n)
	for {
		left -= c.in.skip(left)
		if left == 0 {
			return nil
		}
		if _, _, err := c.wire.fill(nil, &c.in, false); err != nil {
			return unexpected(err)
		}
	}
}

// readContexts reads the payload of a BLOCK_STATUS request.
func (c *conn) readContexts(r *request, payload uint64) error {
	p := r.header[:min(payload, uint64(len(r.header)))]
	if payload > uint64(len(p)) {
		r.refuse(eINVAL, "payload of %d bytes for one context", payload)
		return c.skip(payload)
	}
	if err := c.readFull(p); err != nil {
		return err
	}
	if !r.contextPayload(p) {
		r.refuse(eINVAL, "metadata contexts unknown or named twice")
		return nil
	}
	c.ses.checkRange(r, c.dev.Size())
	return nil
}

// release gives back what r holds, and r.
func (c *conn) release(r *request) {
	if r.buf != nil {
		c.srv.buffers.put(r.buf)
	}
	c.srv.limit.release(1, r.charge)
	c.limit.release(1, r.charge)
}

// waitIdle returns when every request that was read has been answered, or can
// no longer be.
func (c *conn) waitIdle() {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	for c.out.running.Load() > 0 {
		c.out.idle.Wait()
	}
}
