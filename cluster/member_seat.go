package cluster

import (
	"context"
	"errors"
)

// SeatOptions is what a node's place among etcd's members needs.
type SeatOptions struct {
	Server  ServerOptions // how a member is run here; Join is filled in
	Running *Server       // the member that runs already: the seat's from now on; nil: none
	Changed func(*Server) // told, in turn, when the member has started, and nil when it was removed; may be nil
}

// Seat is a node's place among etcd's members: it runs the embedded member
// while the cluster wants one on this node.
type Seat struct{}

// TakeSeat watches whether the cluster wants a member on this node. When it does, the
// seat starts one; when it was removed, the seat stops it and clears its directory. It
// ends with Close.
func (c *Cluster) TakeSeat(etcd *Client, o SeatOptions) *Seat { return &Seat{} }

// Server returns the member that runs now; nil if none does.
func (s *Seat) Server() *Server { return nil }

// Failed is closed when the member can't go on; Err says why.
func (s *Seat) Failed() <-chan struct{} { return nil }

// Err returns why the member can't go on; nil while it can.
func (s *Seat) Err() error { return nil }

// Close stops the member, if one runs. The cluster still counts on it.
func (s *Seat) Close() error { return errors.New("not built yet") }

// Leave takes node's member out of etcd, once its record is gone: it returns when
// etcd has no member of the node.
func (c *Cluster) Leave(ctx context.Context, etcd *Client, o MembersOptions) error {
	return errors.New("not built yet")
}
