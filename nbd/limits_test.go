package nbd

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// TestInFlightBound: no more requests reach the device than the bound says.
func TestInFlightBound(t *testing.T) {
	dev := newMemDevice(1 << 20)
	var now, most atomic.Int32
	hold := make(chan struct{})
	dev.before = func(string, int64, int64) error {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-hold
		now.Add(-1)
		return nil
	}
	s, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}, MaxConnInFlight: 5, MaxInFlight: 7})
	a, b := enter(t, "unix", unix, "v", 0, false), enter(t, "unix", unix, "v", 0, false)
	for i := range 20 {
		a.write(rawRequest(0, 0, cmdRead, uint64(i), 0, 512, nil))
		b.write(rawRequest(0, 0, cmdRead, uint64(i), 0, 512, nil))
	}
	waitFor(t, "the bound to be reached", func() bool { return now.Load() == 7 && s.limit.contended() })
	close(hold)
	for range 20 {
		a.reply(512)
		b.reply(512)
	}
	if m := most.Load(); m != 7 {
		t.Errorf("%d requests at a time, want 7", m)
	}
}

// TestConnBound: one connection alone keeps to its own bound; and what came in
// a crowd goes to the device together, none of it waiting for the watch.
func TestConnBound(t *testing.T) {
	dev := newMemDevice(1 << 20)
	var now, most atomic.Int32
	hold := make(chan struct{})
	dev.before = func(string, int64, int64) error {
		most.Store(max(most.Load(), now.Add(1)))
		<-hold
		now.Add(-1)
		return nil
	}
	s, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}, MaxConnInFlight: 5})
	c := enter(t, "unix", unix, "v", 0, false)
	for i := range 4 { // the first one's reader serves it and loses the reading; then there is company
		c.write(rawRequest(0, 0, cmdRead, uint64(i), 0, 512, nil))
		waitFor(t, "the request to reach the device", func() bool { return now.Load() == int32(i+1) })
	}
	var all []byte
	for i := range 16 {
		all = append(all, rawRequest(0, 0, cmdRead, uint64(i), 0, 512, nil)...)
	}
	c.write(all)
	s.mu.Lock()
	var conn *conn
	for conn = range s.conns {
	}
	s.mu.Unlock()
	waitFor(t, "the bound to be reached", func() bool { return now.Load() == 5 && conn.limit.contended() })
	if n := conn.turn.Load(); n > 2 {
		t.Errorf("the reader took turns: %d", n)
	}
	close(hold)
	for range 20 {
		c.reply(512)
	}
	if m := most.Load(); m != 5 {
		t.Errorf("%d requests at a time, want 5", m)
	}
}

// TestThousandConnections: each announces a write of 32 MiB and says no more.
// Memory stays within the budget, and somebody who does speak is served once
// the silent ones have had their time.
func TestThousandConnections(t *testing.T) {
	const budget = 128 << 20
	s, _, unix := startServer(t, Options{
		Exports:  memExports{"v": {dev: newMemDevice(64 << 20)}},
		MaxBytes: budget, StallTimeout: 100 * time.Millisecond,
	})
	conns := make([]*rawClient, 1000)
	for i := range conns {
		conns[i] = enter(t, "unix", unix, "v", simpleReplies, false)
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, c := range conns {
		c.write(rawRequest(0, 0, cmdWrite, 1, 0, maxPayload, []byte("and then silence")))
	}
	waitFor(t, "the budget to be used up", func() bool { return s.limit.contended() })
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > budget+64<<20 {
		t.Errorf("the heap grew by %d MiB, the budget is %d", grown>>20, budget>>20)
	}
	if held := s.Stats().BytesHeld; held > budget {
		t.Errorf("%d bytes held, the budget is %d", held, budget)
	}
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	for _, c := range conns {
		c.nc.Close() // those that wait notice when it is their turn
	}
	c.write(rawRequest(0, 0, cmdRead, 1, 0, 4096, nil))
	if r := c.reply(4096); r.err != eOK {
		t.Errorf("read: %v", r.err)
	}
}

// TestStalledClients: without others waiting a client may stall for ever; with
// them it is disconnected.
func TestStalledClients(t *testing.T) {
	s, _, unix := startServer(t, Options{
		Exports:  memExports{"v": {dev: newMemDevice(64 << 20)}},
		MaxBytes: 64 << 20, StallTimeout: 50 * time.Millisecond,
	})
	writer := enter(t, "unix", unix, "v", simpleReplies, false)
	writer.write(rawRequest(0, 0, cmdWrite, 1, 0, maxPayload, []byte("begun")))
	reader := enter(t, "unix", unix, "v", simpleReplies, false)
	reader.write(rawRequest(0, 0, cmdRead, 1, 0, maxPayload, nil)) // never read
	waitFor(t, "both to hold memory", func() bool { return s.Stats().BytesHeld == 64<<20 })
	for range 10 {
		time.Sleep(20 * time.Millisecond) // longer than the timeout: nobody waits
	}
	if n := s.Stats().Connections; n != 2 {
		t.Fatalf("%d connections, want 2", n)
	}
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	c.write(rawRequest(0, 0, cmdRead, 1, 0, maxPayload, nil))
	if r := c.reply(maxPayload); r.err != eOK {
		t.Errorf("read: %v", r.err)
	}
}

// TestHalfHeader holds nothing but its connection.
func TestHalfHeader(t *testing.T) {
	s, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: newMemDevice(1 << 20)}}})
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	moved := func(want int64) func() bool {
		return func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			for conn := range s.conns {
				_, n := conn.wire.blocked()
				return n == want
			}
			return false
		}
	}
	req := rawRequest(0, 0, cmdRead, 1, 0, 512, nil)
	c.write(req[:13])
	waitFor(t, "the half to be read", moved(13))
	if st := s.Stats(); st.InFlight != 0 || st.BytesHeld != 0 {
		t.Errorf("half a header holds %+v", st)
	}
	waitFor(t, "the read buffer to be given back", func() bool {
		s.buffers.mu.Lock()
		defer s.buffers.mu.Unlock()
		return len(s.buffers.free[bufferClass(readBufferSize)]) == 1
	})
	c.write(req[13:])
	if r := c.reply(512); r.err != eOK {
		t.Fatal(r.err)
	}
	c.write(req[:27])
	c.nc.Close()
	waitFor(t, "the connection to end", func() bool { return s.Stats().Connections == 0 })
}
