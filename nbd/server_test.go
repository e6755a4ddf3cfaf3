package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// waitFor waits until cond holds.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(testTimeout); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestMain checks that all tests together leave no goroutine of ours behind.
func TestMain(m *testing.M) {
	code := m.Run()
	left := ours()
	for end := time.Now().Add(5 * time.Second); left != "" && time.Now().Before(end); left = ours() {
		time.Sleep(5 * time.Millisecond)
	}
	if code == 0 && left != "" {
		os.Stderr.WriteString("goroutines left behind:\n" + left)
		code = 1
	}
	os.Exit(code)
}

// ours are the stacks of goroutines in methods of this package.
func ours() (left string) {
	buf := make([]byte, 1<<20)
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "nbd.(*") {
			left += stack + "\n\n"
		}
	}
	return left
}

// TestOutOfOrder: a request that the device holds up does not hold up others,
// whether it came alone or in a crowd.
func TestOutOfOrder(t *testing.T) {
	dev := newMemDevice(1 << 20)
	hold := make(chan struct{})
	dev.before = func(op string, off, _ int64) error {
		if op == "write" && off == 0 {
			<-hold
		}
		return nil
	}
	_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	for i := range 20 { // a client that waits for each reply: served in turn
		c.write(rawRequest(0, 0, cmdRead, uint64(i), 0, 512, nil))
		c.reply(512)
	}
	c.write(rawRequest(0, 0, cmdWrite, 99, 0, 512, make([]byte, 512)))
	for i := range 40 {
		c.write(rawRequest(0, 0, cmdRead, uint64(i), 0, 512, nil))
		if r := c.reply(512); r.cookie != uint64(i) {
			t.Fatalf("reply to %d, want %d", r.cookie, i)
		}
	}
	close(hold)
	if r := c.reply(0); r.cookie != 99 || r.err != eOK {
		t.Fatalf("reply to %d, %v; want the held write", r.cookie, r.err)
	}
}

// TestManyInFlight sends a crowd at once in one piece, and in odd pieces.
func TestManyInFlight(t *testing.T) {
	for _, piece := range []int{1 << 20, 4096, 1000, 33} {
		dev := newMemDevice(1 << 20)
		_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}, MaxConnInFlight: 8})
		c := enter(t, "unix", unix, "v", structuredReplies, false)
		var all []byte
		const n = 100
		for i := range n {
			p := bytes.Repeat([]byte{byte(i + 1)}, 3000)
			all = append(all, rawRequest(1, 0, cmdWrite, uint64(i), uint64(i)*3000, 3000, p)...)
		}
		go func() {
			for ; len(all) > 0; all = all[min(piece, len(all)):] {
				if _, err := c.nc.Write(all[:min(piece, len(all))]); err != nil {
					return
				}
			}
		}()
		seen := map[uint64]bool{}
		for range n {
			r := c.reply(0)
			if r.err != eOK || seen[r.cookie] {
				t.Fatalf("reply %d: %v, seen before: %v", r.cookie, r.err, seen[r.cookie])
			}
			seen[r.cookie] = true
		}
		for i := range n {
			if !dev.holds(bytes.Repeat([]byte{byte(i + 1)}, 3000), int64(i)*3000) {
				t.Fatalf("write %d is not there", i)
			}
		}
	}
}

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

// TestNoAllocations: a request in steady state allocates nothing.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has pools forget at random")
	}
	for _, cmd := range []uint16{cmdRead, cmdWrite} {
		for _, depth := range []int{1, 16} {
			_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: newMemDevice(1 << 20)}}})
			c := enter(t, "unix", unix, "v", structuredReplies, false)
			l := newLoad(c.nc, cmd, 4096, depth, 1<<20)
			l.run(t, 1000) // pools fill
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			const n = 5000
			l.run(t, n)
			runtime.ReadMemStats(&after)
			// Some may be the runtime's own, or follow a collection.
			if got := after.Mallocs - before.Mallocs; got > n/20 {
				t.Errorf("command %d at depth %d: %d allocations in %d requests", cmd, depth, got, n)
			}
		}
	}
}

// TestUnreadable: a client that will not read any more is disconnected, even
// if it goes on sending.
func TestUnreadable(t *testing.T) {
	s, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: newMemDevice(1 << 20)}}})
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	if err := c.nc.(*net.UnixConn).CloseRead(); err != nil {
		t.Fatal(err)
	}
	c.nc.Write(rawRequest(0, 0, cmdRead, 1, 0, 512, nil))
	waitFor(t, "the connection to end", func() bool { return s.Stats().Connections == 0 })
}

// TestGrowth: requests are checked against the size that the device has now.
func TestGrowth(t *testing.T) {
	dev := &growingDevice{memDevice: newMemDevice(1 << 20)}
	dev.size.Store(4096)
	_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	for _, step := range []struct {
		size int64
		want errno
	}{{4096, eINVAL}, {8192, eOK}, {5000, eINVAL}} {
		dev.size.Store(step.size)
		c.write(rawRequest(0, 0, cmdRead, 1, 4096, 4096, nil))
		if r := c.reply(4096); r.err != step.want {
			t.Errorf("size %d: %v, want %v", step.size, r.err, step.want)
		}
	}
}

