package cluster

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A gateway passes connections on to an address. While it is frozen it takes them and
// passes nothing on: so a stopped process looks from outside.
type gateway struct {
	net.Listener
	to string

	passed atomic.Int64 // reads that were passed on

	mu     sync.Mutex
	open   []net.Conn
	closed bool
	pass   chan struct{} // closed while it passes bytes on
}

func newGateway(t *testing.T, to string) *gateway {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{Listener: l, to: to, pass: make(chan struct{})}
	close(g.pass)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			g.keep(in, out)
			running.Go(func() { g.copy(in, out) })
			running.Go(func() { g.copy(out, in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.mu.Lock()
		g.closed = true
		for _, c := range g.open {
			c.Close()
		}
		g.mu.Unlock()
		g.thaw()
		running.Wait()
	})
	return g
}

// keep remembers connections, to close them at the end.
func (g *gateway) keep(cs ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = append(g.open, cs...)
	if g.closed {
		for _, c := range cs {
			c.Close()
		}
	}
}

func (g *gateway) copy(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		g.passed.Add(1)
		g.mu.Lock()
		pass := g.pass
		g.mu.Unlock()
		<-pass
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

func (g *gateway) freeze() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pass = make(chan struct{})
}

func (g *gateway) thaw() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.pass:
	default:
		close(g.pass)
	}
}

// mostSilent bounds what a call may take when a voter falls silent: until that is seen,
// with something for a machine that is busy. gRPC alone takes 12 s in all, callTimeout for each.
const mostSilent = slowCall + silentTimeout + 500*time.Millisecond

// While one of two endpoints is silent, calls pause once, as long as it takes to see that;
// a watch begins anew, and a transaction that was under way is unknown. Then the endpoint
// is used again.
func TestSilentVoter(t *testing.T) {
	t.Parallel()
	s := startServer(t, testServerOptions(t))
	g := newGateway(t, s.Endpoint())
	e, err := dial([]string{s.Endpoint(), g.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	commit := func(i int) error {
		_, err := e.Commit(t.Context(), Txn{Then: []Op{put("k", fmt.Sprint(i))}})
		return err
	}
	viaGateway := func() error {
		before := g.passed.Load()
		for i := range 4 {
			if err := commit(i); err != nil {
				t.Fatal(err)
			}
		}
		if g.passed.Load() == before {
			return errors.New("no call goes through the gateway")
		}
		return nil
	}
	eventually(t, 5*time.Second, viaGateway)

	g.freeze()
	begun := time.Now()
	var pauses []time.Duration
	timed := func(call func() error) error {
		began := time.Now()
		err := call()
		if took := time.Since(began); took > slowCall/2 {
			pauses = append(pauses, took)
		}
		return err
	}
	for i := range 40 {
		if err := timed(func() error { return commit(i) }); err != nil && !errors.Is(err, ErrUnknown) {
			t.Fatal(err)
		}
		if err := timed(func() error { _, _, err := e.Get(t.Context(), "k", 0); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begun); took > mostSilent || len(pauses) != 1 {
		t.Errorf("80 calls took %v, those that paused %v", took, pauses)
	}

	g.thaw()
	eventually(t, 10*time.Second, viaGateway)
}

// When no voter answers there is none to turn to: connections stay, and a call that is
// only late gets its answer.
func TestAllSilent(t *testing.T) {
	t.Parallel()
	s := startServer(t, testServerOptions(t))
	g := newGateway(t, s.Endpoint())
	e, err := dial([]string{g.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if _, _, err := e.Get(t.Context(), "k", 0); err != nil {
		t.Fatal(err)
	}
	g.freeze()
	time.AfterFunc(slowCall+silentTimeout+200*time.Millisecond, g.thaw)
	if _, err := e.Commit(t.Context(), Txn{Then: []Op{put("k", "x")}}); err != nil {
		t.Errorf("late, and not answered: %v", err)
	}
}
