package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// TLSMode says whether clients encrypt.
type TLSMode int

const (
	TLSOff      TLSMode = iota // NBD_OPT_STARTTLS is refused
	TLSOffered                 // at the client's choice
	TLSRequired                // nothing but STARTTLS and ABORT is answered without
)

// Options say what a Server serves and how much it may take. Zero values mean
// the default that is named.
type Options struct {
	// Exports finds the devices. Required.
	Exports Exports
	// DefaultExport is served to clients that name none. "": Exports is
	// asked for "".
	DefaultExport string

	// TLS is what STARTTLS uses; see LoadTLS. Required unless TLSMode is
	// TLSOff.
	TLS     *tls.Config
	TLSMode TLSMode

	// Logger receives what happens. nil: nothing is logged.
	Logger *slog.Logger

	// NegotiationTimeout is how long a client may take from connecting to
	// entering an export, the time to open it apart. 30 s.
	NegotiationTimeout time.Duration
	// StallTimeout is how long a client may leave a payload half sent or a
	// reply unread while others wait for the memory that this holds. 30 s.
	StallTimeout time.Duration

	MaxConns        int   // connections; more are closed at once. 4096
	MaxInFlight     int   // requests being served, of all connections. 4096
	MaxConnInFlight int   // requests being served, of one connection. 128
	MaxBytes        int64 // memory of requests in flight. 512 MiB
	MaxConnBytes    int64 // the same of one connection, at least 64 MiB. 64 MiB
}

// A Server serves the devices of an Exports to any number of clients, over any
// number of listeners.
type Server struct {
	opt      Options
	log      *slog.Logger
	buffers  bufferPool
	limit    *limiter
	workers  workers
	watch    *watch
	lookouts lookouts
	stats    counters
	pool     sync.Pool // of *request

	ctx    context.Context // ends when Shutdown is called
	cancel context.CancelFunc
	done   chan struct{} // closed when the server has ended: stops watches

	mu         sync.Mutex // guards what follows; taken before no other lock
	shut       bool
	listeners  map[net.Listener]struct{}
	handshakes map[net.Conn]struct{}
	conns      map[*conn]struct{}
	wg         sync.WaitGroup // connections, from accept to close
	background sync.WaitGroup // watches
	finish     sync.Once
}

// NewServer checks the options and makes a server. Shutdown ends it.
func NewServer(opt Options) (*Server, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	s := &Server{
		opt:        opt,
		log:        opt.Logger,
		buffers:    bufferPool{maxIdle: min(opt.MaxBytes, maxIdleBuffers)},
		limit:      newLimiter(opt.MaxInFlight, opt.MaxBytes),
		workers:    workers{maxIdle: maxIdleWorkers},
		watch:      newWatch(),
		done:       make(chan struct{}),
		listeners:  make(map[net.Listener]struct{}),
		handshakes: make(map[net.Conn]struct{}),
		conns:      make(map[*conn]struct{}),
	}
	s.pool.New = func() any { return new(request) }
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.background.Go(func() { s.watch.run(s.done, s.lookAtTurns) })
	s.background.Go(s.watchStalls)
	return s, nil
}

const (
	maxIdleBuffers = 64 << 20 // bytes kept for reuse
	maxIdleWorkers = 256
)

func (o *Options) complete() error {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.MaxConns, 4096)
	def(&o.MaxInFlight, 4096)
	def(&o.MaxConnInFlight, 128)
	if o.MaxBytes == 0 {
		o.MaxBytes = 512 << 20
	}
	if o.MaxConnBytes == 0 {
		o.MaxConnBytes = 64 << 20
	}
	if o.NegotiationTimeout == 0 {
		o.NegotiationTimeout = 30 * time.Second
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	most := bufferCharge(maxPayload + pageSize - 1) // of one request
	switch {
	case o.Exports == nil:
		return errors.New("nbd: no Exports")
	case o.TLSMode != TLSOff && o.TLS == nil:
		return errors.New("nbd: TLS is on and there is no certificate")
	case o.MaxConns < 0 || o.MaxInFlight < 0 || o.MaxConnInFlight < 0:
		return errors.New("nbd: a limit is negative")
	case o.MaxConnBytes < most:
		return fmt.Errorf("nbd: MaxConnBytes %d is below %d, what one request may need", o.MaxConnBytes, most)
	case o.MaxBytes < o.MaxConnBytes:
		return fmt.Errorf("nbd: MaxBytes %d is below MaxConnBytes %d", o.MaxBytes, o.MaxConnBytes)
	}
	return nil
}

// Serve accepts connections from l, until Shutdown; then it returns
// ErrServerClosed. It may be called for several listeners at once, and closes
// l in the end.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.shut {
		s.mu.Unlock()
		l.Close()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		l.Close()
	}()
	wait := acceptRetry{}
	for {
		nc, err := l.Accept()
		if err != nil {
			if s.closing() {
				return ErrServerClosed
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of descriptors, or a connection that died in the
			// queue: neither is a reason to stop serving.
			s.log.Warn("accepting a connection failed", "err", err)
			if !wait.wait(s.ctx) {
				return ErrServerClosed
			}
			continue
		}
		wait = acceptRetry{}
		s.ServeConn(nc)
	}
}

