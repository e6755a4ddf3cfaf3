package remote

import (
	"context"
	"errors"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A stage is how far a call has come on a connection.
//
//	backlog ──a slot is free──▶ queued ──▶ underWay ──▶ finished
//
// Under way it is first being written, later its answer is being read, and a
// hasty peer has both at once. Then the connection uses the caller's slices,
// and a method that gives up has to wait, or to break the connection; at all
// other times it can take the call away.
type stage uint8

const (
	finished stage = iota // or never started
	backlog
	queued
	underWay
)

// A slot is one request under way on a connection. Its number and generation
// are the request's ID.
type slot struct {
	generation uint32
	busy       bool
	call       *call // nil if its method gave up: the answer is dropped
	op         op
}

// A conn is one connection to the server, from its greeting to its end. Three
// goroutines: one sends, one receives, one watches over the peer.
type conn struct {
	lane *lane
	nc   net.Conn
	in   *input
	out  *output
	load atomic.Int64 // requests not answered yet
	echo atomic.Uint64

	ended chan struct{} // closed when err is set

	mu      sync.Mutex // guards what follows
	wake    sync.Cond  // something is to be sent, or the end
	slots   []slot
	free    []uint32
	backlog []*call
	queue   []*call
	beat    uint64 // to be sent, 0: none
	err     error  // why the connection has ended
}

func newConn(l *lane, nc net.Conn, inFlight int) *conn {
	c := &conn{lane: l, nc: nc, in: newInput(nc), out: newOutput(nc), ended: make(chan struct{}), slots: make([]slot, inFlight)}
	c.wake.L = &c.mu
	for i := range inFlight {
		c.free = append(c.free, uint32(inFlight-1-i))
	}
	return c
}

// run serves the connection to its end, and returns why it came. Then all
// calls on it have been let go.
func (c *conn) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { c.fail(c.send()) })
	wg.Go(func() { c.fail(c.receive()) })
	wg.Go(c.keepAlive)
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.slots {
		if k := c.slots[i].call; k != nil {
			c.letGo(k, errBroken)
		}
	}
	for _, k := range c.backlog {
		c.letGo(k, errBroken)
	}
	return c.err
}

// fail ends the connection. Calls on it are let go when nobody touches them.
func (c *conn) fail(err error) {
	c.lane.lost(c, err)
	c.mu.Lock()
	if c.err == nil {
		c.err = err
		close(c.ended)
	}
	c.mu.Unlock()
	c.wake.Broadcast()
	c.nc.Close()
}

// letGo gives k back to its method. Called with mu held.
func (c *conn) letGo(k *call, err error) {
	k.stage, k.err = finished, err
	k.done <- struct{}{}
}

// start hands k over to the connection; false if that has ended. Then wait is
// to be called.
func (c *conn) start(k *call) bool {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return false
	}
	c.load.Add(1)
	k.writing, k.reading, k.answered, k.abandoned = false, false, false, false
	if len(c.free) == 0 {
		k.stage = backlog
		c.backlog = append(c.backlog, k)
		c.mu.Unlock()
		return true
	}
	c.enqueue(k)
	c.mu.Unlock()
	return true
}

// enqueue gives k a free slot. Called with mu held.
func (c *conn) enqueue(k *call) {
	k.slot = c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	s := &c.slots[k.slot]
	s.generation++
	s.busy, s.call, s.op = true, k, k.req.op
	k.req.id = uint64(s.generation)<<32 | uint64(k.slot)
	k.stage = queued
	c.queue = append(c.queue, k)
	if len(c.queue) == 1 {
		c.wake.Signal()
	}
}

// vacate frees a slot, for the first of the backlog if there is one. Called
// with mu held.
func (c *conn) vacate(n uint32) {
	c.slots[n].busy, c.slots[n].call = false, nil
	c.free = append(c.free, n)
	c.load.Add(-1)
	if len(c.backlog) > 0 {
		k := c.backlog[0]
		c.backlog = slices.Delete(c.backlog, 0, 1)
		c.enqueue(k)
	}
}

// wait returns the outcome of k: errBroken if it should be sent again. On
// return the connection has nothing to do with k any more.
func (c *conn) wait(ctx context.Context, k *call) error {
	var why error
	select {
	case <-k.done:
		return k.err
	case <-ctx.Done():
		why = ctx.Err()
	case <-k.timer.C:
		why = c.lane.client.late(k)
	}
	if c.abandon(k) && !errors.Is(k.err, errBroken) && !errors.Is(k.err, errAbandoned) {
		return k.err // it came after all
	}
	k.remote = false
	return why
}

