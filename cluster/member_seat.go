package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// SeatOptions is what a node's place among etcd's members needs.
type SeatOptions struct {
	Server  ServerOptions // how a member is run here; Join is filled in
	Running *Server       // the member that runs already: the seat's from now on; nil: none
	Changed func(*Server) // told when a member has started, and nil when it was removed; may be nil
}

// Seat is a node's place among etcd's members: it runs the embedded member
// while the cluster wants one on this node.
//
//	empty ── added by the keeper ──> running ── removed by the keeper ──> empty, directory cleared
//	  └──────── can't start ────────────┴────── gave up ──> failed: Failed, Err
type Seat struct {
	c    *Cluster
	etcd *Client
	o    SeatOptions

	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex // guards server and err
	server *Server
	err    error
	failed chan struct{}
}

// sitEvery is how often a seat looks without being told to.
const sitEvery = 5 * time.Second

// TakeSeat watches whether the cluster wants a member on this node. When it does, the
// seat starts one; when that was removed, the seat stops it and clears its directory. It
// tells etcd when the member's peer address has changed. It ends with Close.
func (c *Cluster) TakeSeat(etcd *Client, o SeatOptions) *Seat {
	o.Server.Join = etcd
	o.Server.Advertise = o.Server.advertised()
	if o.Changed == nil {
		o.Changed = func(*Server) {}
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Seat{c: c, etcd: etcd, o: o, stop: stop, server: o.Running, failed: make(chan struct{})}
	look := make(chan struct{}, 1)
	s.done.Go(func() { s.watchKeeping(ctx, look) })
	s.done.Go(func() { s.sit(ctx, look) })
	return s
}

// Server returns the member that runs now; nil if none does.
func (s *Seat) Server() *Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server
}

// Failed is closed when the seat has given up; Err says why. The node can go on
// without a member.
func (s *Seat) Failed() <-chan struct{} { return s.failed }

// Err returns why the seat has given up; nil while it hasn't.
func (s *Seat) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close stops the member, if one runs. The cluster still counts on it.
func (s *Seat) Close() error {
	s.stop()
	s.done.Wait()
	if server := s.Server(); server != nil {
		return server.Close()
	}
	return nil
}

// watchKeeping asks for a look whenever the keeper does or waits for something else.
func (s *Seat) watchKeeping(ctx context.Context, look chan<- struct{}) {
	for pause := firstPause; ctx.Err() == nil; {
		err := s.c.watchKeeping(ctx, func(Keeping) bool {
			select {
			case look <- struct{}{}:
			default: // one is asked for
			}
			return true
		})
		s.c.opts.Log.Debug("watching the keeper begins anew", "err", err)
		wait(ctx, &pause)
	}
}

// sit runs and stops the member, as the cluster wants.
func (s *Seat) sit(ctx context.Context, look <-chan struct{}) {
	every := time.NewTicker(sitEvery)
	defer every.Stop()
	for ctx.Err() == nil {
		var removed, failed <-chan struct{}
		if server := s.Server(); server != nil {
			removed, failed = server.Removed(), server.Failed()
		}
		var err error
		select {
		case <-ctx.Done():
			return
		case <-failed:
			err = s.Server().Err()
		case <-removed:
			err = s.leave(ctx)
		case <-look:
			err = s.look(ctx)
		case <-every.C:
			err = s.look(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.fail(err)
			return
		}
	}
}

func (s *Seat) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	close(s.failed)
}

func (s *Seat) set(server *Server) {
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
	s.o.Changed(server)
}

// look compares what the members are with what this node does. An error is one that
// another look does not help against.
func (s *Seat) look(ctx context.Context) error {
	members, err := s.etcd.Members(ctx)
	if err != nil {
		s.c.opts.Log.Debug("etcd's members unknown", "err", err)
		return nil
	}
	s.etcd.setEndpoints(members)
	if server := s.Server(); server != nil {
		s.movePeer(ctx, server, members)
		return nil
	}
	_, err = s.o.Server.findSelf(members)
	if errors.Is(err, ErrNotMember) {
		return nil
	}
	server, err := StartServer(ctx, s.o.Server)
	if err == nil {
		s.c.opts.Log.Info("etcd member started", "member", server.ID())
		s.set(server)
		return nil
	}
	if lasting(err) {
		return err
	}
	s.c.opts.Log.Warn("etcd member not started, to be tried again", "err", err)
	return nil
}

// lasting reports whether a member that did not start will not do so next time.
func lasting(err error) bool {
	return slices.ContainsFunc([]error{ErrInvalid, ErrOtherCluster, ErrFormat, ErrCorrupt},
		func(is error) bool { return errors.Is(err, is) })
}

// movePeer tells etcd when others reach the member at another address than before.
func (s *Seat) movePeer(ctx context.Context, server *Server, members []Member) {
	peer := server.opts.addr(server.opts.PeerPort)
	for _, m := range members {
		if m.ID != server.ID() || m.Peer == peer {
			continue
		}
		s.c.opts.Log.Info("telling etcd the member's new peer address", "from", m.Peer, "to", peer)
		if err := s.etcd.movePeer(ctx, m.ID, peer); err != nil && ctx.Err() == nil {
			s.c.opts.Log.Warn("etcd not told of the member's new peer address, to be tried again", "err", err)
		}
	}
}

// leave stops a member that has stopped by itself, and clears its directory if it
// was removed: the members' list must say so, as etcd may have other reasons to stop.
func (s *Seat) leave(ctx context.Context) error {
	server := s.Server()
	for pause := firstPause; ; {
		members, err := s.etcd.Members(ctx)
		if err == nil {
			listed := slices.ContainsFunc(members, func(m Member) bool { return m.ID == server.ID() })
			return s.left(server, listed)
		}
		s.c.opts.Log.Debug("etcd member stopped, members unknown", "err", err)
		if !wait(ctx, &pause) {
			return ctx.Err()
		}
	}
}

// left ends the member's stay. One that is still listed is started again by the next look.
func (s *Seat) left(server *Server, listed bool) error {
	if err := server.Close(); err != nil {
		return err
	}
	if !listed {
		if err := ClearServer(s.o.Server.Dir); err != nil {
			return fmt.Errorf("clear directory of a removed etcd member: %w", err)
		}
		s.c.opts.Log.Info("etcd member removed by the cluster", "member", server.ID())
	}
	s.set(nil)
	return nil
}

// Leave waits until etcd has no member of this node any more: to be called when the
// node's record was removed (otherwise ErrInvalid), before the node stops for good. While it
// waits, members must be kept, by this node or another.
func (s *Seat) Leave(ctx context.Context) error {
	self := s.o.Server.Node
	nodes, err := s.c.Nodes(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(nodes, func(n NodeInfo) bool { return n.ID == self }) {
		return fmt.Errorf("%w: node %v is still in the cluster: remove its record first", ErrInvalid, self)
	}
	for pause := firstPause; ; {
		members, err := s.etcd.Members(ctx)
		if err == nil && !slices.ContainsFunc(members, func(m Member) bool { return m.Node == self }) {
			return nil
		}
		if !wait(ctx, &pause) {
			return cmp.Or(err, fmt.Errorf("node %v is still an etcd member: %w", self, ctx.Err()))
		}
	}
}
