package cluster

import (
	"context"
	"expvar"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Server is an embedded etcd member.
//
//	StartServer ── founds, joins or restarts ──> running ── Close ──> closed
//	                                               ├─ Removed: the others took it out; Close, ClearServer
//	                                               └─ Failed: etcd gave up, Err says why; Close
type Server struct {
	opts  ServerOptions
	alone bool // it goes on without the other members, for good
	etcd  *embed.Etcd
	kv    *Client
	log   *serverLog

	closing sync.Once
	stopped chan struct{} // ends the streams of clients
	failed  chan struct{}
	removed chan struct{}
	watched chan struct{} // closed when nobody waits for removal any more
}

// startPatience bounds how long a start may take.
const startPatience = 30 * time.Second

// setSegmentSize makes etcd's log files 8 MB instead of 64. Two are
// preallocated: 16 MB of disk in place of 122, and less to write at a start. The
// variable is etcd's own and read whenever a member starts, hence the once.
var setSegmentSize = sync.OnceFunc(func() { wal.SegmentSizeBytes = 8 * 1000 * 1000 })

// StartServer starts the etcd member of a directory. One that was founded or has
// joined goes on as what it was. In a new one it founds a cluster of one, or with
// o.Join becomes a member of one there is, which must have added it: see
// Cluster.KeepMembers. A start that was interrupted is resumed.
//
// A member that is the only voter serves when StartServer returns. Any other only
// runs: whether it serves depends on the others, see Ready.
//
// ErrOtherCluster, ErrFormat or ErrCorrupt if the directory is not this cluster's,
// is too new, or lacks its data; ErrNotMember if the cluster did not add the node.
func StartServer(ctx context.Context, o ServerOptions) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Advertise = o.advertised()
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	record, err := claimDir(o)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	setSegmentSize()
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	var s *Server
	if record.Joined && !record.Founded {
		s, err = join(ctx, o, record)
	} else {
		s, err = run(o, foundOrRestart)
		err = s.serving(ctx, err)
	}
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return s, nil
}

func newServer(o ServerOptions) *Server {
	return &Server{
		opts: o, failed: make(chan struct{}), stopped: make(chan struct{}),
		removed: make(chan struct{}), watched: make(chan struct{}),
	}
}

// run starts etcd and returns when it runs, whether it serves or not.
func run(o ServerOptions, how initialCluster) (*Server, error) { return newServer(o).run(how) }

func (s *Server) run(how initialCluster) (*Server, error) {
	s.log = newServerLog(s.opts.Log, func() { close(s.failed) })
	type started struct {
		etcd *embed.Etcd
		err  error
	}
	result := make(chan started, 1)
	go func() { // etcd's fatal log lines end the goroutine that they are written in
		e, err := embed.StartEtcd(s.config(how))
		result <- started{e, err}
	}()
	select {
	case r := <-result:
		if r.err != nil {
			return nil, s.opts.explain(r.err)
		}
		s.etcd = r.etcd
	case <-s.failed:
		return nil, s.Err()
	}
	s.kv = newClient(v3client.New(s.etcd.Server))
	go s.watchRemoval()
	return s, nil
}

// serving waits until a member that is the only voter serves, and records that its data
// is there from now on. err is that of run. The server is closed if it fails.
func (s *Server) serving(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	if err = s.becomeLeader(ctx); err == nil {
		err = markFounded(s.opts, s.ID())
	}
	if err != nil {
		s.Close() // only logs
	}
	return err
}

// becomeLeader makes the only voter its own leader, and waits until it serves. Left
// alone it would wait for its election timeout first, up to a second. etcd refuses
// until it has applied its own membership, so it is asked again.
func (s *Server) becomeLeader(ctx context.Context) error {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for s.onlyVoter() {
		if s.hasReplayed() {
			id := uint64(s.ID())
			campaign := &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), To: &id, From: &id}
			if err := s.etcd.Server.Process(ctx, campaign); err != nil {
				return err
			}
		}
		select {
		case <-s.Ready():
			return nil
		case <-again.C:
		case <-s.failed:
			return s.Err()
		case <-ctx.Done():
			return fmt.Errorf("member in %s not ready: %w", s.opts.Dir, ctx.Err())
		}
	}
	return nil
}