var errAbandoned = errors.New("request given up amid its transfer")

// grace is how long a call that is given up waits for a transfer under way
// before it breaks the connection.
const grace = 50 * time.Millisecond

// abandon takes k from the connection; true if it was let go, with an outcome.
func (c *conn) abandon(k *call) bool {
	c.mu.Lock()
	switch k.stage {
	case backlog:
		c.backlog = without(c.backlog, k)
		c.load.Add(-1)
	case queued:
		c.queue = without(c.queue, k)
		c.vacate(k.slot)
	case underWay:
		if k.writing || k.reading {
			k.abandoned = true
			c.mu.Unlock()
			if !waitFor(k.done, grace) {
				c.fail(errAbandoned)
				<-k.done
			}
			return true
		}
		c.slots[k.slot].call = nil // and stays busy until the answer comes
	case finished:
		c.mu.Unlock()
		<-k.done
		return true
	}
	k.stage = finished
	c.mu.Unlock()
	return false
}

func without(calls []*call, k *call) []*call {
	i := slices.Index(calls, k)
	return slices.Delete(calls, i, i+1)
}

// send writes requests until the connection ends.
func (c *conn) send() error {
	var batch []*call
	var beatFrame [requestSize]byte
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && c.beat == 0 && c.err == nil {
			c.wake.Wait()
		}
		if len(c.queue) < few && c.load.Load() > int64(len(c.queue)) && c.err == nil {
			// Callers whose answers came together come again together.
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
		if c.err != nil {
			c.mu.Unlock()
			return c.err
		}
		batch = c.take(batch[:0])
		beat := c.beat
		c.beat = 0
		c.mu.Unlock()
		if beat != 0 {
			r := request{op: opAlive, id: beat}
			r.encode(beatFrame[:])
			c.out.add(beatFrame[:])
		}
		for _, k := range batch {
			if len(k.out) >= sumLate {
				k.req.bodySum = checksum(k.out)
			}
			k.req.encode(k.head[:])
			c.out.add(k.head[:])
			c.out.add(k.out)
		}
		err := c.out.flush()
		c.mu.Lock()
		for i, k := range batch {
			c.wrote(k, err)
			batch[i] = nil
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// sendBytes bounds what is sent at a time: an answer to the first of a batch
// waits until all of it is written.
const sendBytes = 256 << 10

// sumLate is the length from which a body is summed by who sends it: so it is
// still in the processor's cache when the kernel copies it. Smaller ones are
// summed by the callers, side by side.
const sumLate = 64 << 10

// take moves the next calls from the queue to batch: as many as are worth one
// system call. Called with mu held.
func (c *conn) take(batch []*call) []*call {
	size, n := 0, 0
	for n < len(c.queue) && size < sendBytes {
		k := c.queue[n]
		k.stage, k.writing = underWay, true
		size += len(k.head) + len(k.out)
		batch = append(batch, k)
		n++
	}
	c.queue = slices.Delete(c.queue, 0, n)
	return batch
}

// wrote notes that k was written, or that this failed. Called with mu held.
func (c *conn) wrote(k *call, err error) {
	k.writing = false
	switch {
	case err != nil || k.reading: // the end of the connection, or of reading, decides
	case k.answered:
		c.finish(k)
	case k.abandoned:
		c.slots[k.slot].call = nil
		c.letGo(k, errAbandoned)
	}
}

// finish lets go of a call that was answered; the outcome is in it. Called
// with mu held.
func (c *conn) finish(k *call) {
	c.vacate(k.slot)
	c.letGo(k, k.err)
}

// keepAlive says that this client lives, and ends the connection of a server
// that doesn't; see beat.
func (c *conn) keepAlive() {
	t := time.NewTicker(beat)
	defer t.Stop()
	var moved, beats uint64
	silent := 0
	for {
		select {
		case <-c.ended:
			return
		case <-t.C:
		}
		silent++
		if now := c.in.moved.Load(); now != moved {
			moved, silent = now, 0
		}
		beats++
		switch {
		case silent >= clientSilent:
			c.fail(errSilent)
		case beats > c.echo.Load()+clientLag:
			c.fail(errLag)
		}
		c.mu.Lock()
		c.beat = beats
		c.mu.Unlock()
		c.wake.Signal()
	}
}
