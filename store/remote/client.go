// Package remote is the contract of package store over connections: a Server
// serves a store, a Client is that store on another machine.
//
// Requests are pipelined over a few connections and answered out of order; a
// page goes from the caller's slice to the socket, from there to an aligned
// buffer that the store can write as it is, and back the same way. When a
// connection breaks, what was not answered is sent again on the next, for as
// long as a request has time: all requests may be repeated, and a copy never
// comes after its repetition (see hello). A request that gets no answer in time
// is store.ErrUnreachable, as is at once one whose server has ended with none in
// its place; whether it was applied is not known then, nor whether it yet will be:
// fences and versions decide about late ones (I1, N4).
//
// Who may connect is left to others: names keep clusters and nodes apart, they
// don't authenticate. Listener and ClientOptions.Dial may bring TLS.
package remote

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"torus/store"
)

var _ store.Store = (*Client)(nil)

// ClientOptions say which store to reach, and how. Addr, Cluster and Node are
// needed; the rest has defaults.
type ClientOptions struct {
	Addr    string // HOST:PORT, or what Dial understands
	Cluster string // that the node must belong to, at most 255 bytes
	Node    uint64 // that must answer

	// Connections is how many are kept; 0: 2.
	Connections int
	// Timeout is what a request has until it is answered; 0: 3 s. Requests that
	// wait for others at the store (Attach), or go through much of it (Drop,
	// Layers), have Patience, as long as the peer shows that it lives; 0: 60 s.
	Timeout, Patience time.Duration
	// Dial makes a connection; nil: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Logger nil discards.
	Logger *slog.Logger
}

