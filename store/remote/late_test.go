package remote_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
)

// TestLateAnswerLeavesTheSliceAlone: a read that was given up is answered, and
// its caller has the slice again.
func TestLateAnswerLeavesTheSliceAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipedHost(t)
		var lost tally[time.Time]
		h.pipes.wrap = func(nc net.Conn) net.Conn { return &noticed{nc, &lost} }
		r := attach(t, h.client(), epoch)
		write(t, r, 0, 1)
		h.inject("reads delay 5s once")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p, info := bytes.Repeat([]byte{0xee}, ps), make([]store.PageInfo, 1)
		fails(t, r.Read(ctx, []store.LayerID{layer}, 0, p, info), context.DeadlineExceeded)
		time.Sleep(10 * time.Second)
		if !bytes.Equal(p, bytes.Repeat([]byte{0xee}, ps)) || info[0] != (store.PageInfo{}) {
			t.Errorf("the slice was written to: %x, %+v", p[:8], info[0])
		}
		has(t, r, 0, 1)
		if len(lost.all()) > 0 {
			t.Error("a late answer has cost a connection")
		}
	})
}

// A stall is a connection on which bytes stop at some point, until it is
// closed.
type stall struct {
	net.Conn
	reads, writes atomic.Int64 // bytes that still pass; negative: all
	writing       atomic.Bool
	closed        chan struct{}
	once          sync.Once
}

func newStall(nc net.Conn) *stall {
	s := &stall{Conn: nc, closed: make(chan struct{})}
	s.reads.Store(-1)
	s.writes.Store(-1)
	return s
}

func (s *stall) Read(p []byte) (int, error) {
	left := s.reads.Load()
	if left == 0 {
		<-s.closed
		return 0, net.ErrClosed
	}
	if left > 0 {
		p = p[:min(int64(len(p)), left)]
	}
	n, err := s.Conn.Read(p)
	if left = s.reads.Load(); left > 0 {
		s.reads.Store(max(0, left-int64(n)))
	}
	return n, err
}

func (s *stall) Write(p []byte) (int, error) {
	s.writing.Store(true)
	defer s.writing.Store(false)
	if s.writes.Load() == 0 {
		<-s.closed
		return 0, net.ErrClosed
	}
	return s.Conn.Write(p)
}

func (s *stall) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

// TestGivenUpAmidATransfer: when a method returns, nothing of its slice is
// being sent or filled, at the cost of the connection; others that were on it
// are sent again.
func TestGivenUpAmidATransfer(t *testing.T) {
	for _, reading := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			h := newPipedHost(t)
			var stalls tally[*stall]
			h.pipes.wrap = func(nc net.Conn) net.Conn {
				s := newStall(nc)
				stalls.add(s)
				return s
			}
			c := h.client(one)
			r := attach(t, c, epoch)
			const n = 1 << 20
			ok(t, r.Write(t.Context(), layer, 0, bytes.Repeat([]byte{1}, n), v(1), 0))
			h.inject("syncs hang")
			other := make(chan error)
			go func() { other <- r.Sync(t.Context()) }()
			synctest.Wait()
			h.faulty.Clear()
			synctest.Wait()
			ok(t, <-other)
			h.inject("syncs delay 500ms once")
			go func() { other <- r.Sync(t.Context()) }()
			synctest.Wait()

			stalled := stalls.all()[0]
			if reading {
				stalled.reads.Store(n / 2)
			} else {
				stalled.writes.Store(0)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			p := make([]byte, n)
			var err error
			if reading {
				err = r.Read(ctx, []store.LayerID{layer}, 0, p, nil)
			} else {
				err = r.Write(ctx, layer, 0, p, v(2), 0)
			}
			fails(t, err, context.DeadlineExceeded)
			if stalled.writing.Load() {
				t.Error("the slice is still being sent")
			}
			copied := bytes.Clone(p)
			ok(t, <-other)
			time.Sleep(10 * time.Second)
			if !bytes.Equal(p, copied) {
				t.Error("the slice was written to")
			}
			if n := len(stalls.all()); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
			ok(t, r.Read(t.Context(), []store.LayerID{layer}, 0, p, nil))
			if !bytes.Equal(p, bytes.Repeat([]byte{1}, n)) {
				t.Error("other bytes than were written")
			}
		})
	}
}

// TestGivenUpRequestsMakeRoom: neither those that the store holds up, once it
// answers, nor those that waited for their turn take it from others.
func TestGivenUpRequestsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipedHost(t)
		h.down()
		h.opt.MaxInFlight = 2
		h.up()
		r := attach(t, h.client(one), epoch)
		for range 3 {
			h.inject("writes delay 2s")
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			var wg sync.WaitGroup
			for i := range int64(10) {
				wg.Go(func() {
					if err := r.Write(ctx, layer, i*ps, page(i, 1), v(1), 0); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("got error %v, want %v", err, context.DeadlineExceeded)
					}
				})
			}
			wg.Wait()
			cancel()
			h.faulty.Clear()
			began := time.Now()
			write(t, r, 20, 1)
			if took := time.Since(began); took > time.Second {
				t.Errorf("took %v", took)
			}
		}
		// Requests beyond the room there is wait their turn.
		h.inject("writes delay 100ms")
		var wg sync.WaitGroup
		for i := range int64(20) {
			wg.Go(func() {
				if err := r.Write(t.Context(), layer, i*ps, page(i, 2), v(2), 0); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i := range int64(20) {
			has(t, r, i, 2)
		}
	})
}
