package remote_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"torus/store"
	"torus/store/memstore"
	"torus/store/remote"
)

// BenchmarkWrite and BenchmarkRead move pages over loopback, client and server
// in this process, into and from a memstore that was written before.
func BenchmarkWrite(b *testing.B) { benchmark(b, false) }
func BenchmarkRead(b *testing.B)  { benchmark(b, true) }

func benchmark(b *testing.B, read bool) {
	for _, n := range []int{4 << 10, 64 << 10, 1 << 20} {
		for _, depth := range []int{1, 64} {
			b.Run(fmt.Sprintf("%dKiB/depth%d", n>>10, depth), func(b *testing.B) { transfer(b, read, n, depth) })
		}
	}
}

// span is what a benchmark reads and writes, in bytes: small, that the memory
// of the store stays in the processor's cache as far as it can.
const span = 16 << 20

func transfer(b *testing.B, read bool, n, depth int) {
	r := benchReplica(b)
	each := max(1, span/n/depth) // requests of a caller's own range
	prepare(b, r)
	b.SetBytes(int64(n))
	b.ReportAllocs()
	var version atomic.Uint64
	version.Store(1 << 20)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	before := cpu(b)
	b.ResetTimer()
	for d := range depth {
		wg.Go(func() {
			p := make([]byte, n)
			chain := []store.LayerID{benchLayer}
			for i := 0; left.Add(-1) >= 0; i++ {
				off := int64((d*each+i%each)*n) % span
				var err error
				if read {
					err = r.Read(b.Context(), chain, off, p, nil)
				} else {
					err = r.Write(b.Context(), benchLayer, off, p, store.NewVersion(1, version.Add(1)), 0)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpu is the time of all processors that this process took: on a machine that
// others use, it says more than the clock.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const benchLayer store.LayerID = 5

func benchReplica(b *testing.B) store.Replica {
	l := listen(b, "tcp")
	server := remote.NewServer(remote.ServerOptions{Store: memstore.New(), Cluster: cluster, Node: node})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	c := remote.NewClient(remote.ClientOptions{Addr: l.Addr().String(), Cluster: cluster, Node: node})
	b.Cleanup(func() {
		if err := errors.Join(c.Close(), server.Close(), <-served); err != nil {
			b.Error(err)
		}
	})
	r, err := c.Attach(b.Context(), 1, 1)
	if err != nil {
		b.Fatal(err)
	}
	if err := r.Create(b.Context(), benchLayer, 0); err != nil {
		b.Fatal(err)
	}
	return r
}

func prepare(b *testing.B, r store.Replica) {
	p := make([]byte, 1<<20)
	for off := int64(0); off < span; off += int64(len(p)) {
		if err := r.Write(b.Context(), benchLayer, off, p, store.NewVersion(1, 1), 0); err != nil {
			b.Fatal(err)
		}
	}
}
