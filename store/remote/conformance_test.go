package remote_test

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"

	"torus/store"
	"torus/store/memstore"
	"torus/store/remote"
	"torus/store/storetest"
)

const (
	cluster = "c1"
	node    = 7
)

// A machine is a disk whose stores are reached over connections.
type machine struct {
	disk    *memstore.Disk
	network string // tcp or unix
	client  *remote.Client
	server  *remote.Server
	served  chan error
}

func (m *machine) Open(t *testing.T) store.Store {
	inner := m.disk.Open()
	l := listen(t, m.network)
	m.server, m.served = serve(t, l, inner)
	c := remote.NewClient(remote.ClientOptions{
		Addr: l.Addr().String(), Cluster: cluster, Node: node, Dial: dialer(m.network),
		Logger: testLogger(t),
	})
	t.Cleanup(func() { c.Close() })
	m.client = c
	return &whole{c, m, inner}
}

// stop ends the client too: the suite calls replicas of stores that are gone,
// and each call would look for them until its time is over.
func (m *machine) stop(t *testing.T) {
	if m.server == nil {
		return
	}
	if err := errors.Join(m.client.Close(), m.server.Close(), <-m.served); err != nil {
		t.Error(err)
	}
	m.server = nil
}

func (m *machine) Kill(t *testing.T) {
	m.disk.Kill()
	m.stop(t)
}

func (m *machine) PowerCut(t *testing.T) {
	m.disk.PowerCut()
	m.stop(t)
}

// whole closes the store with its client, as the contract says of one store.
type whole struct {
	*remote.Client
	m     *machine
	inner store.Store
}

func (w *whole) Close() error {
	err := w.Client.Close()
	if w.m.server != nil {
		err = errors.Join(err, w.m.server.Close(), <-w.m.served)
		w.m.server = nil
	}
	return errors.Join(err, w.inner.Close())
}

func listen(t testing.TB, network string) net.Listener {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func serve(t testing.TB, l net.Listener, s store.Store) (*remote.Server, chan error) {
	t.Helper()
	server := remote.NewServer(remote.ServerOptions{Store: s, Cluster: cluster, Node: node, Logger: testLogger(t)})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return server, served
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the disk's seed was %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

func TestConformance(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Machine {
				return &machine{disk: memstore.NewDisk(newRand(t)), network: network}
			})
		})
	}
}
