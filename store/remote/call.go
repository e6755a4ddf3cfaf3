package remote

import (
	"context"
	"errors"
	"fmt"
	"time"

	"torus/store"
)

// A call is one method of the contract on its way. Calls are reused: between
// getCall and putCall one belongs to the method, but for what conn.start and
// conn.wait say.
type call struct {
	req     request
	patient bool   // Patience instead of Timeout
	out     []byte // sent behind the header; the method's caller's
	in      []byte // a read's pages go here; the method's caller's
	info    []store.PageInfo
	chain   []byte  // reused for out
	lane    *lane   // that it was sent on, if it was
	conn    *conn   // that has it; nil: none
	client  *Client // of a write that was started, with its context
	ctx     context.Context

	patience time.Time // when a patient call's time is over

	// The answer.
	body   []byte // reused
	more   bool
	err    error
	remote bool // err is the store's

	head  [requestSize]byte
	timer *time.Timer
	done  chan struct{} // capacity 1: the connection lets go of the call

	// Guarded by the connection's mutex.
	stage     stage
	slot      uint32
	writing   bool // out is being sent
	reading   bool // in, info or body is being filled
	answered  bool // perhaps while it is still being sent
	abandoned bool // the method waits only for the connection to let go
}

func (c *Client) getCall(o op) *call {
	k, ok := c.calls.Get().(*call)
	if !ok {
		k = &call{timer: time.NewTimer(time.Hour), done: make(chan struct{}, 1)}
		k.timer.Stop()
	}
	k.req = request{op: o}
	return k
}

func (c *Client) putCall(k *call) {
	k.patient, k.out, k.in, k.info, k.lane, k.err = false, nil, nil, nil, nil, nil
	k.client, k.ctx = nil, nil
	c.calls.Put(k)
}

// errBroken: the connection broke before the answer came.
var errBroken = errors.New("connection broken")

// do sends k until it is answered, its time is over or ctx is done. Then no
// connection touches its slices any more.
func (c *Client) do(ctx context.Context, k *call) error {
	if err := c.begin(ctx, k); err != nil {
		return err
	}
	return c.finish(ctx, k)
}

// begin sends k for the first time, if there is a connection. Unless it returns
// an error finish is to be called.
func (c *Client) begin(ctx context.Context, k *call) error {
	k.remote, k.conn = false, nil // a list uses its call again
	if err := ctx.Err(); err != nil {
		return err
	}
	if !c.enter() {
		return store.ErrClosed
	}
	k.req.body = uint32(len(k.out))
	if len(k.out) < sumLate {
		k.req.bodySum = checksum(k.out)
	}
	k.lane = nil
	k.timer.Reset(c.options.Timeout)
	if k.patient {
		k.patience = time.Now().Add(c.options.Patience)
	}
	if conn := c.pick(nil); conn != nil {
		c.send(conn, k)
	}
	return nil
}

// send hands k over to a connection, unless that has ended.
func (c *Client) send(conn *conn, k *call) {
	if k.patient {
		k.timer.Reset(time.Until(k.patience))
	}
	if conn.start(k) {
		k.conn = conn
	}
}

// finish waits for the answer to k, and sends it again when its connection breaks.
func (c *Client) finish(ctx context.Context, k *call) error {
	defer c.leave()
	defer k.timer.Stop()
	for {
		if k.conn == nil {
			conn, err := c.connection(ctx, k)
			if err != nil {
				return err
			}
			c.send(conn, k)
			continue
		}
		conn := k.conn
		k.conn = nil
		err := conn.wait(ctx, k)
		if !errors.Is(err, errBroken) {
			return err
		}
		// Again, on the same lane: what the server still has of the broken
		// connection is done with when the next one begins.
		k.lane, k.remote = conn.lane, false
		if k.patient {
			k.timer.Reset(min(c.options.Timeout, time.Until(k.patience)))
		}
	}
}

// connection returns one for k: of its lane, if it has one, else the one with
// the least under way. It waits until there is one.
func (c *Client) connection(ctx context.Context, k *call) (*conn, error) {
	if conn := c.pick(k.lane); conn != nil {
		return conn, nil
	}
	for {
		c.mu.Lock()
		changed := c.changed
		conn, err, ended := c.pick(k.lane), c.lastError(k.lane), c.lane(k.lane).refusals >= gone
		c.mu.Unlock()
		var refused *RefusedError
		switch {
		case conn != nil:
			return conn, nil
		case errors.As(err, &refused):
			return nil, refused
		case ended:
			return nil, c.unconnected(err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.ctx.Done():
			return nil, store.ErrClosed
		case <-k.timer.C:
			return nil, c.unconnected(err)
		}
	}
}

// unconnected is the error of a call that found no connection, given why.
func (c *Client) unconnected(why error) error {
	return fmt.Errorf("%w: no connection to node %016x at %s: %v", store.ErrUnreachable, c.options.Node, c.options.Addr, why)
}

// lane returns l, or one that speaks for all where a call may go to any.
func (c *Client) lane(l *lane) *lane {
	if l == nil {
		return c.lanes[0]
	}
	return l
}

func (c *Client) pick(l *lane) *conn {
	if l != nil {
		return l.conn.Load()
	}
	var least *conn
	for _, l := range c.lanes {
		if conn := l.conn.Load(); conn != nil && (least == nil || conn.load.Load() < least.load.Load()) {
			least = conn
		}
	}
	return least
}

// lastError says why there is no connection. Called with mu held.
func (c *Client) lastError(l *lane) error {
	if l = c.lane(l); l.err == nil {
		return errors.New("not connected yet")
	}
	return l.err
}

// late is the error of a call whose time is over.
func (c *Client) late(k *call) error {
	d := c.options.Timeout
	if k.patient {
		d = c.options.Patience
	}
	return fmt.Errorf("%w: no answer from node %016x at %s in %v", store.ErrUnreachable, c.options.Node, c.options.Addr, d)
}