// hasReplayed reports whether raft, which has no leader yet, knows that everything in
// its log is applied. etcd applies entries and throws them out of memory before it
// tells raft, and a campaign between the two panics: raft looks for changes of the
// membership in entries that are gone. What etcd itself calls its applied index is ahead
// of raft's, which it publishes only as a variable of the process, for the last member
// started: any other is left to its election timeout.
func (s *Server) hasReplayed() bool {
	v, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return false
	}
	r, ok := v.Value().(raft.Status)
	return ok && r.ID == uint64(s.ID()) && r.Lead == raft.None && r.Applied == r.GetCommit()
}

// onlyVoter reports whether the member needs nobody else to serve, as far as it has
// applied its own membership: before, nobody is listed, not even itself (and etcd's
// own IsLearner panics).
func (s *Server) onlyVoter() bool {
	for _, m := range s.etcd.Server.Cluster().Members() {
		if m.IsLearner == (m.ID == s.etcd.Server.MemberID()) {
			return false
		}
	}
	return true
}

// watchRemoval closes removed when etcd stops although nobody closed it. It may
// do so without ever having said that it failed.
func (s *Server) watchRemoval() {
	defer close(s.watched)
	select {
	case <-s.etcd.Server.StopNotify():
	case <-s.stopped:
		return
	}
	select {
	case <-s.stopped:
	case <-s.failed:
	default:
		close(s.removed)
	}
}

// KV returns the records, reached in process. It is closed with the server, and
// silent when the member was removed: Dial's is not.
func (s *Server) KV() KV { return s.kv }

// Endpoint returns where clients reach the member: HOST:PORT.
func (s *Server) Endpoint() string { return s.opts.addr(s.opts.ClientPort) }

// ID returns etcd's number of the member.
func (s *Server) ID() MemberID { return MemberID(s.etcd.Server.MemberID()) }

// Ready is closed when the member has first found a leader and made itself known. In
// a third of joins that comes 7 s after it has got its vote, so nothing waits for it there.
func (s *Server) Ready() <-chan struct{} { return s.etcd.Server.ReadyNotify() }

// Removed is closed when the other members have taken this one out. What is left is
// to Close it, and ClearServer before its node joins again.
func (s *Server) Removed() <-chan struct{} { return s.removed }

// Failed is closed when etcd has given up, for example on a full disk. The process
// lives on, without its records.
func (s *Server) Failed() <-chan struct{} { return s.failed }

// Err returns why etcd has given up; nil if it hasn't.
func (s *Server) Err() error { return s.log.fatal() }

// Close stops the member; its data stays. After Failed it only lets go of it, as etcd's
// own Close would hang for ever.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.log.close()
		close(s.stopped)
		<-s.watched
		s.kv.Close() // in process: it has nothing to fail with
		s.stop()
	})
	return nil
}

// stop ends etcd, unless it has failed.
func (s *Server) stop() {
	select {
	case <-s.failed:
		return
	default:
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !s.handOver() {
			s.etcd.Server.HardStop() // or Close would go on trying for 7 s
		}
		s.etcd.Close()
	}()
	select {
	case <-done:
	case <-s.failed: // while closing
	}
}

// handOverTimeout is how long each other voter is given to become leader: enough for
// one that lives.
const handOverTimeout = 500 * time.Millisecond

// handOver makes another voter the leader, if this one is, so that nobody waits for an
// election. False if none can be.
func (s *Server) handOver() bool {
	e := s.etcd.Server
	if e.Leader() != e.MemberID() || s.onlyVoter() {
		return true
	}
	for _, m := range e.Cluster().Members() {
		if m.IsLearner || m.ID == e.MemberID() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
		err := e.MoveLeader(ctx, uint64(e.MemberID()), uint64(m.ID))
		cancel()
		if err == nil {
			return true
		}
	}
	return false
}

func memberDir(dir string) string { return filepath.Join(dir, "member") }

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// newInProcess returns another KV over the member.
func newInProcess(s *Server) *Client { return newClient(v3client.New(s.etcd.Server)) }
