package memstore_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"torus/store"
	"torus/store/memstore"
)

const (
	volume store.VolumeID = 1
	layer  store.LayerID  = 2
	ps                    = store.PageSize
)

func attach(t testing.TB, s store.Store) store.Replica {
	t.Helper()
	r, err := s.Attach(t.Context(), volume, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Create(t.Context(), layer, 0); err != nil {
		t.Fatal(err)
	}
	return r
}

// kinds returns what pages of the layer are.
func kinds(t *testing.T, s store.Store, pages int) []store.PageInfo {
	t.Helper()
	info := make([]store.PageInfo, pages)
	if err := attach(t, s).Read(t.Context(), []store.LayerID{layer}, 0, make([]byte, pages*ps), info); err != nil {
		t.Fatal(err)
	}
	return info
}

// cut writes twice over some pages, cuts the power and returns what is left.
func cut(t *testing.T, seed uint64) []store.PageInfo {
	t.Helper()
	d := memstore.NewDisk(rand.New(rand.NewPCG(seed, 0)))
	r := attach(t, d.Open())
	for version := range store.Version(3) {
		if err := r.Write(t.Context(), layer, 0, make([]byte, 40*ps), version+1, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Zero(t.Context(), layer, 100*ps, 400*ps, 4, 0); err != nil {
		t.Fatal(err)
	}
	d.PowerCut()
	return kinds(t, d.Open(), 500)
}

func TestPowerCutTakesAnySubset(t *testing.T) {
	var all, none, mixed, middle, torn int
	for seed := range uint64(60) {
		left := cut(t, seed)
		count := make(map[store.Version]int)
		for _, page := range left[:40] {
			count[page.Version]++
		}
		switch {
		case count[3] == 40:
			all++
		case count[0] == 40:
			none++
		case count[0] > 0:
			mixed++
		}
		if count[1] > 0 && count[2] > 0 {
			middle++
		}
		holes := 0
		for _, page := range left[100:500] {
			if page.Kind == store.Hole {
				holes++
			}
		}
		if 0 < holes && holes < 400 {
			torn++
		}
	}
	t.Logf("of 60 cuts %d took nothing, %d all, %d some; %d left versions between, %d half a hole", all, none, mixed, middle, torn)
	for _, n := range []int{all, none, mixed, middle, torn} {
		if n == 0 {
			t.Fatal("one kind of outcome never came")
		}
	}
}

func TestSeedDecidesThePowerCut(t *testing.T) {
	for seed := range uint64(10) {
		if !slices.Equal(cut(t, seed), cut(t, seed)) {
			t.Fatalf("seed %d left different pages the second time", seed)
		}
	}
}

func TestDiskWithoutRandLosesNothing(t *testing.T) {
	d := memstore.NewDisk(nil)
	r := attach(t, d.Open())
	was := r.Incarnation()
	if err := r.Write(t.Context(), layer, 0, make([]byte, 5*ps), 1, 0); err != nil {
		t.Fatal(err)
	}
	d.PowerCut()
	for i, page := range kinds(t, d.Open(), 5) {
		if page.Kind != store.Data {
			t.Fatalf("page %d is %+v", i, page)
		}
	}
	if attach(t, d.Open()).Incarnation() == was {
		t.Fatal("the incarnation survived")
	}
}

func TestUnsyncedIsBounded(t *testing.T) {
	// What was written 64 MiB ago was written to the disk by itself.
	d := memstore.NewDisk(rand.New(rand.NewPCG(1, 0)))
	r := attach(t, d.Open())
	p := make([]byte, store.ChunkSize)
	for i := range int64(24) { // 96 MiB
		if err := r.Write(t.Context(), layer, i*store.ChunkSize, p, 1, 0); err != nil {
			t.Fatal(err)
		}
	}
	d.PowerCut()
	for i, page := range kinds(t, d.Open(), store.MaxIO/ps) {
		if page.Kind != store.Data {
			t.Fatalf("page %d is %+v", i, page)
		}
	}
}

func TestOpenKillsTheStoreBefore(t *testing.T) {
	d := memstore.NewDisk(nil)
	r := attach(t, d.Open())
	d.Open()
	if err := r.Sync(t.Context()); err == nil {
		t.Fatal("two stores have the disk")
	}
}

func benchmark(b *testing.B, d *memstore.Disk, do func(r store.Replica, i int) error) {
	r := attach(b, d.Open())
	b.SetBytes(ps)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := do(r, i); err != nil {
			b.Fatal(err)
		}
	}
}

const benchmarkPages = 16384

func BenchmarkWrite4K(b *testing.B) {
	p := make([]byte, ps)
	benchmark(b, memstore.NewDisk(nil), func(r store.Replica, i int) error {
		return r.Write(b.Context(), layer, int64(i%benchmarkPages)*ps, p, store.Version(i+1), 0)
	})
}

func BenchmarkWrite4KThatMayBeLost(b *testing.B) {
	p := make([]byte, ps)
	benchmark(b, memstore.NewDisk(rand.New(rand.NewPCG(1, 0))), func(r store.Replica, i int) error {
		return r.Write(b.Context(), layer, int64(i%benchmarkPages)*ps, p, store.Version(i+1), 0)
	})
}

func BenchmarkRead4K(b *testing.B) {
	p := make([]byte, ps)
	chain := []store.LayerID{layer}
	benchmark(b, memstore.NewDisk(nil), func(r store.Replica, i int) error {
		if i < benchmarkPages {
			return r.Write(b.Context(), layer, int64(i)*ps, p, 1, 0)
		}
		return r.Read(b.Context(), chain, int64(i%benchmarkPages)*ps, p, nil)
	})
}
