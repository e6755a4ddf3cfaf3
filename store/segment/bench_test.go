package segment

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"torus/store"
)

const (
	benchLayer store.LayerID = 1
	benchRange               = 1 << 30
)

// benchStore opens a store for measuring: TORUS_BENCH_DIR names a directory on
// the disk that is meant, else the tests' temporary one.
func benchStore(b *testing.B) (*Store, store.Replica) {
	b.Helper()
	st, err := Open(context.Background(), Options{Dir: filepath.Join(benchDir(b), "store"), Reserve: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { st.Close() })
	r, err := st.Attach(context.Background(), 1, 1)
	if err != nil {
		b.Fatal(err)
	}
	if err := r.Create(context.Background(), benchLayer, 0); err != nil {
		b.Fatal(err)
	}
	return st, r
}

func benchDir(b *testing.B) string {
	if dir := os.Getenv("TORUS_BENCH_DIR"); dir != "" {
		d, err := os.MkdirTemp(dir, "segment-bench")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { os.RemoveAll(d) })
		return d
	}
	return b.TempDir()
}

// load runs b.N requests from n writers.
func load(b *testing.B, n int, request func(worker int, i int64) error) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for w := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := request(w, i); err != nil {
					b.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	b.StopTimer()
}

func fill(b *testing.B, r store.Replica) {
	b.Helper()
	p := alignedBuffer(1 << 20)
	lastVersion.Store(benchRange >> 20)
	rand.NewChaCha8([32]byte{}).Read(p)
	for off := int64(0); off < benchRange; off += int64(len(p)) {
		if err := r.Write(context.Background(), benchLayer, off, p, store.NewVersion(1, uint64(off>>20)+1), 0); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.Sync(context.Background()); err != nil {
		b.Fatal(err)
	}
}

func random(_, n int64) int64     { return rand.Int64N(n) }
func sequential(i, n int64) int64 { return i % n }

// lastVersion goes on from one benchmark to the next.
var lastVersion atomic.Uint64

// writers gives each worker a buffer and each request a version.
func writers(r store.Replica, n, size int, f store.Flags, place func(i, n int64) int64) func(int, int64) error {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = alignedBuffer(size)
		rand.NewChaCha8([32]byte{byte(i)}).Read(bufs[i])
	}
	return func(w int, i int64) error {
		off := place(i, benchRange/int64(size)) * int64(size)
		return r.Write(context.Background(), benchLayer, off, bufs[w], store.NewVersion(1, lastVersion.Add(1)), f)
	}
}

// BenchmarkStore opens one store for all, since making and removing files of
// that size costs more than what is measured. Beside each figure stands its
// share of what fio reaches on a file of the same file system in the same run.
func BenchmarkStore(b *testing.B) {
	_, r := benchStore(b)
	fill(b, r)
	peer := newPeer(b)
	b.Run("write1M-8", func(b *testing.B) {
		b.SetBytes(1 << 20)
		load(b, 8, writers(r, 8, 1<<20, 0, sequential))
		report(b, peer.rate(b, "--rw=write", "--bs=1M", "--iodepth=8", "--ioengine=libaio"))
	})
	b.Run("write4k-64", func(b *testing.B) {
		b.SetBytes(4096)
		load(b, 64, writers(r, 64, 4096, 0, random))
		report(b, peer.rate(b, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--ioengine=libaio"))
	})
	b.Run("write4k-synced", func(b *testing.B) {
		b.SetBytes(4096)
		load(b, 1, writers(r, 1, 4096, store.FlagSync, random))
		report(b, peer.rate(b, "--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fdatasync=1"))
	})
	b.Run("read4k-32", func(b *testing.B) {
		b.SetBytes(4096)
		load(b, 32, readers(r, 32, 4096))
		report(b, peer.rate(b, "--rw=randread", "--bs=4k", "--iodepth=32", "--ioengine=libaio"))
	})
}

func readers(r store.Replica, n, size int) func(int, int64) error {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = alignedBuffer(size)
	}
	return func(w int, i int64) error {
		off := rand.Int64N(benchRange/int64(size)) * int64(size)
		return r.Read(context.Background(), []store.LayerID{benchLayer}, off, bufs[w], nil)
	}
}

// report gives our rate as a share of fio's on the file system itself.
func report(b *testing.B, peer float64) {
	rate := float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "req/s")
	if peer > 0 {
		b.ReportMetric(rate/peer, "of_fio")
	}
}

// A peer is fio on a file that was written before; nil where there is no fio.
type peer struct {
	file  string
	rates map[string]float64
}

func newPeer(b *testing.B) *peer {
	b.Helper()
	if _, err := exec.LookPath("fio"); err != nil {
		b.Log("no fio: figures stand alone")
		return nil
	}
	p := &peer{file: filepath.Join(benchDir(b), "fio"), rates: map[string]float64{}}
	if out, err := exec.Command("fio", p.args("--rw=write", "--bs=1M", "--ioengine=psync")...).CombinedOutput(); err != nil {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	return p
}

func (p *peer) args(more ...string) []string {
	return append([]string{"--name=x", "--filename=" + p.file, "--size=1G", "--direct=1", "--output-format=json"}, more...)
}

// rate runs a job for 3 s, once, and returns its requests a second.
func (p *peer) rate(b *testing.B, args ...string) float64 {
	b.Helper()
	if p == nil || b.N < 100 {
		return 0
	}
	if r := p.rates[b.Name()]; r != 0 {
		return r
	}
	out, err := exec.Command("fio", p.args(append(args, "--time_based", "--runtime=3")...)...).Output()
	if err != nil {
		b.Fatalf("fio: %v", err)
	}
	var result struct {
		Jobs []struct{ Read, Write struct{ IOPS float64 } }
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.Jobs) != 1 {
		b.Fatal(fmt.Errorf("fio's answer: %v", err))
	}
	p.rates[b.Name()] = result.Jobs[0].Read.IOPS + result.Jobs[0].Write.IOPS
	return p.rates[b.Name()]
}
