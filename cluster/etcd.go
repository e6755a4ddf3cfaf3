package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// callTimeout bounds each call to etcd. With 2 s, writes pause for about as
// long when a leader is lost; with longer ones they paused 5 s.
const callTimeout = 2 * time.Second

// Client is a KV over an etcd client, in process or over TCP.
type Client struct {
	client *clientv3.Client
	ctx    context.Context // the client's lifetime
	cancel context.CancelFunc

	background sync.WaitGroup // ends with ctx
	conns      *conns         // nil in process
	slowCalls  chan struct{}  // has one when some call is slow
}

var _ KV = (*Client)(nil)

// newClient returns a KV that owns client.
func newClient(client *clientv3.Client) *Client {
	ctx, cancel := context.WithCancel(context.Background())
	return &Client{client: client, ctx: ctx, cancel: cancel, slowCalls: make(chan struct{}, 1)}
}

// call returns the context of one call: the caller's, ended with the KV, and
// after callTimeout. A member that knows of no leader refuses it at once, and the next
// attempt goes to another.
func (e *Client) call(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), callTimeout)
	stop := context.AfterFunc(e.ctx, cancel)
	slow := time.AfterFunc(slowCall, e.slow)
	return ctx, func() { slow.Stop(); stop(); cancel() }
}

// Get implements KV.
func (e *Client) Get(ctx context.Context, key string, at Revision) (Pair, Revision, error) {
	cctx, cancel := e.call(ctx)
	defer cancel()
	resp, err := e.client.Get(cctx, key, clientv3.WithRev(int64(at)))
	if err != nil {
		return Pair{}, 0, e.failed(ctx, err)
	}
	at = cmp.Or(at, Revision(resp.Header.Revision))
	if len(resp.Kvs) == 0 {
		return Pair{Key: key}, at, nil
	}
	kv := resp.Kvs[0]
	return Pair{Key: key, Value: kv.Value, Mod: Revision(kv.ModRevision), Lease: LeaseID(kv.Lease)}, at, nil
}

// Range implements KV.
func (e *Client) Range(ctx context.Context, prefix string, at Revision) ([]Pair, Revision, error) {
	cctx, cancel := e.call(ctx)
	defer cancel()
	resp, err := e.client.Get(cctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(int64(at)))
	if err != nil {
		return nil, 0, e.failed(ctx, err)
	}
	pairs := make([]Pair, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		pairs[i] = Pair{Key: string(kv.Key), Value: kv.Value, Mod: Revision(kv.ModRevision), Lease: LeaseID(kv.Lease)}
	}
	return pairs, cmp.Or(at, Revision(resp.Header.Revision)), nil
}

// Commit implements KV.
func (e *Client) Commit(ctx context.Context, t Txn) (Outcome, error) {
	if err := t.check(); err != nil {
		return Outcome{}, err
	}
	if err := ctx.Err(); err != nil {
		return Outcome{}, err
	}
	if e.ctx.Err() != nil {
		return Outcome{}, ErrClosed
	}
	cctx, cancel := e.call(ctx)
	defer cancel()
	resp, err := e.client.Txn(cctx).If(etcdConds(t.If)...).Then(etcdOps(t.Then)...).Commit()
	if err != nil {
		return Outcome{}, e.commitFailed(ctx, err)
	}
	return Outcome{Held: resp.Succeeded, Revision: Revision(resp.Header.Revision)}, nil
}

func etcdConds(conds []Cond) []clientv3.Cmp {
	cmps := make([]clientv3.Cmp, len(conds))
	for i, c := range conds {
		if c.Prefix {
			// etcd compares every key of the range; an empty range holds.
			cmps[i] = clientv3.Compare(clientv3.ModRevision(c.Key), "<", int64(c.Mod)+1).WithPrefix()
		} else {
			cmps[i] = clientv3.Compare(clientv3.ModRevision(c.Key), "=", int64(c.Mod))
		}
	}
	return cmps
}

