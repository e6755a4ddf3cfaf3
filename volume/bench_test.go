package volume

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"torus/store"
)

// BenchmarkStore is what the same requests cost without a volume: the volume's
// share is the difference.
func BenchmarkStore(b *testing.B) {
	c := newNodes(1, 1, nil)
	r, err := c.stores[0].Attach(b.Context(), testVolume, 1)
	must(b, err)
	must(b, r.Create(b.Context(), testHead, 0))
	chain := []store.LayerID{testHead}
	p := alignedPages(1)
	var seq atomic.Uint64
	for off := int64(0); off < benchSize; off += store.PageSize {
		must(b, r.Write(b.Context(), testHead, off, p, store.NewVersion(1, seq.Add(1)), 0))
	}
	b.Run("write4k", func(b *testing.B) {
		benchParallel(b, func(off int64, p []byte) error {
			return r.Write(b.Context(), testHead, off, p, store.NewVersion(1, seq.Add(1)), 0)
		})
	})
	b.Run("read4k", func(b *testing.B) {
		benchParallel(b, func(off int64, p []byte) error { return r.Read(b.Context(), chain, off, p, nil) })
	})
}

const benchSize = 64 << 20

// benchParallel does requests at random pages from several goroutines.
func benchParallel(b *testing.B, do func(off int64, p []byte) error) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		p := alignedPages(1)
		rng := rand.New(rand.NewPCG(1, rand.Uint64()))
		for pb.Next() {
			if err := do(rng.Int64N(benchSize/store.PageSize)*store.PageSize, p); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkVolume is requests of a volume over stores in memory.
func BenchmarkVolume(b *testing.B) {
	for _, copies := range []int{1, 3} {
		c := newNodes(copies, copies, nil)
		v := open(b, c.options(1, benchSize))
		write(b, v, make([]byte, benchSize), 0)
		b.Run(fmt.Sprintf("copies%d/write4k", copies), func(b *testing.B) {
			benchParallel(b, func(off int64, p []byte) error { _, err := v.WriteAt(p, off); return err })
		})
		b.Run(fmt.Sprintf("copies%d/read4k", copies), func(b *testing.B) {
			benchParallel(b, func(off int64, p []byte) error { _, err := v.ReadAt(p, off); return err })
		})
		b.Run(fmt.Sprintf("copies%d/write512", copies), func(b *testing.B) {
			benchParallel(b, func(off int64, p []byte) error { _, err := v.WriteAt(p[:512], off+512); return err })
		})
		b.Run(fmt.Sprintf("copies%d/write4k+sync", copies), func(b *testing.B) {
			benchParallel(b, func(off int64, p []byte) error {
				if _, err := v.WriteAt(p, off); err != nil {
					return err
				}
				return v.Sync()
			})
		})
		b.Run(fmt.Sprintf("copies%d/sync", copies), func(b *testing.B) {
			benchParallel(b, func(int64, []byte) error { return v.Sync() })
		})
	}
}

// BenchmarkTrim is a trim of a whole volume of 1 TiB.
func BenchmarkTrim(b *testing.B) {
	for _, n := range []int{1, 3} {
		b.Run(fmt.Sprintf("stores%d", n), func(b *testing.B) {
			c := newNodes(n, n, nil)
			v := open(b, c.options(1, 1<<40))
			for b.Loop() {
				must(b, v.Trim(0, v.Size(), false))
			}
		})
	}
}
