package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"torus/ring"
)

// ServerOptions is what an embedded etcd member needs.
type ServerOptions struct {
	Dir     string // of this member alone; made if it is not there
	Cluster ID
	Node    ring.NodeID // the member's name
	// Recovery is that of the records. etcd takes members of another for strangers.
	Recovery Recovery

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

// check returns ErrInvalid unless a member can run so.
func (o ServerOptions) check() error {
	if err := o.Cluster.check(); err != nil {
		return err
	}
	if o.Dir == "" || o.Node == 0 {
		return fmt.Errorf("%w: directory %q, node %v", ErrInvalid, o.Dir, o.Node)
	}
	if err := checkAddress("listen", o.Listen, o.Insecure); err != nil {
		return err
	}
	if err := checkAddress("advertise", o.Advertise, o.Insecure); err != nil {
		return err
	}
	if o.Advertise.IsUnspecified() {
		return fmt.Errorf("%w: advertise address %v: nobody can connect to that; name one of this machine's with --advertise",
			ErrInvalid, o.Advertise)
	}
	if err := inRange("client port", o.ClientPort, 1, 65535); err != nil {
		return err
	}
	return inRange("peer port", o.PeerPort, 1, 65535)
}

// checkAddress returns ErrInvalid for an address that plain connections must not use.
func checkAddress(what string, a netip.Addr, insecure bool) error {
	if !a.IsValid() {
		return fmt.Errorf("%w: no %s address", ErrInvalid, what)
	}
	if !a.IsLoopback() && !insecure {
		return fmt.Errorf("%w: %s address %v: connections are not encrypted yet: whoever can reach them can read and change all data, so any address but loopback needs --insecure",
			ErrInvalid, what, a)
	}
	return nil
}

// advertised returns the address at which others reach the member.
func (o ServerOptions) advertised() netip.Addr {
	if o.Advertise.IsValid() {
		return o.Advertise
	}
	return o.Listen
}

// initialCluster is etcd's list of members at a first start: NAME=URL,… It is
// empty for a member that founds, or that has its data.
type initialCluster string

const foundOrRestart initialCluster = ""

// config returns how etcd is run. What differs from its defaults:
//
//   - SnapshotCount, SnapshotCatchUpEntries: etcd keeps the last entries in
//     memory; records are few, and a follower that is behind gets a snapshot.
//   - no gRPC gateway: nobody speaks JSON to it, and it holds a connection.
//   - MaxLearners, quota, compaction, MaxTxnOps: see the project's design.
//
// TickMs and ElectionMs are the defaults, 100 and 1000, and the same for all members
// always: with 20 and 200 a single member started as fast by itself as it does now
// with becomeLeader, but a leader that has others steps down when it hears nothing of
// them for that long, and an fdatasync on a busy disk takes 0.2 s now and then.
func (s *Server) config(how initialCluster) *embed.Config {
	o := s.opts
	c := embed.NewConfig()
	c.Name = o.Node.String()
	c.Dir = o.Dir
	c.ListenClientUrls = []url.URL{httpURL(o.Listen, o.ClientPort)}
	c.AdvertiseClientUrls = []url.URL{httpURL(o.Advertise, o.ClientPort)}
	c.ListenPeerUrls = []url.URL{httpURL(o.Listen, o.PeerPort)}
	c.AdvertisePeerUrls = []url.URL{httpURL(o.Advertise, o.PeerPort)}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	if how != foundOrRestart {
		c.InitialCluster, c.ClusterState = string(how), embed.ClusterStateFlagExisting
	}
	c.InitialClusterToken = "torus-" + string(o.Cluster)
	if o.Recovery != (Recovery{}) {
		c.InitialClusterToken += "-" + o.Recovery.String()
	}
	c.ForceNewCluster = s.alone
	c.TickMs, c.ElectionMs = 100, 1000
	c.SnapshotCount, c.SnapshotCatchUpEntries = 2000, 1000
	c.MaxLearners = maxLearners
	c.MaxTxnOps = MaxTxnOps
	c.QuotaBackendBytes = 1 << 30
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = "1h"
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.log.zap())
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(s.endStreams)}
	return c
}

// maxLearners is how many members may be without a vote at once. It must be the same
// on all members.
const maxLearners = 8

// initialClusterOf lists members for etcd, the one with the peer address self under
// its name. Of the others only the addresses matter.
func initialClusterOf(members []Member, self string, name string) initialCluster {
	parts := make([]string, len(members))
	for i, m := range members {
		as := "member-" + m.ID.String()
		if m.Peer == self {
			as = name
		}
		parts[i] = as + "=http://" + m.Peer
	}
	return initialCluster(strings.Join(parts, ","))
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

// addr returns where others reach a port: HOST:PORT.
func (o ServerOptions) addr(port int) string { return addrPort(o.advertised(), port) }

func addrPort(host netip.Addr, port int) string {
	return net.JoinHostPort(host.String(), strconv.Itoa(port))
}

func httpURL(host netip.Addr, port int) url.URL {
	return url.URL{Scheme: "http", Host: addrPort(host, port)}
}

// explain says of an address in use which one it is, and what helps.
func (o ServerOptions) explain(err error) error {
	var op *net.OpError
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &op) || op.Addr == nil {
		return err
	}
	what, offset := "clients", 2
	if op.Addr.String() == addrPort(o.Listen, o.PeerPort) {
		what, offset = "peers", 3
	}
	return fmt.Errorf("address %v, for etcd's %s (base port + %d), is in use: choose another base port with --port: %w",
		op.Addr, what, offset, syscall.EADDRINUSE)
}
