package remote

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
	"torus/store/faultstore"
	"torus/store/memstore"
)

// A rawClient speaks frames as the test likes.
type rawClient struct {
	t  *testing.T
	nc net.Conn
	in *input
}

// rawServer returns a server on a fresh store, which has volume 1 attached at
// epoch 1 with layer 1, the store, and the incarnation.
func rawServer(t *testing.T, o ServerOptions) (*Server, *faultstore.Store, store.Incarnation, string) {
	t.Helper()
	faulty := faultstore.New(memstore.New(), faultstore.Options{})
	r, err := faulty.Attach(t.Context(), 1, 1)
	if err == nil {
		err = r.Create(t.Context(), 1, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Store, o.Cluster, o.Node = faulty, "c", 1
	s := NewServer(o)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		faulty.Clear()
		if err := errors.Join(s.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	return s, faulty, r.Incarnation(), l.Addr().String()
}

func dialRaw(t *testing.T, addr string, number uint32) *rawClient {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	own := hello{version: protocolVersion, node: 1, session: 9, number: number, cluster: "c"}
	if _, err := greet(nc, &own, addr, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &rawClient{t, nc, newInput(nc)}
}

func frame(r request, body []byte) []byte {
	r.body, r.bodySum = uint32(len(body)), checksum(body)
	h := make([]byte, requestSize)
	r.encode(h)
	return append(h, body...)
}

func (c *rawClient) send(p []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(p); err != nil {
		c.t.Fatal(err)
	}
}

// answer returns the next answer that is no sign of life.
func (c *rawClient) answer() (a answer, body []byte, err error) {
	for {
		h, err := c.in.next(answerSize)
		if err != nil {
			return a, nil, err
		}
		if err := a.decode(h); err != nil {
			return a, nil, err
		}
		if a.op == opAlive {
			continue
		}
		body = make([]byte, a.body)
		_, err = c.in.full(body, 0)
		return a, body, err
	}
}

func write4K(incarnation store.Incarnation, id uint64) request {
	return request{op: opWrite, id: id, volume: 1, epoch: 1, incarnation: incarnation, layer: 1, off: int64(id) * 4096, n: 4096, version: 1<<40 + 1}
}

// TestBadFramesEndTheirConnection and nothing else.
func TestBadFramesEndTheirConnection(t *testing.T) {
	_, _, incarnation, addr := rawServer(t, ServerOptions{})
	good := dialRaw(t, addr, 1)
	page := make([]byte, 4096)
	flipped := func(at int) []byte {
		b := frame(write4K(incarnation, 7), page)
		b[at] ^= 4
		return b
	}
	tooLong := write4K(incarnation, 7)
	tooLong.n = 8192
	for name, bad := range map[string][]byte{
		"version":         flipped(3),
		"header":          flipped(20),
		"header checksum": flipped(84),
		"body":            flipped(requestSize + 100),
		"length":          frame(tooLong, page),
		"op":              frame(request{op: 200}, nil),
	} {
		c := dialRaw(t, addr, 2)
		c.send(frame(write4K(incarnation, 3), page))
		if a, _, err := c.answer(); err != nil || a.errno != 0 {
			t.Fatalf("%s: a good frame before: %+v, %v", name, a, err)
		}
		c.send(append(bad, frame(write4K(incarnation, 5), page)...))
		if a, _, err := c.answer(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: got %+v, error %v, want the end of the connection", name, a, err)
		}
		good.send(frame(write4K(incarnation, 4), page))
		if a, _, err := good.answer(); err != nil || a.errno != 0 || a.id != 4 {
			t.Fatalf("%s: on another connection: %+v, %v", name, a, err)
		}
	}
}

// TestRequestsInFlightAreBounded: who sends more is not read from.
func TestRequestsInFlightAreBounded(t *testing.T) {
	for name, try := range map[string]struct {
		options ServerOptions
		size    int64
		send    int
		most    int
	}{
		"requests": {ServerOptions{MaxInFlight: 4}, 4096, 200, 4},
		"bytes":    {ServerOptions{}, 16 << 20, 10, 4}, // 64 MiB
	} {
		t.Run(name, func(t *testing.T) {
			s, faulty, incarnation, addr := rawServer(t, try.options)
			faulty.Inject(faultstore.Fault{Ops: faultstore.Write, Effect: faultstore.Hang})
			c := dialRaw(t, addr, 1)
			sent := make(chan error, 1)
			go func() {
				body := make([]byte, try.size)
				for i := range try.send {
					r := write4K(incarnation, uint64(i))
					r.n, r.off = try.size, 0
					if _, err := c.nc.Write(frame(r, body)); err != nil {
						sent <- err
						return
					}
				}
				sent <- nil
			}()
			for end := time.Now().Add(10 * time.Second); s.Stats().Running < try.most; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d requests are under way, want %d", s.Stats().Running, try.most)
				}
			}
			for range 50 {
				if n := s.Stats().Running; n > try.most {
					t.Fatalf("%d requests are under way, at most %d", n, try.most)
				}
				time.Sleep(time.Millisecond)
			}
			faulty.Clear()
			for i := range try.send {
				if a, body, err := c.answer(); err != nil || a.errno != 0 {
					t.Fatalf("answer %d: %+v %q, %v", i, a, body, err)
				}
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSlowReadHoldsNothingUp: others on the same connection are answered
// before it.
func TestSlowReadHoldsNothingUp(t *testing.T) {
	_, faulty, incarnation, addr := rawServer(t, ServerOptions{})
	faulty.Inject(faultstore.Fault{Ops: faultstore.Read, Effect: faultstore.Hang})
	c := dialRaw(t, addr, 1)
	read := request{op: opRead, id: 99, volume: 1, epoch: 1, incarnation: incarnation, layer: 1, n: 4096}
	c.send(frame(read, nil))
	for id := range uint64(100) {
		c.send(frame(write4K(incarnation, id), make([]byte, 4096)))
	}
	for range 100 {
		if a, _, err := c.answer(); err != nil || a.op != opWrite || a.errno != 0 {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	faulty.Clear()
	if a, body, err := c.answer(); err != nil || a.op != opRead || !bytes.Equal(body, make([]byte, 4096)) {
		t.Fatalf("%+v, %v", a, err)
	}
}

// TestNextConnectionWaitsForTheLast: a connection of the same session and
// number is greeted when nothing of the one before can happen any more.
func TestNextConnectionWaitsForTheLast(t *testing.T) {
	s, faulty, incarnation, addr := rawServer(t, ServerOptions{})
	// The delay is over whether or not anybody waits for the answer.
	faulty.Inject(faultstore.Fault{Ops: faultstore.Sync, Effect: faultstore.Hang, Applied: true})
	c := dialRaw(t, addr, 1)
	c.send(frame(request{op: opSync, id: 1, volume: 1, epoch: 1, incarnation: incarnation}, nil))
	for s.Stats().Running == 0 {
		time.Sleep(time.Millisecond)
	}
	next := dialRaw(t, addr, 1)
	if n := s.Stats().Running; n != 0 {
		t.Errorf("%d requests of the last connection are under way", n)
	}
	if _, _, err := c.answer(); err == nil {
		t.Error("the last connection lives")
	}
	next.send(frame(write4K(incarnation, 2), make([]byte, 4096)))
	if a, _, err := next.answer(); err != nil || a.errno != 0 {
		t.Fatalf("%+v, %v", a, err)
	}
}

// TestEpochThatIsNotOnRecord: a request under an epoch that nobody attached
// raises no fence.
func TestEpochThatIsNotOnRecord(t *testing.T) {
	_, faulty, incarnation, addr := rawServer(t, ServerOptions{})
	c := dialRaw(t, addr, 1)
	r := write4K(incarnation, 1)
	r.epoch = 2
	c.send(frame(r, make([]byte, 4096)))
	if a, _, err := c.answer(); err != nil || a.errno != errnoFenced {
		t.Fatalf("%+v, %v", a, err)
	}
	for f, err := range faulty.Fences(t.Context()) {
		if err != nil || f.Epoch != 1 {
			t.Fatalf("fence %+v, %v", f, err)
		}
	}
}

// TestClientReadsNoAnswers, though it sends signs of life: the server does not
// hold its requests for ever.
func TestClientReadsNoAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(ServerOptions{Store: memstore.New(), Cluster: "c", Node: 1})
		l := &onePipe{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		near, far := net.Pipe()
		l.conns <- far
		own := hello{version: protocolVersion, node: 1, session: 9, cluster: "c"}
		if _, err := greet(near, &own, "", time.Second); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var err error
		for id := uint64(1); err == nil; id++ {
			_, err = near.Write(frame(request{op: opAlive, id: id}, nil))
			time.Sleep(beat)
		}
		if took := time.Since(began); took < 20*time.Second || took > time.Minute {
			t.Errorf("ended after %v", took)
		}
		if err := errors.Join(s.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
}
