package cluster

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// freePorts returns two ports that nobody listens on.
func freePorts(t *testing.T) (int, int) {
	t.Helper()
	var ports [2]int
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
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
	testKV(t, func(t *testing.T) kvUnderTest { return etcdUnderTest(t, s, newInProcess(s)) })
}

func TestEtcdOverTCP(t *testing.T) {
	s := startServer(t, testServerOptions(t))
	testKV(t, func(t *testing.T) kvUnderTest {
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
