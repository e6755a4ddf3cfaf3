// Package remote is the contract of package store over connections: a Server
// serves a store, a Client is that store on another machine.
package remote

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"time"

	"torus/store"
)

var _ store.Store = (*Client)(nil)

// ClientOptions say which store to reach, and how. Addr, Cluster and Node are
// needed; the rest has defaults.
type ClientOptions struct {
	Addr    string // HOST:PORT, or what Dial understands
	Cluster string // that the node must belong to
	Node    uint64 // that must answer

	// Connections is how many are kept; 0: 2.
	Connections int
	// Timeout is what a request has until it is answered; 0: 3 s. Requests that
	// wait for others at the store (Attach), or go through all of it (Drop,
	// Layers), have Patience, as long as the peer shows that it lives; 0: 60 s.
	Timeout, Patience time.Duration
	// Dial makes a connection; nil: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Logger nil discards.
	Logger *slog.Logger
}

// A Client is a store on another node.
type Client struct{ options ClientOptions }

// NewClient connects when the first request comes, and again when a
// connection breaks, until Close.
func NewClient(o ClientOptions) *Client { return &Client{options: o} }

var errNotYet = errors.New("not built yet")

func (c *Client) Attach(ctx context.Context, vol store.VolumeID, e store.Epoch) (store.Replica, error) {
	return nil, errNotYet
}
func (c *Client) ReadSealed(ctx context.Context, chain []store.LayerID, off int64, p []byte) error {
	return errNotYet
}
func (c *Client) Drop(ctx context.Context, layer store.LayerID, chunks store.Chunks) error {
	return errNotYet
}
func (c *Client) Forget(ctx context.Context, vol store.VolumeID) error { return errNotYet }
func (c *Client) Layers(ctx context.Context) iter.Seq2[store.LayerInfo, error] {
	return func(yield func(store.LayerInfo, error) bool) { yield(store.LayerInfo{}, errNotYet) }
}
func (c *Client) Fences(ctx context.Context) iter.Seq2[store.Fence, error] {
	return func(yield func(store.Fence, error) bool) { yield(store.Fence{}, errNotYet) }
}
func (c *Client) Stat(ctx context.Context) (store.Stat, error) { return store.Stat{}, errNotYet }
func (c *Client) Close() error                                 { return nil }
