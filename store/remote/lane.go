package remote

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"time"
)

// A lane is one connection of a client and those that follow it.
//
//	connecting ──greeted──▶ connected ──broken──▶ connecting
//	    └──── failed: pause, longer each time ───────┘
type lane struct {
	client *Client
	number uint32
	conn   atomic.Pointer[conn] // nil while there is none

	// Guarded by Client.mu.
	err      error // why the last attempt failed
	refusals int   // attempts in a row that the peer's kernel refused: nobody listens there
}

// gone is how many refusals in a row say that the peer's process has ended, and
// is not merely being replaced by the next: they take some 0.5 s, far less than
// a peer that is silent is given. Requests end then.
const gone = 5

const (
	firstPause  = 20 * time.Millisecond
	longPause   = time.Second
	connectTime = 3 * time.Second // for dialing, and again for greeting
)

// run keeps the lane connected until the client ends.
func (l *lane) run() {
	ctx, log := l.client.ctx, l.client.options.Logger.With("addr", l.client.options.Addr)
	pause := firstPause
	for ctx.Err() == nil {
		c, err := l.connect(ctx)
		if err == nil {
			log.Debug("connected")
			l.set(c, nil)
			err = c.run(ctx)
			if c.in.moved.Load() > 0 { // it was of use
				pause = firstPause
			}
		}
		if ctx.Err() != nil {
			return
		}
		if pause == firstPause {
			log.Warn("no connection to the node", "err", err)
		}
		var refused *RefusedError
		if errors.As(err, &refused) {
			pause = longPause // it will hardly be another one soon
		}
		l.set(nil, err)
		waitFor(ctx.Done(), pause/2+rand.N(pause/2))
		pause = min(2*pause, longPause)
	}
}

// connect dials and greets.
func (l *lane) connect(ctx context.Context) (*conn, error) {
	o := &l.client.options
	dialing, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	nc, err := o.Dial(dialing, o.Addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	own := hello{version: protocolVersion, node: o.Node, session: l.client.session, number: l.number, cluster: o.Cluster}
	inFlight, err := greet(nc, &own, o.Addr, connectTime)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return newConn(l, nc, inFlight), nil
}

// set makes c the lane's connection, and wakes who waits for one, or for the
// reason why there is none.
func (l *lane) set(c *conn, err error) {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	l.conn.Store(c)
	l.err = err
	if l.refusals++; !errors.Is(err, syscall.ECONNREFUSED) {
		l.refusals = 0
	}
	close(l.client.changed)
	l.client.changed = make(chan struct{})
}

// lost takes c away, so that no call is begun on it.
func (l *lane) lost(c *conn, err error) {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	if l.conn.CompareAndSwap(c, nil) {
		l.err = err
	}
}
