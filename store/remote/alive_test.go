package remote_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
	"torus/store/remote"
)

// frozen is a connection that can stop moving bytes, as to a peer that was
// stopped or whose cable was pulled: nothing comes, nothing is refused.
type frozen struct {
	net.Conn
	freeze *freeze
}

type freeze struct {
	mu   sync.Mutex
	cond sync.Cond
	on   bool
}

func newFreeze() *freeze {
	f := new(freeze)
	f.cond.L = &f.mu
	return f
}

func (f *freeze) set(on bool) {
	f.mu.Lock()
	f.on = on
	f.mu.Unlock()
	f.cond.Broadcast()
}

// Write swallows what is written: the kernel has room for it.
func (c *frozen) Write(p []byte) (int, error) {
	c.freeze.mu.Lock()
	on := c.freeze.on
	c.freeze.mu.Unlock()
	if on {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *frozen) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.freeze.mu.Lock()
	defer c.freeze.mu.Unlock()
	for c.freeze.on && err == nil {
		// What comes now is lost; only closing ends the wait.
		c.freeze.mu.Unlock()
		n, err = c.Conn.Read(p)
		c.freeze.mu.Lock()
	}
	return n, err
}

// TestSilentListener: something accepts, and never says a word.
func TestSilentListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var conns tally[net.Conn]
		c := remote.NewClient(remote.ClientOptions{Addr: "silent:1", Cluster: cluster, Node: node,
			Dial: func(context.Context, string) (net.Conn, error) {
				a, b := net.Pipe()
				go func() {
					for p := make([]byte, 100); ; {
						if _, err := b.Read(p); err != nil {
							return
						}
					}
				}()
				conns.add(b)
				return a, nil
			}, Connections: 1})
		defer c.Close()
		began := time.Now()
		_, err := c.Attach(t.Context(), volume, epoch)
		fails(t, err, store.ErrUnreachable)
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("took %v, want 3s", took)
		}
		c.Close()
		for _, b := range conns.all() {
			b.Close()
		}
	})
}

// TestPeerGoesSilent: a peer that was there says nothing any more. It is
// noticed with requests under way as well as without, in less than 3 s; and
// when it is back, so are the connections.
func TestPeerGoesSilent(t *testing.T) {
	for _, idle := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			freeze := newFreeze()
			var lost tally[time.Time]
			h := newPipedHost(t)
			h.pipes.wrap = func(nc net.Conn) net.Conn { return &noticed{&frozen{nc, freeze}, &lost} }
			c := h.client(func(o *remote.ClientOptions) { o.Connections = 1 })
			r := attach(t, c, epoch)
			write(t, r, 1, 1)
			time.Sleep(10 * time.Second) // idle connections stay
			if len(lost.all()) > 0 {
				t.Fatal("an idle connection was taken for dead")
			}
			freeze.set(true)
			silent := time.Now()
			var err error
			if !idle {
				err = r.Write(t.Context(), layer, 0, page(0, 2), v(2), 0)
				fails(t, err, store.ErrUnreachable)
				if took := time.Since(silent); took != 3*time.Second {
					t.Errorf("the write took %v, want 3s", took)
				}
			} else {
				time.Sleep(3 * time.Second)
			}
			if at := lost.all(); len(at) == 0 || at[0].Sub(silent) >= 3*time.Second {
				t.Fatalf("noticed at %v, silent since %v", at, silent)
			}
			freeze.set(false)
			write(t, r, 1, 3)
			has(t, r, 1, 3)
		})
	}
}

// noticed notes when the client gives its connection up.
type noticed struct {
	net.Conn
	when *tally[time.Time]
}

func (c *noticed) Close() error {
	c.when.add(time.Now())
	return c.Conn.Close()
}

// TestSlowIsNotDead: a store that doesn't answer for long has its requests
// given up one by one, the connection lives, and another request is answered.
func TestSlowIsNotDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipedHost(t)
		var lost tally[time.Time]
		h.pipes.wrap = func(nc net.Conn) net.Conn { return &noticed{nc, &lost} }
		r := attach(t, h.client(), epoch)
		h.inject("writes delay 30s once")
		began := time.Now()
		err := r.Write(t.Context(), layer, 0, page(0, 1), v(1), 0)
		fails(t, err, store.ErrUnreachable)
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("took %v, want 3s", took)
		}
		write(t, r, 1, 2)
		time.Sleep(time.Minute)
		has(t, r, 0, 1) // it was applied after all
		if n := len(lost.all()); n > 0 {
			t.Errorf("%d connections were taken for dead", n)
		}
	})
}

// TestAttachMayTakeLong as long as the peer lives, and no longer than Patience.
func TestAttachMayTakeLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipedHost(t)
		c := h.client()
		h.inject("attaches delay 50s once")
		attach(t, c, epoch)
		h.inject("attaches delay 70s once")
		began := time.Now()
		_, err := c.Attach(t.Context(), volume, epoch+1)
		fails(t, err, store.ErrUnreachable)
		if took := time.Since(began); took != time.Minute {
			t.Errorf("took %v, want 1m", took)
		}
	})
}

// TestAttachToADeadPeer does not wait for Patience.
func TestAttachToADeadPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipedHost(t)
		c := h.client()
		attach(t, c, epoch)
		h.down()
		began := time.Now()
		_, err := c.Attach(t.Context(), volume, epoch)
		fails(t, err, store.ErrUnreachable)
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("took %v, want 3s", took)
		}
	})
}

// TestContextEndsARequest that the store holds up.
func TestContextEndsARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipedHost(t)
		r := attach(t, h.client(), epoch)
		h.inject("writes hang")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := r.Write(ctx, layer, 0, page(0, 1), v(1), 0)
		fails(t, err, context.DeadlineExceeded)
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err = r.Write(ctx, layer, 0, page(0, 1), v(1), 0)
		fails(t, err, context.Canceled)
		h.faulty.Clear()
		has(t, r, 5, 0)
	})
}

// TestCloseIsBounded where the store does not answer.
func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipedHost(t)
		c := h.client()
		r := attach(t, c, epoch)
		h.inject("attaches hang")
		done := make(chan error)
		go func() {
			_, err := c.Attach(t.Context(), volume, epoch)
			done <- err
		}()
		synctest.Wait()
		began := time.Now()
		ok(t, c.Close())
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("closing the client took %v, want 3s", took)
		}
		fails(t, <-done, store.ErrClosed)
		fails(t, r.Sync(t.Context()), store.ErrClosed)

		other := h.client()
		go func() {
			_, err := other.Attach(t.Context(), volume, epoch)
			done <- err
		}()
		synctest.Wait()
		began = time.Now()
		ok(t, h.server.Close())
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("closing the server took %v, want 5s", took)
		}
		if err := <-done; !errors.Is(err, store.ErrUnreachable) {
			t.Errorf("got error %v, want %v", err, store.ErrUnreachable)
		}
	})
}

// TestClientGoesSilent: the server gives its connection up, and what it holds.
func TestClientGoesSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipedHost(t)
		nc, err := h.pipes.dial(t.Context(), "")
		ok(t, err)
		defer nc.Close()
		began := time.Now()
		go nc.Write(rawHello(1, cluster, node))
		for p := make([]byte, 1000); err == nil; {
			_, err = nc.Read(p)
		}
		if took := time.Since(began); took < 5*time.Second || took > 15*time.Second {
			t.Errorf("ended after %v", took)
		}
		synctest.Wait()
		if n := h.server.Stats().Connections; n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}
