package nbd

import (
	"bytes"
	"context"
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

// TestShutdownAmidOpen: a client whose export was being opened, and that says no
// more, does not get its whole time again when the server goes.
func TestShutdownAmidOpen(t *testing.T) {
	opening := make(chan struct{})
	s, tcp, _ := startServer(t, Options{NegotiationTimeout: time.Minute, Exports: &openExports{testExports(), func(ctx context.Context) error {
		close(opening)
		<-ctx.Done()
		time.Sleep(50 * time.Millisecond) // giving the volume up takes a while
		return ctx.Err()
	}}})
	c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	c.write(rawOption(optGo, goData("vol1")))
	<-opening
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// openExports asks open before an export is opened.
type openExports struct {
	Exports
	open func(ctx context.Context) error
}

func (e *openExports) Open(ctx context.Context, name string) (Device, func(), error) {
	if err := e.open(ctx); err != nil {
		return nil, nil, err
	}
	return e.Exports.Open(ctx, name)
}
