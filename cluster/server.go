package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"google.golang.org/grpc"

	"torus/ring"
)

// ServerOptions is what an embedded etcd member needs.
type ServerOptions struct {
	Dir     string // of this member alone; made if it is not there
	Cluster ID
	Node    ring.NodeID // the member's name

	Listen     netip.Addr // where its ports are opened
	Advertise  netip.Addr // where others reach them; zero: Listen
	Insecure   bool       // allows addresses other than loopback: connections are plain
	ClientPort int        // for etcd clients: base port + 2
	PeerPort   int        // for other members: base port + 3

	// Join is a client of the cluster that a new member joins, in which it was added
	// (see Cluster.KeepMembers). nil: a new directory founds a cluster.
	Join *Client

	Log *slog.Logger // nil discards
}

// Server is an embedded etcd member.
type Server struct {
	opts ServerOptions
	etcd *embed.Etcd
	kv   *Client
	log  *serverLog

	closing sync.Once
	stopped chan struct{} // ends the streams of clients
	failed  chan struct{}
}

// startPatience bounds how long a start may take.
const startPatience = 30 * time.Second

// setSegmentSize makes etcd's log files 8 MB instead of 64. Two are
// preallocated: 16 MB of disk in place of 122, and less to write at a start. The
// variable is etcd's own and read whenever a member starts, hence the once.
var setSegmentSize = sync.OnceFunc(func() { wal.SegmentSizeBytes = 8 * 1000 * 1000 })

// StartServer starts the etcd member of a directory: it founds a cluster of one
// when the directory is new, and otherwise goes on as what was founded there.
// It returns when the member serves. ErrOtherCluster, ErrFormat or ErrCorrupt
// if the directory is not this cluster's, is too new, or lacks its data.
func StartServer(ctx context.Context, o ServerOptions) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if err := claimDir(o); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	setSegmentSize()
	s := &Server{opts: o, failed: make(chan struct{}), stopped: make(chan struct{})}
	s.log = newServerLog(o.Log, func() { close(s.failed) })
	if err := s.start(ctx); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	s.kv = newInProcess(s)
	return s, nil
}

// start runs etcd and waits until it serves.
func (s *Server) start(ctx context.Context) error {
	type started struct {
		etcd *embed.Etcd
		err  error
	}
	result := make(chan started, 1)
	go func() { // etcd's fatal log lines end the goroutine that they are written in
		e, err := embed.StartEtcd(s.config())
		result <- started{e, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	select {
	case r := <-result:
		if r.err != nil {
			return s.opts.explain(r.err)
		}
		s.etcd = r.etcd
	case <-s.failed:
		return s.Err()
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
		if err := markFounded(s.opts); err != nil {
			s.stop()
			return err
		}
		return nil
	case <-s.failed:
		return s.Err()
	case <-ctx.Done():
		s.stop()
		return fmt.Errorf("member in %s not ready: %w", s.opts.Dir, ctx.Err())
	}
}

// check returns ErrInvalid unless a member can run so.
func (o ServerOptions) check() error {
	if err := o.Cluster.check(); err != nil {
		return err
	}
	if o.Dir == "" || o.Node == 0 {
		return fmt.Errorf("%w: directory %q, node %v", ErrInvalid, o.Dir, o.Node)
	}
	if !o.Listen.IsLoopback() {
		return fmt.Errorf("%w: listen address %v: etcd's connections are not encrypted yet, so only loopback addresses are allowed",
			ErrInvalid, o.Listen)
	}
	if err := inRange("client port", o.ClientPort, 1, 65535); err != nil {
		return err
	}
	return inRange("peer port", o.PeerPort, 1, 65535)
}

// config returns how etcd is run. What differs from its defaults:
//
//   - TickMs, ElectionMs: etcd's are 100 and 1000; 20 and 200 make a member that
//     is alone its own leader within 0.2 s of its start, instead of up to 1 s. Idle,
//     with its 50 wakeups a second, it takes 0.8 % of a core.
//   - SnapshotCount, SnapshotCatchUpEntries: etcd keeps the last entries in
//     memory; records are few, and a follower that is behind gets a snapshot.
//   - no gRPC gateway: nobody speaks JSON to it, and it holds a connection.
//   - MaxLearners, quota, compaction, MaxTxnOps: see the project's design.
func (s *Server) config() *embed.Config {
	c := embed.NewConfig()
	c.Name = s.opts.Node.String()
	c.Dir = s.opts.Dir
	c.ListenClientUrls = []url.URL{s.opts.url(s.opts.ClientPort)}
	c.AdvertiseClientUrls = c.ListenClientUrls
	c.ListenPeerUrls = []url.URL{s.opts.url(s.opts.PeerPort)}
	c.AdvertisePeerUrls = c.ListenPeerUrls
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.InitialClusterToken = "torus-" + string(s.opts.Cluster)
	c.TickMs, c.ElectionMs = 20, 200
	c.SnapshotCount, c.SnapshotCatchUpEntries = 2000, 1000
	c.MaxLearners = 8
	c.MaxTxnOps = MaxTxnOps
	c.QuotaBackendBytes = 1 << 30
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = "1h"
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.log.zap())
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(s.endStreams)}
	return c
}

// endStreams ends every stream of a client when the server stops: now and then
// etcd's Close waited for an open watch, 5 s.
func (s *Server) endStreams(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	go func() {
		select {
		case <-s.stopped:
			cancel()
		case <-ctx.Done():
		}
	}()
	return handler(srv, &endingStream{ss, ctx})
}

// endingStream is a stream with a context that the server ends.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *endingStream) Context() context.Context { return s.ctx }

func (o ServerOptions) addr(port int) string {
	return net.JoinHostPort(o.Listen.String(), strconv.Itoa(port))
}

func (o ServerOptions) url(port int) url.URL { return url.URL{Scheme: "http", Host: o.addr(port)} }

// explain says of an address in use which one it is, and what helps.
func (o ServerOptions) explain(err error) error {
	var op *net.OpError
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &op) || op.Addr == nil {
		return err
	}
	what, offset := "clients", 2
	if op.Addr.String() == o.addr(o.PeerPort) {
		what, offset = "peers", 3
	}
	return fmt.Errorf("address %v, for etcd's %s (base port + %d), is in use: choose another base port with --port: %w",
		op.Addr, what, offset, syscall.EADDRINUSE)
}

// KV returns the records, reached in process. It is closed with the server.
func (s *Server) KV() KV { return s.kv }

// Endpoint returns where clients reach the member: HOST:PORT.
func (s *Server) Endpoint() string { return s.opts.addr(s.opts.ClientPort) }

// Failed is closed when etcd has given up, for example on a full disk. The process
// lives on, without its records.
func (s *Server) Failed() <-chan struct{} { return s.failed }

// Err returns why etcd has given up; nil if it hasn't.
func (s *Server) Err() error { return s.log.fatal() }

// Close stops the member; its data stays. After Failed it only lets go of it, as etcd's
// own Close would hang for ever.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.kv.Close() // in process: it has nothing to fail with
		s.stop()
	})
	return nil
}

// stop ends etcd, unless it has failed.
func (s *Server) stop() {
	s.log.close()
	close(s.stopped)
	select {
	case <-s.failed:
		return
	default:
	}
	done := make(chan struct{})
	go func() { defer close(done); s.etcd.Close() }()
	select {
	case <-done:
	case <-s.failed: // while closing
	}
}

func memberDir(dir string) string { return filepath.Join(dir, "member") }

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// newInProcess returns another KV over the member.
func newInProcess(s *Server) *Client { return newClient(v3client.New(s.etcd.Server)) }
