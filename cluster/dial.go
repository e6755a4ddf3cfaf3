package cluster

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// syncEvery is how often a client asks which voters there are: a voter that goes and one
// that comes within this time are both known to it.
const syncEvery = 3 * time.Second

// Dial returns a client of the etcd members at the endpoints, each HOST:PORT: a
// KV. It does not wait for a connection: the first call does. One endpoint that answers
// is enough: the client learns all voters from it and keeps up with their changes, so that
// it survives the loss of the one that it was given. Plain connections only.
//
// A node uses it even for its own member. In process a read takes 0.13 ms instead of
// 0.24, but watches and leases there fall silent when the member is removed, and
// end with it.
func Dial(endpoints []string) (*Client, error) {
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("%w: no etcd endpoints", ErrInvalid)
	}
	for _, e := range endpoints {
		if err := checkEndpoint(e); err != nil {
			return nil, err
		}
	}
	e, err := dial(endpoints)
	if err != nil {
		return nil, err
	}
	e.background.Go(e.keepEndpoints)
	return e, nil
}

// dial is Dial of a client that knows these endpoints and no others.
func dial(endpoints []string) (*Client, error) {
	open := &conns{open: map[*conn]string{}}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialTimeout:          callTimeout,
		DialKeepAliveTime:    callTimeout,
		DialKeepAliveTimeout: callTimeout,
		DialOptions:          []grpc.DialOption{grpc.WithContextDialer(open.dial)},
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("etcd at %v: %w", endpoints, err)
	}
	e := newClient(client)
	e.conns = open
	e.background.Go(e.closeSilent)
	return e, nil
}

// Endpoints returns where voters are reached, each HOST:PORT, as far as is known.
func (e *Client) Endpoints() []string {
	all := e.client.Endpoints() // a copy
	slices.Sort(all)
	return all
}

// keepEndpoints follows the voters until the client is closed.
func (e *Client) keepEndpoints() {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		if members, err := e.Members(e.ctx); err == nil {
			e.setEndpoints(members)
		} // otherwise what is known so far has to do
		select {
		case <-tick.C:
		case <-e.ctx.Done():
			return
		}
	}
}

// setEndpoints turns to the voters of a list. A learner answers nothing that a KV asks. A
// voter that has not made itself known yet is told of by the next list.
func (e *Client) setEndpoints(members []Member) {
	var voters []string
	for _, m := range members {
		if !m.Learner && m.Client != "" {
			voters = append(voters, m.Client)
		}
	}
	slices.Sort(voters)
	if len(voters) > 0 && !slices.Equal(voters, e.Endpoints()) {
		e.client.SetEndpoints(voters...)
	}
}

// reachable asks the member at an address, HOST:PORT for clients, which it is, and
// whether it has begun to follow the others. A plain connection comes first: etcd's client
// goes on trying where nobody listens until its time is over.
func (e *Client) reachable(ctx context.Context, addr string, id MemberID) bool {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	conn.Close() // nothing was written
	status, err := e.client.Status(ctx, "http://"+addr)
	return err == nil && status.Header.MemberId == uint64(id) && status.RaftAppliedIndex > 0
}

// reachTimeout is enough for a member that is well.
const reachTimeout = 500 * time.Millisecond

// checkEndpoint returns ErrInvalid unless s is HOST:PORT.
func checkEndpoint(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return fmt.Errorf("%w: etcd endpoint %q is not HOST:PORT", ErrInvalid, s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%w: etcd endpoint %q: port %q is not a number of 1 to 65535", ErrInvalid, s, port)
	}
	return nil
}
