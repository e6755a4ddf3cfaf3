package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"torus/store"
)

// A serverConn is one client's connection.
//
//	reader ──job──▶ worker ──job──▶ replies
//
// The reader reads requests with their bodies, as many as the limit lets it;
// a worker has the store do one; whoever is done first sends its answer and
// those that others finish meanwhile.
type serverConn struct {
	srv    *Server
	nc     net.Conn
	ctx    context.Context // of all requests; done when nobody waits for answers
	cancel context.CancelFunc
	key    sessionKey
	in     *input
	limit  *limit
	out    replies
	chain  []byte // the reader's

	pinged   atomic.Uint64 // the client's last opAlive
	draining atomic.Bool
	why      atomic.Pointer[error] // that the connection was ended
	done     chan struct{}         // closed when nothing is under way any more
}

func newServerConn(s *Server, nc net.Conn) *serverConn {
	c := &serverConn{srv: s, nc: nc, in: newInput(nc), limit: newLimit(s.options.MaxInFlight, s.options.MaxBytes),
		done: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.out.c, c.out.output = c, newOutput(nc)
	return c
}

// run serves the connection to its end.
func (c *serverConn) run() {
	defer close(c.done)
	defer c.cancel()
	defer c.nc.Close()
	err := c.srv.welcome(c)
	if err == nil {
		err = c.converse()
	}
	c.srv.retire(c)
	c.log(err)
}

// converse serves requests until the connection ends, and returns why it did,
// when nothing is under way any more.
func (c *serverConn) converse() error {
	stop := make(chan struct{})
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		c.keepAlive(stop)
	}()
	err := c.read()
	if !c.draining.Load() {
		c.end(err)
	}
	c.limit.wait()
	close(stop)
	if c.draining.Load() {
		c.farewell()
	}
	c.nc.Close() // lest a beat hangs in a write
	<-kept
	c.out.beats.Wait()
	return err
}

// farewell lets the client read its last answers: closing with requests unread
// would take them from it.
func (c *serverConn) farewell() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.nc.SetReadDeadline(time.Now().Add(beat)) != nil {
		return
	}
	for {
		if n, err := c.in.nc.Read(c.in.buf); n == 0 || err != nil {
			return
		}
	}
}

func (c *serverConn) log(err error) {
	if why := c.why.Load(); why != nil {
		err = *why
	}
	switch {
	case isClosed(err) || errors.Is(err, errSucceeded) || errors.Is(err, context.Canceled):
		c.srv.options.Logger.Debug("block connection ended", "peer", c.nc.RemoteAddr(), "err", err)
	default:
		c.srv.options.Logger.Warn("block connection ended", "peer", c.nc.RemoteAddr(), "err", err)
	}
}

// end breaks the connection. What is under way goes on where the store does
// not heed its context.
func (c *serverConn) end(why error) {
	c.why.CompareAndSwap(nil, &why)
	c.cancel()
	c.limit.end()
	c.nc.Close()
}

// drain ends reading; what was read is answered.
func (c *serverConn) drain() {
	c.draining.Store(true)
	c.limit.end()
	if err := c.nc.SetReadDeadline(time.Now()); err != nil {
		c.end(err)
	}
}

var errEnded = errors.New("connection is being ended")

// read reads requests until the connection ends; it never returns nil.
func (c *serverConn) read() error {
	if c.draining.Load() {
		return errEnded // whose deadline the greeting may have taken back
	}
	for {
		h, err := c.in.next(requestSize)
		if err != nil {
			return err
		}
		j := c.srv.getJob()
		if err := j.req.decode(h); err != nil {
			return err
		}
		if j.req.op == opAlive {
			c.pinged.Store(j.req.id)
			c.srv.jobs.Put(j)
			continue
		}
		charge := j.req.memory()
		if !c.limit.take(charge) {
			return errEnded
		}
		j.c, j.charge = c, charge
		if err := c.body(j); err != nil {
			j.release()
			c.limit.give(1, charge)
			return err
		}
		c.srv.workers.run(j)
	}
}

// memory is what serving r may take, in bytes.
func (r *request) memory() int64 {
	switch {
	case r.op == opRead || r.op == opReadSealed:
		const info = 24 + runSize // of a page: store.PageInfo, encoded
		return 1<<bufferClass(int(r.n)) + r.n/store.PageSize*info + int64(r.count)*8
	case r.body > 0:
		return 1 << bufferClass(int(r.body))
	}
	return listBody
}

// body reads what follows a header.
func (c *serverConn) body(j *job) error {
	var sum uint32
	var err error
	j.chain = j.chain[:0]
	switch {
	case j.req.op == opRead || j.req.op == opReadSealed:
		size := int(j.req.count) * 8
		if cap(c.chain) < size {
			c.chain = make([]byte, size)
		}
		p := c.chain[:size]
		sum, err = c.in.full(p, 0)
		if j.req.layer != 0 {
			j.chain = append(j.chain, j.req.layer)
		}
		for ; len(p) > 0; p = p[8:] {
			j.chain = append(j.chain, store.LayerID(le.Uint64(p)))
		}
	case j.req.body > 0:
		j.buf = c.srv.buffers.get(int(j.req.body))
		sum, err = c.in.full(j.buf, 0)
	}
	if err == nil && sum != j.req.bodySum {
		err = fmt.Errorf("body of a %v has checksum %#x, its header says %#x", j.req.op, sum, j.req.bodySum)
	}
	return err
}

// serve has the store do j and answers.
func (c *serverConn) serve(j *job) {
	j.perform()
	c.out.send(j)
}

// Keep-alive. Each side sends opAlive at every beat, whatever else it sends:
// the client a number that it counts up, the server the last one it has read.
// A peer from which nothing came for some beats is dead; one that is merely
// slow with its store is not, since beats don't wait for requests. Beats are
// counted rather than measured, so that a process that was stopped itself, and
// goes on, gives its peer time to say something.
const (
	beat         = 500 * time.Millisecond
	clientSilent = 4  // beats without a byte after which a server is dead
	clientLag    = 20 // beats that the server may be late with reading
	serverSilent = 20 // beats without a byte after which a client is dead
	serverStuck  = 60 // beats without an answer leaving after which a client is dead
)

var (
	errSilent = errors.New("the peer is silent")
	errLag    = errors.New("the peer has not read what was sent")
)

// keepAlive tells the client that this server lives, and ends the connection
// of one that doesn't.
func (c *serverConn) keepAlive(stop <-chan struct{}) {
	t := time.NewTicker(beat)
	defer t.Stop()
	var moved, sent uint64
	silent := 0
	for {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		// A reader that waits for memory hears nothing, and may not judge.
		silent++
		if now := c.in.moved.Load(); now != moved || !c.in.waiting.Load() {
			moved, silent = now, 0
		}
		if silent >= serverSilent && !c.draining.Load() {
			c.end(errSilent)
		}
		if now, sending := c.out.progress(); now != sent || !sending {
			sent = now
			if err := c.nc.SetWriteDeadline(time.Now().Add(serverStuck * beat)); err != nil {
				c.end(err)
			}
		}
		c.out.alive(c.pinged.Load())
	}
}