func etcdOps(ops []Op) []clientv3.Op {
	out := make([]clientv3.Op, len(ops))
	for i, op := range ops {
		switch op.Kind {
		case OpPut:
			out[i] = clientv3.OpPut(op.Key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease)))
		case OpDelete:
			out[i] = clientv3.OpDelete(op.Key)
		case OpDeletePrefix:
			out[i] = clientv3.OpDelete(op.Key, clientv3.WithPrefix())
		}
	}
	return out
}

// failed maps the error of a call that changes nothing, or that may be
// repeated whatever became of it.
func (e *Client) failed(ctx context.Context, err error) error {
	if e.ctx.Err() != nil {
		return ErrClosed
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return ErrCompacted
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return ErrNoLease
	case errors.Is(err, rpctypes.ErrNoSpace):
		return ErrFull
	case refused(err) && !mayPass(err):
		return fmt.Errorf("etcd: %w", err)
	}
	return fmt.Errorf("%w: etcd: %w", ErrUnavailable, err)
}

// commitFailed maps the error of a transaction. Whatever is not known to have
// been refused before it was proposed may have been done.
func (e *Client) commitFailed(ctx context.Context, err error) error {
	mapped := e.failed(ctx, err)
	if refused(err) {
		return mapped
	}
	// Not wrapped: "unavailable" would say that nothing was done.
	return fmt.Errorf("%w: %v", ErrUnknown, err)
}

// refused reports whether etcd said no, positively: nothing was done, and
// nothing will be.
func refused(err error) bool {
	for _, no := range []error{
		rpctypes.ErrLeaseNotFound, rpctypes.ErrNoSpace,
		rpctypes.ErrCompacted, rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge,
	} {
		if errors.Is(err, no) {
			return true
		}
	}
	code := status.Code(err)
	return code == codes.InvalidArgument || mayPass(err)
}

// mayPass reports whether etcd said no for now, or a member did that serves no calls:
// another attempt may do.
func mayPass(err error) bool {
	return errors.Is(err, rpctypes.ErrTooManyRequests) || errors.Is(err, rpctypes.ErrNoLeader) || errors.Is(err, errLearner)
}

// errLearner is what a member without a vote answers to all that a KV asks.
var errLearner = rpctypes.Error(rpctypes.ErrGRPCNotSupportedForLearner)

// Grant implements KV. etcd counts in whole seconds, and has a least TTL of
// one and a half election timeouts.
func (e *Client) Grant(ctx context.Context, ttl time.Duration) (Lease, error) {
	if ttl <= 0 {
		return Lease{}, fmt.Errorf("%w: lease of %v", ErrInvalid, ttl)
	}
	cctx, cancel := e.call(ctx)
	defer cancel()
	seconds := int64((ttl + time.Second - 1) / time.Second)
	resp, err := e.client.Grant(cctx, seconds)
	if err != nil {
		return Lease{}, e.failed(ctx, err)
	}
	return Lease{ID: LeaseID(resp.ID), TTL: time.Duration(resp.TTL) * time.Second}, nil
}

// KeepAlive implements KV.
func (e *Client) KeepAlive(ctx context.Context, id LeaseID) error {
	cctx, cancel := e.call(ctx)
	defer cancel()
	_, err := e.client.KeepAliveOnce(cctx, clientv3.LeaseID(id))
	if err != nil {
		return e.failed(ctx, err)
	}
	return nil
}

// Revoke implements KV.
func (e *Client) Revoke(ctx context.Context, id LeaseID) error {
	cctx, cancel := e.call(ctx)
	defer cancel()
	if _, err := e.client.Revoke(cctx, clientv3.LeaseID(id)); err != nil {
		if mapped := e.failed(ctx, err); !errors.Is(mapped, ErrNoLease) {
			return mapped
		}
	}
	return nil
}

// Close implements KV.
func (e *Client) Close() error {
	e.cancel()
	err := e.client.Close()
	e.background.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
