package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"torus/store"
)

// ServerOptions say what to serve, as whom. Store, Cluster and Node are needed;
// the limits have defaults.
type ServerOptions struct {
	Store   store.Store
	Cluster string // clients of another are refused
	Node    uint64 // clients that look for another are refused

	MaxConnections int   // 0: 1024
	MaxInFlight    int   // requests of one connection; 0: 256
	MaxBytes       int64 // memory for the requests of one connection; 0: 64 MiB, at least 40 MiB
	MaxVolumes     int   // attachments remembered; 0: 65536

	// CloseTimeout is how long Close lets requests finish before it breaks
	// connections, and then waits for the store; 0: 5 s.
	CloseTimeout time.Duration
	// Logger nil discards.
	Logger *slog.Logger
}

// minBytes is the memory of the largest request, its page infos included.
const minBytes = 40 << 20

func (o ServerOptions) withDefaults() ServerOptions {
	if o.MaxConnections == 0 {
		o.MaxConnections = 1024
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = 256
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	o.MaxBytes = max(o.MaxBytes, minBytes)
	if o.MaxVolumes == 0 {
		o.MaxVolumes = 1 << 16
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// A Server serves one store on any number of listeners.
//
// Locks, outermost first: volumeEntry.mu (held over I/O: attaching is not the
// data path), then each alone: Server.mu, attachments.mu, replies.mu, limit.mu,
// workers.mu, buffers.mu.
type Server struct {
	options  ServerOptions
	attached *attachments
	workers  workers
	buffers  buffers
	jobs     sync.Pool // of *job

	mu        sync.Mutex // guards what follows
	closed    bool
	listeners map[net.Listener]bool
	conns     map[*serverConn]bool
	sessions  map[sessionKey]*serverConn
	wg        sync.WaitGroup // connections
}

// sessionKey names a connection of a client; see hello.
type sessionKey struct {
	session uint64
	number  uint32
}

// NewServer does no I/O.
func NewServer(o ServerOptions) *Server {
	o = o.withDefaults()
	return &Server{
		options: o, attached: newAttachments(o.Store, o.MaxVolumes),
		workers: workers{maxIdle: 64}, buffers: buffers{maxIdle: 64 << 20},
		listeners: make(map[net.Listener]bool), conns: make(map[*serverConn]bool), sessions: make(map[sessionKey]*serverConn),
	}
}

// acceptPause is how long Serve waits after an error of Accept that passes,
// such as too many open files.
const acceptPause = 50 * time.Millisecond

// Serve accepts connections until Close, and then returns nil; it closes l.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return l.Close()
	}
	s.listeners[l] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		l.Close() // a second time where Close did it
	}()
	for {
		nc, err := l.Accept()
		if err == nil {
			s.admit(nc)
			continue
		}
		s.mu.Lock()
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("serve blocks: %w", err)
		}
		s.options.Logger.Error("accepting a connection", "err", err)
		time.Sleep(acceptPause)
	}
}

// admit gives a connection its goroutine.
func (s *Server) admit(nc net.Conn) {
	c := newServerConn(s, nc)
	s.mu.Lock()
	refused := s.closed || len(s.conns) >= s.options.MaxConnections
	if !refused {
		s.conns[c] = true
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if refused {
		c.cancel()
		nc.Close()
		s.options.Logger.Warn("block connection refused", "peer", nc.RemoteAddr(), "connections", s.options.MaxConnections)
		return
	}
	go func() {
		defer s.wg.Done()
		c.run()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
}

// helloTimeout is what a client has to say who it is.
const helloTimeout = 3 * time.Second

// welcome is the server's side of the greeting.
func (s *Server) welcome(c *serverConn) error {
	if err := c.nc.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	h, err := readHello(c.nc)
	if err != nil {
		return err
	}
	own := hello{version: protocolVersion, node: s.options.Node, session: uint64(s.options.MaxInFlight), cluster: s.options.Cluster}
	refused := h.compare(&own, c.nc.RemoteAddr().String())
	if refused == nil {
		c.key = sessionKey{h.session, h.number}
		if err := s.succeed(c); err != nil {
			return err
		}
	}
	if _, err := c.nc.Write(own.append(nil)); err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	return c.nc.SetDeadline(time.Time{})
}

// succeed makes c the connection of its session and number, when nothing of
// the one before is under way any more.
func (s *Server) succeed(c *serverConn) error {
	timeout := time.NewTimer(helloTimeout)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		old := s.sessions[c.key]
		if old == nil {
			s.sessions[c.key] = c
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		old.end(errSucceeded)
		select {
		case <-old.done:
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-timeout.C:
			return errors.New("requests of the client's last connection are still under way")
		}
	}
}

var errSucceeded = errors.New("the client has connected again")

// retire gives up the session of c.
func (s *Server) retire(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[c.key] == c {
		delete(s.sessions, c.key)
	}
}

// Close accepts no more, lets the requests under way finish, and ends all
// connections. The store stays open; it is closed after the server. An error
// means that the store still has requests that it does not finish.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close() // Serve returns
	}
	for c := range s.conns {
		c.drain()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		s.workers.close()
		close(done)
	}()
	if waitFor(done, s.options.CloseTimeout) {
		return nil
	}
	s.mu.Lock()
	for c := range s.conns {
		c.end(context.DeadlineExceeded)
	}
	s.mu.Unlock()
	if waitFor(done, s.options.CloseTimeout) {
		return nil
	}
	return fmt.Errorf("close block server: the store has not finished its requests in %v", 2*s.options.CloseTimeout)
}

func waitFor(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

func (s *Server) getJob() *job {
	if j, ok := s.jobs.Get().(*job); ok {
		return j
	}
	return new(job)
}
