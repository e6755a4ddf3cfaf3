package nbd

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestDisconnectMidRequest: a client that goes away while the device works
// leaves nothing behind once the device is done.
func TestDisconnectMidRequest(t *testing.T) {
	dev := newMemDevice(1 << 20)
	hold, entered := make(chan struct{}), make(chan struct{}, 10)
	dev.before = func(string, int64, int64) error {
		entered <- struct{}{}
		<-hold
		return nil
	}
	exports := memExports{"v": {dev: dev}}
	s, _, unix := startServer(t, Options{Exports: exports})
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	for i := range 5 {
		c.write(rawRequest(0, 0, cmdWrite, uint64(i), 0, 512, make([]byte, 512)))
	}
	for range 5 {
		<-entered
	}
	c.write(rawRequest(0, 0, cmdWrite, 6, 0, 4096, make([]byte, 100))) // and half of one
	c.nc.Close()
	if exports["v"].closes.Load() != 0 {
		t.Error("released while the device is in use")
	}
	close(hold)
	waitFor(t, "the release", func() bool { return exports["v"].closes.Load() == 1 })
	waitFor(t, "all to be given back", func() bool {
		st := s.Stats()
		return st.InFlight == 0 && st.BytesHeld == 0 && st.Connections == 0
	})
}

// TestDisconnectAnswersAll: NBD_CMD_DISC behind other requests takes no answer
// away from them, nor does closing the sending half.
func TestDisconnectAnswersAll(t *testing.T) {
	for _, how := range []string{"disc", "half-close"} {
		dev := newMemDevice(1 << 20)
		var n atomic.Int32
		dev.before = func(string, int64, int64) error {
			time.Sleep(time.Duration(10-n.Add(1)) * time.Millisecond) // finish in reverse
			return nil
		}
		_, tcp, _ := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
		c := enter(t, "tcp", tcp, "v", simpleReplies, false)
		var all []byte
		for i := range 8 {
			all = append(all, rawRequest(0, 0, cmdRead, uint64(i), 0, 512, nil)...)
		}
		if how == "disc" {
			all = append(all, rawRequest(0, 0, cmdDisc, 0, 0, 0, nil)...)
		}
		c.write(all)
		if how == "half-close" {
			c.nc.(*net.TCPConn).CloseWrite()
		}
		for range 8 {
			if r := c.reply(512); r.err != eOK {
				t.Fatal(r.err)
			}
		}
		c.closed()
	}
}

// TestShutdown finishes and answers what has arrived, refuses what comes
// later, and returns when all is over.
func TestShutdown(t *testing.T) {
	dev := newMemDevice(1 << 20)
	hold, entered := make(chan struct{}), make(chan struct{}, 10)
	dev.before = func(string, int64, int64) error {
		entered <- struct{}{}
		<-hold
		return nil
	}
	exports := memExports{"v": {dev: dev}}
	s, tcp, _ := startServer(t, Options{Exports: exports})
	c := enter(t, "tcp", tcp, "v", structuredReplies, false)
	idle := enter(t, "tcp", tcp, "v", structuredReplies, false)
	haggling := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	haggling.mustAck(optStructuredReply, nil)
	for i := range 4 {
		c.write(rawRequest(1, 0, cmdRead, uint64(i), 0, 512, nil))
		<-entered
	}
	ended := make(chan error)
	go func() { ended <- s.Shutdown(context.Background()) }()
	waitFor(t, "the shutdown to begin", s.draining)
	c.write(rawRequest(1, 0, cmdWrite, 77, 0, 512, make([]byte, 512)))
	if r := c.reply(0); r.cookie != 77 || r.err != eSHUTDOWN {
		t.Errorf("a late request: %v", r.err)
	}
	if r := haggling.option(optGo, goData("v")); r[0].typ != repErrShutdown {
		t.Errorf("a late option: %#x", uint32(r[0].typ))
	}
	haggling.mustAck(optAbort, nil)
	idle.closed()
	select {
	case err := <-ended:
		t.Fatalf("Shutdown returned %v with requests in flight", err)
	default:
	}
	close(hold)
	for range 4 {
		if r := c.reply(0); r.err != eOK || len(r.data) != 520 {
			t.Errorf("a request in flight: %v", r.err)
		}
	}
	c.closed()
	c.nc.Close()
	idle.nc.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if exports["v"].closes.Load() != 2 {
		t.Error("the export was not released")
	}
	if _, err := net.Dial("tcp", tcp); err == nil {
		t.Error("still listening")
	}
}

// draining reports whether all connections have been told to take no more requests.
func (s *Server) draining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shut // it is set under mu, with all that
}

// TestShutdownCut: a device that never returns does not keep Shutdown.
func TestShutdownCut(t *testing.T) {
	dev := newMemDevice(1 << 20)
	hold, entered := make(chan struct{}), make(chan struct{}, 10)
	dev.before = func(string, int64, int64) error {
		entered <- struct{}{}
		<-hold
		return nil
	}
	s, tcp, _ := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
	c := enter(t, "tcp", tcp, "v", structuredReplies, false)
	c.write(rawRequest(1, 0, cmdRead, 1, 0, 512, nil))
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	c.closed()
	close(hold)
}
