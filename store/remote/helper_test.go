package remote_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"torus/store"
	"torus/store/faultstore"
	"torus/store/memstore"
	"torus/store/remote"
)

const (
	volume store.VolumeID = 0x7001
	layer  store.LayerID  = 0xa1
	epoch  store.Epoch    = 3
	ps                    = store.PageSize
)

func v(sequence uint64) store.Version { return store.NewVersion(epoch, sequence) }

func dialer(network string) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

// A host is a disk, a store with faults on it, and its server, which listens
// at one address over restarts.
type host struct {
	t      *testing.T
	disk   *memstore.Disk
	faulty *faultstore.Store
	pipes  *pipes // nil: TCP
	addr   string
	opt    remote.ServerOptions
	server *remote.Server
	served chan error
}

func newHost(t *testing.T) *host {
	h := &host{t: t, disk: memstore.NewDisk(nil), addr: "127.0.0.1:0"}
	h.up()
	t.Cleanup(h.down)
	return h
}

// newPipedHost is reached over net.Pipe, so that it can live with a fake clock.
func newPipedHost(t *testing.T) *host {
	h := &host{t: t, disk: memstore.NewDisk(nil), pipes: new(pipes)}
	h.up()
	t.Cleanup(h.down)
	return h
}

// up starts a process on the disk.
func (h *host) up() {
	h.t.Helper()
	h.faulty = faultstore.New(h.disk.Open(), faultstore.Options{})
	h.opt.Store, h.opt.Cluster, h.opt.Node, h.opt.Logger = h.faulty, cluster, node, testLogger(h.t)
	h.server = remote.NewServer(h.opt)
	h.served = make(chan error, 1)
	var l net.Listener
	if h.pipes != nil {
		l = h.pipes.listen()
	} else {
		var err error
		if l, err = net.Listen("tcp", h.addr); err != nil {
			h.t.Fatal(err)
		}
		h.addr = l.Addr().String()
	}
	go func(server *remote.Server, served chan error) { served <- server.Serve(l) }(h.server, h.served)
}

// down ends the process, as kill -9 does.
func (h *host) down() {
	h.t.Helper()
	if h.server == nil {
		return
	}
	h.faulty.Clear()
	h.disk.Kill()
	if err := errors.Join(h.server.Close(), <-h.served); err != nil {
		h.t.Error(err)
	}
	h.server = nil
}

// client returns one of the host, which is closed before the host is. Options
// may change what it does.
func (h *host) client(change ...func(*remote.ClientOptions)) *remote.Client {
	o := remote.ClientOptions{Addr: h.addr, Cluster: cluster, Node: node, Logger: testLogger(h.t)}
	if h.pipes != nil {
		o.Dial = h.pipes.dial
	}
	for _, f := range change {
		f(&o)
	}
	c := remote.NewClient(o)
	h.t.Cleanup(func() { c.Close() })
	return c
}

// attach attaches and creates the layer.
func attach(t *testing.T, s store.Store, e store.Epoch) store.Replica {
	t.Helper()
	r, err := s.Attach(t.Context(), volume, e)
	ok(t, err)
	ok(t, r.Create(t.Context(), layer, 0))
	return r
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fails(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func (h *host) inject(text string) {
	h.t.Helper()
	f, err := faultstore.Parse(text)
	ok(h.t, err)
	h.faulty.Inject(f)
}

// page returns the bytes of a page as the write of that sequence leaves them.
func page(index int64, sequence uint64) []byte {
	return bytes.Repeat([]byte{byte(index), byte(sequence), byte(sequence >> 8), 0xa5}, ps/4)
}

func write(t *testing.T, r store.Replica, index int64, sequence uint64) {
	t.Helper()
	ok(t, r.Write(t.Context(), layer, index*ps, page(index, sequence), v(sequence), 0))
}

// has wants a page to be of that sequence, 0 for absent.
func has(t *testing.T, r store.Replica, index int64, sequence uint64) {
	t.Helper()
	p, info := make([]byte, ps), make([]store.PageInfo, 1)
	ok(t, r.Read(t.Context(), []store.LayerID{layer}, index*ps, p, info))
	want, wantInfo := make([]byte, ps), store.PageInfo{}
	if sequence > 0 {
		want, wantInfo = page(index, sequence), store.PageInfo{Layer: layer, Kind: store.Data, Version: v(sequence)}
	}
	if info[0] != wantInfo || !bytes.Equal(p, want) {
		t.Fatalf("page %d is %+v and begins with %x, want %+v and %x", index, info[0], p[:4], wantInfo, want[:4])
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not after 10 s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// noLeaks wants as many goroutines when the test and its cleanup are over as
// there were before. It is called before anything else.
func noLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for i := 0; runtime.NumGoroutine() > before; i++ {
			if i == 5000 {
				all := make([]byte, 1<<20)
				t.Fatalf("%d goroutines, there were %d:\n%s", runtime.NumGoroutine(), before, all[:runtime.Stack(all, true)])
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// pipes is a network of net.Pipe. The zero value has no listener.
type pipes struct {
	mu     sync.Mutex
	accept chan net.Conn
	wrap   func(net.Conn) net.Conn // the client's ends; nil: as they are
}

type pipeListener struct {
	p      *pipes
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) listen() net.Listener {
	l := &pipeListener{p: p, conns: make(chan net.Conn, 16), closed: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accept = l.conns
	return l
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.p.mu.Lock()
		defer l.p.mu.Unlock()
		if l.p.accept == l.conns {
			l.p.accept = nil
		}
	})
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial(context.Context, string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.accept == nil {
		return nil, errors.New("nobody listens")
	}
	a, b := net.Pipe()
	p.accept <- b
	if p.wrap != nil {
		return p.wrap(a), nil
	}
	return a, nil
}

// stopServer ends the server alone, with what the store still does for it.
func (h *host) stopServer() {
	h.t.Helper()
	server, served := h.server, h.served
	h.server = nil
	stopped := make(chan error, 1)
	go func() { stopped <- errors.Join(server.Close(), <-served) }()
	h.faulty.Clear()
	ok(h.t, <-stopped)
}

func one(o *remote.ClientOptions) { o.Connections = 1 }

// A tally is a list that several goroutines add to.
type tally[T any] struct {
	mu   sync.Mutex
	list []T
}

func (l *tally[T]) add(v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, v)
}

func (l *tally[T]) all() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}
