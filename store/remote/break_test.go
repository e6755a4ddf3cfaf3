package remote_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"torus/store"
	"torus/store/remote"
)

// A cutter is a network that breaks connections after some bytes, at random.
type cutter struct {
	mu   sync.Mutex
	rng  *rand.Rand // guarded by mu
	mean int64      // bytes one way of a connection until it breaks; 0: never
	cuts int
}

func (c *cutter) dial(ctx context.Context, addr string) (net.Conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	go c.carry(nc, far)
	go c.carry(far, nc)
	return near, nil
}

// carry copies from one to the other until it breaks both.
func (c *cutter) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	for left := c.left(); ; {
		n, err := io.CopyN(to, from, min(left, c.piece()))
		left -= n
		if err != nil {
			return
		}
		if left <= 0 {
			c.mu.Lock()
			c.cuts++
			c.mu.Unlock()
			return
		}
	}
}

func (c *cutter) left() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mean == 0 {
		return 1 << 62
	}
	return 1 + int64(float64(c.mean)*c.rng.ExpFloat64())
}

func (c *cutter) piece() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return 1 + c.rng.Int64N(40000)
}

// TestBrokenConnections: over connections that break anywhere, every request
// is answered, and what it says is true.
func TestBrokenConnections(t *testing.T) {
	noLeaks(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := newHost(t)
	network := &cutter{rng: rand.New(rand.NewPCG(seed, 0)), mean: 300_000}
	c := h.client(func(o *remote.ClientOptions) {
		o.Dial, o.Timeout, o.Logger = network.dial, 30*time.Second, nil
	})
	r, err := c.Attach(t.Context(), volume, epoch)
	ok(t, err)
	const workers, rounds = 8, 80
	var wg sync.WaitGroup
	for w := range uint64(workers) {
		wg.Go(func() {
			m := &shaken{r: r, c: c, layer: store.LayerID(w + 1), rng: rand.New(rand.NewPCG(seed, w+1))}
			for round := range rounds {
				if err := m.step(t.Context()); err != nil {
					t.Errorf("worker %d, round %d: %v", w, round, err)
					return
				}
			}
		})
	}
	wg.Wait()
	network.mu.Lock()
	defer network.mu.Unlock()
	if network.cuts < 20 {
		t.Errorf("only %d connections broke", network.cuts)
	}
	t.Logf("%d connections broke", network.cuts)
}

const shakenPages = 64

// shaken is a layer, and what it must hold.
type shaken struct {
	r     store.Replica
	c     *remote.Client
	layer store.LayerID
	rng   *rand.Rand
	there bool
	seq   uint64
	pages [shakenPages]store.PageInfo
}

func (m *shaken) step(ctx context.Context) error {
	if !m.there {
		m.there = true
		return m.r.Create(ctx, m.layer, 0)
	}
	first := m.rng.Int64N(shakenPages)
	n := 1 + m.rng.Int64N(shakenPages-first)
	switch dice := m.rng.IntN(20); {
	case dice == 0:
		// What comes late of a drop or of what was before it would be seen.
		m.there, m.pages = false, [shakenPages]store.PageInfo{}
		return m.c.Drop(ctx, m.layer, store.AllChunks)
	case dice < 8:
		return m.write(ctx, first, n)
	case dice < 10:
		m.seq++
		m.set(first, n, store.Hole)
		return m.r.Zero(ctx, m.layer, first*ps, n*ps, v(m.seq), 0)
	case dice == 10:
		return m.r.Sync(ctx)
	case dice == 11:
		return m.extents(ctx)
	}
	return m.read(ctx, first, n)
}

func (m *shaken) set(first, n int64, kind store.Kind) {
	for i := first; i < first+n; i++ {
		m.pages[i] = store.PageInfo{Layer: m.layer, Kind: kind, Version: v(m.seq)}
	}
}

// bytes are what the pages hold that were written last.
func (m *shaken) bytes(first, n int64) []byte {
	p := make([]byte, n*ps)
	for i := range n {
		if info := m.pages[first+i]; info.Kind == store.Data {
			copy(p[i*ps:], bytes.Repeat([]byte{byte(m.layer), byte(first + i), byte(info.Version), byte(info.Version >> 8)}, ps/4))
		}
	}
	return p
}

func (m *shaken) write(ctx context.Context, first, n int64) error {
	m.seq++
	m.set(first, n, store.Data)
	p := m.bytes(first, n)
	err := m.r.Write(ctx, m.layer, first*ps, p, v(m.seq), 0)
	clear(p) // it is ours again
	return err
}

func (m *shaken) read(ctx context.Context, first, n int64) error {
	p, info := make([]byte, n*ps), make([]store.PageInfo, n)
	if err := m.r.Read(ctx, []store.LayerID{m.layer}, first*ps, p, info); err != nil {
		return err
	}
	for i := range info {
		if want := m.pages[first+int64(i)]; info[i] != want {
			return fmt.Errorf("page %d is %+v, want %+v", first+int64(i), info[i], want)
		}
	}
	if !bytes.Equal(p, m.bytes(first, n)) {
		return fmt.Errorf("pages %d to %d have other bytes than were written", first, first+n)
	}
	return nil
}

func (m *shaken) extents(ctx context.Context) error {
	var found [shakenPages]store.PageInfo
	for e, err := range m.r.Extents(ctx, m.layer, 0, shakenPages*ps, 0) {
		if err != nil {
			return err
		}
		for at := e.Off; at < e.End(); at += ps {
			found[at/ps] = store.PageInfo{Layer: m.layer, Kind: e.Kind, Version: e.Version}
		}
	}
	if found != m.pages {
		return fmt.Errorf("extents are %+v, want %+v", found, m.pages)
	}
	return nil
}