func (o ClientOptions) withDefaults() ClientOptions {
	if o.Connections == 0 {
		o.Connections = 2
	}
	if o.Timeout == 0 {
		o.Timeout = 3 * time.Second
	}
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// A Client is a store on another node. It has goroutines once it was used;
// Close ends them.
//
// Locks: Client.mu and conn.mu, each alone.
type Client struct {
	options ClientOptions
	session uint64
	lanes   []*lane
	calls   sync.Pool // of *call

	active atomic.Int64  // methods under way
	closed atomic.Bool   // no more begin
	idle   chan struct{} // capacity 1: active fell to 0 after closed

	start  sync.Once
	ctx    context.Context // of the lanes
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex    // guards what follows, and changing a lane's state
	changed chan struct{} // closed, and made anew, when a lane's state changes
}

// NewClient does no I/O: it connects when the first request comes, and again
// when a connection breaks, until Close.
func NewClient(o ClientOptions) *Client {
	c := &Client{options: o.withDefaults(), session: rand.Uint64(), idle: make(chan struct{}, 1), changed: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for i := range c.options.Connections {
		c.lanes = append(c.lanes, &lane{client: c, number: uint32(i)})
	}
	return c
}

// enter lets a method in; leave lets it out.
func (c *Client) enter() bool {
	c.active.Add(1)
	if c.closed.Load() {
		c.leave()
		return false
	}
	c.start.Do(func() {
		for _, l := range c.lanes {
			c.wg.Go(l.run)
		}
	})
	return true
}

func (c *Client) leave() {
	if c.active.Add(-1) == 0 && c.closed.Load() {
		select {
		case c.idle <- struct{}{}:
		default:
		}
	}
}

// Close ends the client, not the store: requests under way are finished, those
// that take longer than Timeout end with ErrClosed, as do later ones. Closing
// twice is no error.
func (c *Client) Close() error {
	if c.closed.CompareAndSwap(false, true) && c.active.Load() > 0 {
		waitFor(c.idle, c.options.Timeout)
	}
	c.cancel()
	c.start.Do(func() {}) // a method that came too late starts nothing
	c.wg.Wait()
	return nil
}

// fail adds what was done to which layer.
func fail(op op, layer store.LayerID, off int64, err error) error {
	if err == nil {
		return nil
	}
	return &store.Error{Op: op.String(), Layer: layer, Off: off, Err: err}
}

// Attach implements store.Store.
func (c *Client) Attach(ctx context.Context, vol store.VolumeID, e store.Epoch) (store.Replica, error) {
	k := c.getCall(opAttach)
	defer c.putCall(k)
	k.req.volume, k.req.epoch, k.patient = vol, e, true
	if err := c.do(ctx, k); err != nil {
		return nil, fmt.Errorf("attach volume %v: %w", vol, err)
	}
	if len(k.body) != attachSize {
		return nil, fmt.Errorf("attach volume %v: %w", vol, malformed(k))
	}
	return &replica{client: c, volume: vol, epoch: e, incarnation: store.Incarnation(le.Uint64(k.body))}, nil
}

// malformed is for answers that no server gives: whole, and meaningless.
func malformed(k *call) error {
	return fmt.Errorf("%w: %v answered with %d bytes", store.ErrUnreachable, k.req.op, len(k.body))
}

// ReadSealed implements store.Store.
func (c *Client) ReadSealed(ctx context.Context, chain []store.LayerID, off int64, p []byte) error {
	k := c.getCall(opReadSealed)
	defer c.putCall(k)
	return fail(opRead, first(chain), off, c.read(ctx, k, chain, off, p, nil))
}

// Drop implements store.Store.
func (c *Client) Drop(ctx context.Context, layer store.LayerID, chunks store.Chunks) error {
	k := c.getCall(opDrop)
	defer c.putCall(k)
	k.req.layer, k.patient = layer, true
	k.req.n = int64(uint64(chunks.First) | uint64(chunks.End)<<32)
	return c.answered(k, -1, c.do(ctx, k))
}

// answered adds operation and place to errors of the way; those of the store
// have them.
func (c *Client) answered(k *call, off int64, err error) error {
	if err == nil || k.remote {
		return err
	}
	return fail(k.req.op, k.req.layer, off, err)
}

// Forget implements store.Store.
func (c *Client) Forget(ctx context.Context, vol store.VolumeID) error {
	k := c.getCall(opForget)
	defer c.putCall(k)
	k.req.volume, k.patient = vol, true
	if err := c.do(ctx, k); err != nil {
		return fmt.Errorf("forget volume %v: %w", vol, err)
	}
	return nil
}

// Layers implements store.Store. They come in the order of their IDs.
func (c *Client) Layers(ctx context.Context) iter.Seq2[store.LayerInfo, error] {
	return list(c, ctx, opLayers, layerSize, decodeLayer, func(l store.LayerInfo) uint64 { return uint64(l.ID) })
}

// Fences implements store.Store. They come in the order of their volumes.
func (c *Client) Fences(ctx context.Context) iter.Seq2[store.Fence, error] {
	return list(c, ctx, opFences, fenceSize, decodeFence, func(f store.Fence) uint64 { return uint64(f.Volume) })
}

// list yields page by page, each of them one request; none is held open while
// the caller does what it likes.
func list[T any](c *Client, ctx context.Context, o op, size int, decode func([]byte) T, id func(T) uint64) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		k := c.getCall(o)
		defer c.putCall(k)
		for more := true; more; {
			k.patient = true
			err := c.do(ctx, k)
			if err == nil && (len(k.body)%size != 0 || k.more && len(k.body) == 0) {
				err = malformed(k)
			}
			if err != nil {
				var none T
				yield(none, fmt.Errorf("%v: %w", o, err))
				return
			}
			more = k.more
			for b := k.body; len(b) > 0; b = b[size:] {
				v := decode(b)
				k.req.version, k.req.flags = store.Version(id(v)), flagCursor
				if !yield(v, nil) {
					return
				}
			}
		}
	}
}

// Stat implements store.Store. It asks the peer, which does no I/O for it.
func (c *Client) Stat(ctx context.Context) (store.Stat, error) {
	k := c.getCall(opStat)
	defer c.putCall(k)
	if err := c.do(ctx, k); err != nil {
		return store.Stat{}, fmt.Errorf("stat: %w", err)
	}
	s, err := decodeStat(k.body)
	if err != nil {
		return store.Stat{}, fmt.Errorf("stat: %w: %v", store.ErrUnreachable, err)
	}
	return s, nil
}
