package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// nextPort is where freePorts looks next: below the ports that Linux gives to outgoing
// connections, which come and go, and never twice in a process.
var nextPort = func() *atomic.Int64 {
	n := new(atomic.Int64)
	n.Store(10000 + rand.Int64N(20000))
	return n
}()

// freePorts returns two ports that nobody listens on.
func freePorts(t *testing.T) (int, int) {
	t.Helper()
	var ports [2]int
	for i := range ports {
		for ports[i] == 0 {
			port := 10000 + int(nextPort.Add(1)%20000)
			l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
			if errors.Is(err, syscall.EADDRINUSE) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			l.Close() // held by nothing
			ports[i] = port
		}
	}
	return ports[0], ports[1]
}

const testID ID = "00000000000000c1"

func testServerOptions(t *testing.T) ServerOptions {
	t.Helper()
	client, peer := freePorts(t)
	return ServerOptions{
		Dir: filepath.Join(t.TempDir(), "etcd"), Cluster: testID, Node: 0xa1,
		Listen: netip.MustParseAddr("127.0.0.1"), ClientPort: client, PeerPort: peer,
	}
}

func startServer(t *testing.T, o ServerOptions) *Server {
	t.Helper()
	s, err := StartServer(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestEtcdInProcess(t *testing.T) {
	s := startServer(t, testServerOptions(t))
	testKV(t, inTheOpen, func(t *testing.T) kvUnderTest { return etcdUnderTest(t, s, newInProcess(s)) })
}

func TestEtcdOverTCP(t *testing.T) {
	s := startServer(t, testServerOptions(t))
	testKV(t, inTheOpen, func(t *testing.T) kvUnderTest {
		kv, err := Dial([]string{s.Endpoint()})
		if err != nil {
			t.Fatal(err)
		}
		return etcdUnderTest(t, s, kv)
	})
}

// etcdUnderTest empties a server for a test of kv.
func etcdUnderTest(t *testing.T, s *Server, kv KV) kvUnderTest {
	t.Helper()
	if _, err := s.kv.client.Delete(t.Context(), "", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kv.Close() })
	return kvUnderTest{
		KV: kv, shortTTL: time.Second, pass: time.Sleep,
		compact: func(t *testing.T) {
			p, err := s.kv.client.Get(t.Context(), "x")
			if err == nil {
				_, err = s.kv.client.Compact(t.Context(), p.Header.Revision)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
	}
}

// Founding, closing and starting again: quick, silent, and the records are there.
func TestServerRestarts(t *testing.T) {
	var log lockedBuffer
	o := testServerOptions(t)
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	for round := range 3 {
		began := time.Now()
		s := startServer(t, o)
		ready := time.Since(began)
		if round == 0 {
			mustCommit(t, s.KV(), put("k", "kept"))
		}
		wantPair(t, s.KV(), "k", 0, "kept")
		kv, err := Dial([]string{s.Endpoint()})
		if err != nil {
			t.Fatal(err)
		}
		next := follow(t, kv.Watch(t.Context(), "k", 1)) // an open stream of a client
		if _, err := next(); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		s.Close()
		closed := time.Since(began)
		kv.Close()
		t.Logf("round %d: ready after %v, closed after %v", round, ready, closed)
		if closed > 3*time.Second {
			t.Errorf("close waited %v for a client's watch", closed)
		}
	}
	if strings.TrimSpace(log.String()) != "" {
		t.Errorf("warnings in a clean life:\n%s", log.String())
	}
}

func TestServerPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	for what, set := range map[string]func(*ServerOptions){
		"clients (base port + 2)": func(o *ServerOptions) { o.ClientPort = port },
		"peers (base port + 3)":   func(o *ServerOptions) { o.PeerPort = port },
	} {
		o := testServerOptions(t)
		set(&o)
		_, err = StartServer(t.Context(), o)
		wantErr(t, err, syscall.EADDRINUSE, fmt.Sprintf(
			"etcd: address 127.0.0.1:%d, for etcd's %s, is in use: choose another base port with --port: address already in use", port, what))
	}
}

func TestServerRefusesOptions(t *testing.T) {
	for text, change := range map[string]func(*ServerOptions){
		`etcd: invalid: cluster "x" is not an ID of 16 hexadecimal digits`: func(o *ServerOptions) { o.Cluster = "x" },
		"etcd: invalid: listen address 10.0.0.1: connections are not encrypted yet: whoever can reach them can read and change all data, so any address but loopback needs --insecure": func(o *ServerOptions) {
			o.Listen = netip.MustParseAddr("10.0.0.1")
		},
		"etcd: invalid: client port 0, allowed are 1 to 65535":   func(o *ServerOptions) { o.ClientPort = 0 },
		"etcd: invalid: peer port 65536, allowed are 1 to 65535": func(o *ServerOptions) { o.PeerPort = 65536 },
		`etcd: invalid: directory "", node 00000000000000a1`:     func(o *ServerOptions) { o.Dir = "" },
		"etcd: invalid: no listen address":                       func(o *ServerOptions) { o.Listen = netip.Addr{} },
		"etcd: invalid: advertise address 0.0.0.0: nobody can connect to that; name one of this machine's with --advertise": func(o *ServerOptions) {
			o.Insecure, o.Listen = true, netip.IPv4Unspecified()
		},
	} {
		o := testServerOptions(t)
		change(&o)
		_, err := StartServer(t.Context(), o)
		wantErr(t, err, ErrInvalid, text)
	}
}

// A directory says whose it is; one of another cluster or node, of a newer
// format, or without its data is refused by name.
func TestServerRefusesDirectories(t *testing.T) {
	o := testServerOptions(t)
	startServer(t, o).Close()
	refused := func(is error, text string, change func(*ServerOptions)) {
		t.Helper()
		bad := o
		change(&bad)
		s, err := StartServer(t.Context(), bad)
		if err == nil {
			s.Close()
		}
		if err == nil || !errors.Is(err, is) || err.Error() != text {
			t.Errorf("got  %v\nwant %s", err, text)
		}
	}
	same := func(*ServerOptions) {}
	refused(ErrOtherCluster, "etcd: directory "+o.Dir+" belongs to another cluster: 00000000000000c1, not 00000000000000c2",
		func(o *ServerOptions) { o.Cluster = "00000000000000c2" })
	refused(ErrInvalid, "etcd: invalid: directory "+o.Dir+" belongs to node 00000000000000a1, not 00000000000000a2",
		func(o *ServerOptions) { o.Node = 0xa2 })
	file := filepath.Join(o.Dir, "torus.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"format":2}`)
	refused(ErrFormat, "etcd: file "+file+": unknown format: format 2, this program knows up to 1: it is too old", same)
	write(`{}`)
	refused(ErrCorrupt, "etcd: file "+file+": corrupt record: format 0", same)
	write(`{`)
	refused(ErrCorrupt, "etcd: file "+file+": corrupt record: unexpected end of JSON input", same)
	os.Remove(file)
	refused(ErrCorrupt, "etcd: directory "+o.Dir+": corrupt record: it has etcd's data, but no torus.json that says whose", same)
	write(string(good))
	startServer(t, o).Close()
	if err := os.RemoveAll(memberDir(o.Dir)); err != nil {
		t.Fatal(err)
	}
	refused(ErrCorrupt, "etcd: directory "+o.Dir+": corrupt record: the records of cluster 00000000000000c1 were here and are gone: "+
		`if other nodes still have them, remove this one with "torus node remove" and join anew`, same)
}

// A first start that was killed counts for nothing: the next one founds again,
// on other ports if it is told so, whatever etcd's data had come to.
func TestServerFoundsAgain(t *testing.T) {
	o := testServerOptions(t)
	s := startServer(t, o)
	mustCommit(t, s.KV(), put("k", "x"))
	s.Close()
	killed := o.dirRecord()
	if err := writeDirRecord(filepath.Join(o.Dir, "torus.json"), killed); err != nil {
		t.Fatal(err)
	}
	wal, err := filepath.Glob(filepath.Join(memberDir(o.Dir), "wal", "*.wal"))
	if err != nil || len(wal) == 0 {
		t.Fatalf("%v, %v", wal, err)
	}
	if err := os.Truncate(wal[0], 7); err != nil {
		t.Fatal(err)
	}
	o.ClientPort, o.PeerPort = freePorts(t)
	s = startServer(t, o)
	pairs, _, err := s.KV().Range(t.Context(), "k", 0)
	if err != nil || len(pairs) != 0 {
		t.Errorf("records of before: %v, %v", pairs, err)
	}
	r, err := readDirRecord(filepath.Join(o.Dir, "torus.json"))
	if want := o.dirRecord(); err != nil || !r.Founded || r.Peer != want.Peer || r.Peer == killed.Peer {
		t.Errorf("%+v, %v", r, err)
	}
}

// The directory as a kill -9 leaves it, copied under a running member: what was
// committed is there.
func TestServerAfterKill(t *testing.T) {
	o := testServerOptions(t)
	s := startServer(t, o)
	for i := range 100 {
		mustCommit(t, s.KV(), put(fmt.Sprint("k/", i), "x"))
	}
	copied := o
	copied.Dir = filepath.Join(t.TempDir(), "etcd")
	// The log first: the database may be behind it, but not ahead.
	for _, part := range []string{"member/snap", "member/wal"} {
		if err := os.CopyFS(filepath.Join(copied.Dir, part), os.DirFS(filepath.Join(o.Dir, part))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(copied.Dir, "torus.json"), mustRead(t, filepath.Join(o.Dir, "torus.json")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = startServer(t, copied)
	pairs, _, err := s.KV().Range(t.Context(), "k/", 0)
	if err != nil || len(pairs) != 100 {
		t.Errorf("%d of 100 keys, %v", len(pairs), err)
	}
}

// The only voter is asked to campaign while it still applies its log: etcd gives up when
// that comes before raft knows of what it has applied and thrown out of its memory.
func TestServerRestartsOnALongLog(t *testing.T) {
	o := testServerOptions(t)
	s := startServer(t, o)
	for i := range 400 {
		mustCommit(t, s.KV(), put("k", fmt.Sprint(i)))
	}
	s.Close()
	for range 100 {
		s = startServer(t, o)
		wantPair(t, s.KV(), "k", 0, "399")
		s.Close()
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Where etcd would end the process, its goroutine ends, the server says so,
// and closing it does not hang.
func TestServerGivesUp(t *testing.T) {
	s := startServer(t, testServerOptions(t))
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.etcd.GetLogger().Fatal("disk full", zap.String("file", "wal"))
		t.Error("goes on after a fatal line")
	}()
	<-ended
	<-s.Failed()
	if err := s.Err(); err == nil || err.Error() != "etcd gave up: disk full: map[file:wal]" {
		t.Errorf("%v", err)
	}
	s.Close()
	s.etcd.Close() // the test's etcd is well, and would leak
}

// Closing leaves no goroutine behind.
func TestServerLeaks(t *testing.T) {
	o := testServerOptions(t)
	startServer(t, o).Close() // etcd starts some that stay with the process
	before := runtime.NumGoroutine()
	for range 3 {
		s := startServer(t, o)
		kv, err := Dial([]string{s.Endpoint()})
		if err != nil {
			t.Fatal(err)
		}
		wantPair(t, kv, "k", 0, "")
		kv.Close()
		s.Close()
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

func TestDialNobody(t *testing.T) {
	_, port := freePorts(t)
	kv, err := Dial([]string{fmt.Sprint("127.0.0.1:", port)})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	if _, _, err := kv.Get(t.Context(), "k", 0); !errors.Is(err, ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if _, err := kv.Commit(t.Context(), Txn{Then: []Op{put("k", "x")}}); !errors.Is(err, ErrUnknown) || errors.Is(err, ErrUnavailable) {
		t.Errorf("commit: %v", err)
	}
	_, err = Dial(nil)
	wantErr(t, err, ErrInvalid, "invalid: no etcd endpoints")
}

// The transactions over real etcd: racing attachers, and a lease that really runs out.
func TestClusterOverEtcd(t *testing.T) {
	s := startServer(t, testServerOptions(t))
	kv, err := Dial([]string{s.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	c, err := Found(t.Context(), s.KV(), Founding{ID: testID, Replicas: 1}, Options{Lease: time.Second})
	if err == nil {
		err = c.RegisterNode(t.Context(), testNode(1))
	}
	if err == nil {
		_, err = c.CreateVolume(t.Context(), VolumeSpec{Name: "vol1", Size: 4096})
	}
	if err != nil {
		t.Fatal(err)
	}
	raceToAttach(t, c, 4, 5)

	manual, err := Open(t.Context(), kv, testID, Options{Lease: time.Second, ManualRenewal: true})
	if err != nil {
		t.Fatal(err)
	}
	dying, err := manual.Attach(t.Context(), "vol1", holder(1), AttachOptions{})
	if err == nil {
		err = dying.Serving(t.Context(), nil, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var a *Attachment
	for errors.Is(err, ErrBusy) || a == nil { // until the lease has run out
		if a, err = c.Attach(t.Context(), "vol1", holder(2), AttachOptions{}); err == nil {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal(err)
		}
	}
	if dying.Held() {
		t.Errorf("the first holder counts on its lease, which ran out after %v", time.Since(began))
	}
	if a.Epoch <= dying.Epoch || a.Volume.Clean {
		t.Errorf("epoch %v after %v, clean %v", a.Epoch, dying.Epoch, a.Volume.Clean)
	}
	if err := dying.Renew(t.Context()); !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	<-time.After(1500 * time.Millisecond) // longer than a lease: it renews itself
	if !a.Held() {
		t.Error("not renewed")
	}
	if err := a.Detach(t.Context(), true); err != nil {
		t.Error(err)
	}
}
