package cluster

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"
)

// The kernel of a process that is stopped, or the void where a machine was, keeps a
// connection open on which nothing comes back. gRPC notices after 12 s (it asks no sooner
// than after 10), and until then each call in turn may go there and take all of its time.
// So a call that takes long has every voter asked for its status, which one that works gives
// however slow its disk is; the connections to one that does not are closed. What was under
// way on them ends, a transaction as one of unknown outcome, and calls go to other voters
// until the voter greets a new connection.
const (
	slowCall      = 700 * time.Millisecond
	silentTimeout = 500 * time.Millisecond // for a voter to say its status
)

// slow is called when a call has taken slowCall.
func (e *Client) slow() {
	select {
	case e.slowCalls <- struct{}{}:
	default:
	}
}

// closeSilent closes connections to voters that do not answer, until the client is closed.
func (e *Client) closeSilent() {
	for {
		select {
		case <-e.slowCalls:
		case <-e.ctx.Done():
			return
		}
		voters := e.client.Endpoints()
		answered := e.answering(voters)
		if !slices.Contains(answered, true) {
			continue // there is nobody to turn to
		}
		for i, voter := range voters {
			if !answered[i] {
				e.conns.close(voter)
			}
		}
	}
}

// answering returns which of the voters answer.
func (e *Client) answering(voters []string) []bool {
	ctx, cancel := context.WithTimeout(e.ctx, silentTimeout)
	defer cancel()
	answered := make([]bool, len(voters))
	var asked sync.WaitGroup
	for i, voter := range voters {
		asked.Go(func() {
			_, err := e.client.Status(ctx, voter) // over a connection of its own
			answered[i] = err == nil
		})
	}
	asked.Wait()
	return answered
}

// conns are a client's open connections, each with where it leads, HOST:PORT.
type conns struct {
	mu   sync.Mutex
	open map[*conn]string
}

// conn is a connection that conns know of.
type conn struct {
	net.Conn
	of *conns
}

// dial connects to an address.
func (c *conns) dial(ctx context.Context, addr string) (net.Conn, error) {
	to, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	opened := &conn{to, c}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[opened] = addr
	return opened, nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// close closes the connections to an address.
func (c *conns) close(addr string) {
	c.mu.Lock()
	var silent []*conn
	for conn, to := range c.open {
		if to == addr {
			silent = append(silent, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range silent {
		conn.Close() // nothing can be done about an error, and gRPC closes it again
	}
}