// acceptRetry waits between failing accepts, longer each time, up to 1 s.
type acceptRetry struct{ d time.Duration }

func (a *acceptRetry) wait(ctx context.Context) bool {
	a.d = min(max(2*a.d, 5*time.Millisecond), time.Second)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(a.d):
		return true
	}
}

// ServeConn serves one connection, in the background, and closes it in the
// end.
func (s *Server) ServeConn(nc net.Conn) {
	s.mu.Lock()
	n := len(s.handshakes) + len(s.conns)
	if s.shut || n >= s.opt.MaxConns {
		shut := s.shut
		s.mu.Unlock()
		if !shut {
			s.log.Warn("connection refused: too many", "connections", n, "bound", s.opt.MaxConns)
		}
		nc.Close()
		return
	}
	s.handshakes[nc] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		s.serveConn(nc)
	}()
}

// negotiating gives a client its time to get on; what is left of it amid Shutdown.
func (s *Server) negotiating(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.opt.NegotiationTimeout
	if s.shut {
		d = min(d, linger)
	}
	nc.SetDeadline(time.Now().Add(d))
}

func (s *Server) serveConn(nc net.Conn) {
	log := s.log.With("client", clientName(nc))
	tuneSocket(nc)
	s.negotiating(nc)
	h := &handshake{srv: s, nc: nc, log: log}
	exp, err := h.run(s.ctx)
	defer func() { h.nc.Close() }()
	if err != nil {
		s.mu.Lock()
		delete(s.handshakes, nc)
		s.mu.Unlock()
		if err != errAborted && !isClosed(err) {
			log.Warn("negotiation failed", "err", err)
		}
		return
	}
	defer exp.release()
	h.nc.SetDeadline(time.Time{})
	log = log.With("export", exp.info.Name)
	c := newConn(s, h.nc, newWire(h.nc, &s.lookouts), log, exp.dev, exp.ses)
	s.mu.Lock()
	delete(s.handshakes, nc)
	s.conns[c] = struct{}{}
	if s.shut {
		c.drain(s.ctx)
	}
	s.mu.Unlock()
	if e, ok := exp.dev.(Ender); ok {
		defer breakAtEnd(e, h.nc, log)()
	}
	log.Info("client connected", "tls", h.secure, "replies", exp.ses.mode.String())
	err = c.run()
	s.mu.Lock()
	delete(s.conns, c)
	last := len(s.conns) == 0
	s.mu.Unlock()
	if last {
		s.buffers.drop()
	}
	if errors.Is(err, errDisconnect) || isClosed(err) {
		log.Info("client disconnected")
		return
	}
	log.Info("client disconnected", "err", err)
}

// breakAtEnd closes the connection when the device ends, unless stop comes first.
func breakAtEnd(e Ender, nc net.Conn, log *slog.Logger) (stop func()) {
	left := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-e.Done():
			log.Warn("the device has ended: the client's connection is broken")
			nc.Close()
		case <-left:
		}
	})
	return func() {
		close(left)
		wg.Wait()
	}
}

// tuneSocket wants small replies sent at once, and dead clients noticed
// though a live one may be silent for ever.
func tuneSocket(nc net.Conn) {
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.SetNoDelay(true)
		tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6})
	}
}

// clientName is the peer's address, for the log; Unix sockets have none.
func clientName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	return "local"
}

func (s *Server) closing() bool { return s.ctx.Err() != nil }

func (s *Server) getRequest(c *conn) *request {
	r := s.pool.Get().(*request)
	r.c = c
	return r
}

func (s *Server) putRequest(r *request) {
	*r = request{}
	s.pool.Put(r)
}

// lookAtTurns is the watch's look at all connections.
func (s *Server) lookAtTurns() (serving bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.takeTurn() {
			serving = true
		}
	}
	return serving
}

// Stats are counters since the server was made, and what is there now.
type Stats struct {
	Connections  int // negotiated
	InFlight     int // requests
	BytesHeld    int64
	Reads        int64
	Writes       int64
	Flushes      int64
	Trims        int64
	Zeroes       int64
	BytesRead    int64
	BytesWritten int64
	Errors       int64 // of devices
}

type counters struct {
	ops                             [cmdCount]atomic.Int64
	bytesRead, bytesWritten, errors atomic.Int64
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	slots, bytes := s.limit.left()
	s.mu.Lock()
	n := len(s.conns)
	s.mu.Unlock()
	return Stats{
		Connections: n, InFlight: s.opt.MaxInFlight - slots, BytesHeld: s.opt.MaxBytes - bytes,
		Reads: s.stats.ops[cmdRead].Load(), Writes: s.stats.ops[cmdWrite].Load(),
		Flushes: s.stats.ops[cmdFlush].Load(), Trims: s.stats.ops[cmdTrim].Load(),
		Zeroes:    s.stats.ops[cmdWriteZeroes].Load(),
		BytesRead: s.stats.bytesRead.Load(), BytesWritten: s.stats.bytesWritten.Load(),
		Errors: s.stats.errors.Load(),
	}
}
