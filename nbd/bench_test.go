package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// The benchmarks measure the server and a client in one process on one
// machine, over a device that only copies: what is left is the protocol. The
// client sends a batch in one system call, as many requests as replies have
// come, and allocates nothing, so allocations are the server's.

func BenchmarkWrite(b *testing.B) { benchAll(b, cmdWrite) }
func BenchmarkRead(b *testing.B)  { benchAll(b, cmdRead) }

func benchAll(b *testing.B, cmd uint16) {
	for _, network := range []string{"unix", "tcp"} {
		for _, load := range []struct{ size, depth int }{{4096, 1}, {4096, 32}, {1 << 20, 8}} {
			b.Run(fmt.Sprintf("%s/%dK/depth%d", network, load.size>>10, load.depth), func(b *testing.B) {
				bench(b, network, cmd, load.size, load.depth)
			})
		}
	}
}

func bench(b *testing.B, network string, cmd uint16, size, depth int) {
	const devSize = 64 << 20
	_, tcp, unix := startServer(b, Options{Exports: memExports{"v": {dev: &fastDevice{memDevice: newMemDevice(devSize)}}}})
	addr := map[string]string{"unix": unix, "tcp": tcp}[network]
	c := enter(b, network, addr, "v", structuredReplies, false)
	c.nc.SetDeadline(time.Time{})
	l := newLoad(c.nc, cmd, size, depth, devSize)
	l.run(b, 4*depth) // warm up
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime()
	l.run(b, b.N)
	b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N)/1000, "cpu-µs/op")
}

// cpuTime is what this process has used, client included.
func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A load keeps depth requests of one kind under way.
type load struct {
	nc       net.Conn
	cmd      uint16
	size     int
	depth    int
	devSize  int
	one      []byte // a request with its payload
	batch    []byte
	in       []byte
	seq      int
	replyLen int
}

func newLoad(nc net.Conn, cmd uint16, size, depth, devSize int) *load {
	l := &load{nc: nc, cmd: cmd, size: size, depth: depth, devSize: devSize}
	l.one = rawRequest(structuredReplies, 0, cmd, 0, 0, uint64(size), nil)
	l.replyLen = simpleReplySize
	if cmd == cmdWrite {
		l.one = append(l.one, make([]byte, size)...)
	} else {
		l.replyLen = structuredReplySize + 8 + size
	}
	l.batch = make([]byte, 0, depth*len(l.one))
	l.in = make([]byte, max(64<<10, min(4<<20, depth*l.replyLen)))
	return l
}

func (l *load) send(n int) error {
	l.batch = l.batch[:0]
	for range n {
		l.seq++
		at := len(l.batch)
		l.batch = append(l.batch, l.one...)
		binary.BigEndian.PutUint64(l.batch[at+8:], uint64(l.seq))
		off := uint64(l.seq) * 2654435761 % uint64(l.devSize/l.size) * uint64(l.size)
		binary.BigEndian.PutUint64(l.batch[at+16:], off)
	}
	_, err := l.nc.Write(l.batch)
	return err
}

// run does n requests.
func (l *load) run(b testing.TB, n int) {
	sent := min(n, l.depth)
	if l.size >= 1<<20 {
		// Large batches would block on the replies they cause.
		for range sent {
			if err := l.send(1); err != nil {
				b.Fatal(err)
			}
		}
	} else if err := l.send(sent); err != nil {
		b.Fatal(err)
	}
	have := 0 // bytes of a reply
	for done := 0; done < n; {
		m, err := l.nc.Read(l.in)
		if err != nil {
			b.Fatal(err)
		}
		have += m
		got := have / l.replyLen
		have -= got * l.replyLen
		done += got
		if more := min(got, n-sent); more > 0 {
			sent += more
			if err := l.send(more); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// A fastDevice is a memDevice without its bookkeeping.
type fastDevice struct{ *memDevice }

func (d *fastDevice) ReadAt(p []byte, off int64) (int, error) {
	if n := copy(p, d.data[off:]); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

func (d *fastDevice) WriteAt(p []byte, off int64) (int, error) { return copy(d.data[off:], p), nil }