type growingDevice struct {
	*memDevice
	size atomic.Int64
}

func (d *growingDevice) Size() int64 { return d.size.Load() }

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

// TestNegotiationTimeout: who does not get on with it is disconnected.
func TestNegotiationTimeout(t *testing.T) {
	_, tcp, _ := startServer(t, Options{Exports: testExports(), NegotiationTimeout: 50 * time.Millisecond})
	c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	c.write(rawOption(optGo, goData("vol1"))[:9])
	c.closed()
	c = dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	c.mustAck(optGo, goData("vol1"))
	time.Sleep(80 * time.Millisecond) // longer than the timeout, which is over now
	c.write(rawRequest(0, 0, cmdRead, 1, 0, 512, nil))
	if r := c.reply(512); r.err != eOK {
		t.Error(r.err)
	}
}

func TestMaxConns(t *testing.T) {
	_, tcp, _ := startServer(t, Options{Exports: testExports(), MaxConns: 2})
	a := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	a.mustAck(optGo, goData("vol1"))
	b := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	nc, err := net.Dial("tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if n, err := nc.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("a third connection was let in")
	}
	b.mustAck(optAbort, nil)
	waitFor(t, "room for another", func() bool {
		nc, err := net.Dial("tcp", tcp)
		if err != nil {
			return false
		}
		defer nc.Close()
		n, _ := nc.Read(make([]byte, 1))
		return n == 1
	})
}

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
	waitFor(t, "the shutdown to begin", s.closing)
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

// TestMultiConn: a flush on one connection covers a write answered on another.
func TestMultiConn(t *testing.T) {
	dev := newMemDevice(1 << 20)
	_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
	a, b := enter(t, "unix", unix, "v", 0, false), enter(t, "unix", unix, "v", 0, false)
	a.write(rawRequest(0, 0, cmdWrite, 1, 0, 3, []byte("abc")))
	a.reply(0)
	b.write(rawRequest(0, 0, cmdFlush, 1, 0, 0, nil))
	b.reply(0)
	b.write(rawRequest(0, 0, cmdRead, 1, 0, 3, nil))
	if r := b.reply(3); string(r.data) != "abc" || dev.syncs.Load() != 1 {
		t.Errorf("read %q after %d syncs", r.data, dev.syncs.Load())
	}
}

// TestLoadFromManyConnections is for the race detector: everything at once.
func TestLoadFromManyConnections(t *testing.T) {
	dev := newMemDevice(4 << 20)
	_, tcp, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}, MaxBytes: 64 << 20, MaxInFlight: 20})
	var wg sync.WaitGroup
	for i := range 12 {
		network, addr := "unix", unix
		if i%2 == 0 {
			network, addr = "tcp", tcp
		}
		c := enter(t, network, addr, "v", replyMode(i%3), false)
		wg.Go(func() { churn(t, c, replyMode(i%3), uint64(i)<<18) })
	}
	wg.Wait()
}

// churn writes and reads back pieces of 256 KiB from base, several at a time.
func churn(t *testing.T, c *rawClient, mode replyMode, base uint64) {
	for round := range 30 {
		size := []uint64{512, 4096, 10000, 32768}[round%4]
		var all []byte
		for i := range uint64(8) {
			p := bytes.Repeat([]byte{byte(round), byte(i)}, int(size/2))
			all = append(all, rawRequest(mode, payloadFlag(mode), cmdWrite, i, base+i*size, size, p)...)
		}
		if _, err := c.nc.Write(all); err != nil {
			t.Error(err)
			return
		}
		for range 8 {
			if r := c.reply(0); r.err != eOK {
				t.Errorf("write: %v %s", r.err, r.msg)
			}
		}
		all = all[:0]
		for i := range uint64(8) {
			all = append(all, rawRequest(mode, 0, cmdRead, i, base+i*size, size, nil)...)
		}
		if _, err := c.nc.Write(all); err != nil {
			t.Error(err)
			return
		}
		for range 8 {
			r := c.reply(int(size))
			want := bytes.Repeat([]byte{byte(round), byte(r.cookie)}, int(size/2))
			if got := r.data[len(r.data)-int(size):]; !bytes.Equal(got, want) {
				t.Errorf("read %d differs in round %d", r.cookie, round)
			}
		}
	}
}

func TestBadOptions(t *testing.T) {
	for want, opt := range map[string]Options{
		"no Exports":               {},
		"no certificate":           {Exports: memExports{}, TLSMode: TLSRequired},
		"below":                    {Exports: memExports{}, MaxConnBytes: 1 << 20},
		"MaxBytes 67108863 is bel": {Exports: memExports{}, MaxBytes: 64<<20 - 1},
		"negative":                 {Exports: memExports{}, MaxConns: -1},
	} {
		if _, err := NewServer(opt); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want one with %q", opt, err, want)
		}
	}
}
