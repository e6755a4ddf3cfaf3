package volume

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"torus/store"
)

// extents returns what Extents yields, as text.
func extents(t *testing.T, v *Volume, off, n int64) string {
	t.Helper()
	var all []Extent
	for e, err := range v.Extents(off, n) {
		must(t, err)
		all = append(all, e)
	}
	return fmt.Sprint(all)
}

// TestExtentsThroughChain: the head hides what lies below, where it has pages.
func TestExtentsThroughChain(t *testing.T) {
	c := newNodes(3, 2, nil)
	const page = store.PageSize
	o := c.options(1, 64<<20)
	v := open(t, o)
	write(t, v, make([]byte, 10*page), 0)
	must(t, v.Close())
	o.Epoch, o.Chain = 2, []store.LayerID{testHead + 1, testHead}
	v = open(t, o)
	must(t, v.Trim(2*page, 2*page, false))
	write(t, v, make([]byte, page), 3*page)
	write(t, v, make([]byte, page), 12*page)
	for _, test := range []struct {
		off, n int64
		want   string
	}{
		{0, 20 * page, "[[0,8192) data [8192,12288) hole [12288,40960) data [40960,49152) hole [49152,53248) data [53248,81920) hole]"},
		{8000, 200, "[[8000,8192) data [8192,8200) hole]"},
		{9000, 1, "[[9000,9001) hole]"},
		{0, 0, "[]"},
		{60 * page, 64<<20 - 60*page, "[[245760,67108864) hole]"}, // joined over chunks of other nodes
	} {
		if got := extents(t, v, test.off, test.n); got != test.want {
			t.Errorf("extents of %d+%d: %s, want %s", test.off, test.n, got, test.want)
		}
	}
}

// TestExtentsBatches: more extents than one batch has, and a caller that stops.
func TestExtentsBatches(t *testing.T) {
	v := open(t, newNodes(1, 1, nil).options(1, 64<<20))
	const pages = 5 * extentBatch
	for i := int64(0); i < pages; i += 2 {
		write(t, v, make([]byte, store.PageSize), i*store.PageSize)
	}
	n, last := 0, store.Hole
	for e, err := range v.Extents(0, v.Size()) {
		must(t, err)
		if e.Kind == last {
			t.Fatalf("extent %d: %v after the same kind", n, e)
		}
		if n < pages-1 && e.N != store.PageSize {
			t.Fatalf("extent %d: %v", n, e)
		}
		n, last = n+1, e.Kind
	}
	if n != pages {
		t.Fatalf("%d extents, want %d", n, pages)
	}
	for range v.Extents(0, v.Size()) {
		break
	}
	if err := v.Close(); err != nil { // nothing holds it
		t.Fatal(err)
	}
}

func TestExtentsRange(t *testing.T) {
	v := open(t, newNodes(1, 1, nil).options(1, 1<<20))
	for _, r := range [][2]int64{{0, 1<<20 + 1}, {1 << 20, 1}, {-1, 1}, {0, -1}} {
		var errs []error
		for e, err := range v.Extents(r[0], r[1]) {
			if e != (Extent{}) {
				t.Errorf("extents of %d+%d: %v", r[0], r[1], e)
			}
			errs = append(errs, err)
		}
		if len(errs) != 1 || errs[0] == nil {
			t.Errorf("extents of %d+%d: errors %v", r[0], r[1], errs)
		}
	}
}

// TestTrimHuge: a trim of a whole volume is a few calls, not one a chunk, and
// what it leaves is one hole.
func TestTrimHuge(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		c := newNodes(nodes, nodes, nil)
		v := open(t, c.options(1, 1<<40))
		for i := range int64(10) {
			write(t, v, []byte("data"), i<<36+12345)
		}
		before := requests(t, c)
		must(t, v.Trim(100, 1<<40-200, false))
		if n := requests(t, c) - before; n > int64(3*nodes) { // two edges and what lies between
			t.Errorf("%d nodes: %d calls", nodes, n)
		}
		if got, want := extents(t, v, 4096, 1<<40-8192), "[[4096,1099511623680) hole]"; got != want {
			t.Errorf("%d nodes: %s", nodes, got)
		}
	}
}

// requests returns how many writes the nodes have had.
func requests(t *testing.T, c *nodes) (n int64) {
	for _, s := range c.stores {
		st, err := s.Stat(t.Context())
		must(t, err)
		n += st.Writes
	}
	return n
}

// TestZero: what becomes a hole and what is written.
func TestZero(t *testing.T) {
	const page = store.PageSize
	v := open(t, newNodes(1, 1, nil).options(1, 64<<20))
	for _, test := range []struct {
		name string
		do   func(off, n int64) error
		want string
	}{
		{"trim", func(off, n int64) error { return v.Trim(off, n, false) }, "[[0,4096) data [4096,12288) hole [12288,16384) data]"},
		{"trim with FUA", func(off, n int64) error { return v.Trim(off, n, true) }, "[[0,4096) data [4096,12288) hole [12288,16384) data]"},
		{"zero", func(off, n int64) error { return v.Zero(off, n, false, false) }, "[[0,4096) data [4096,12288) hole [12288,16384) data]"},
		{"zero without a hole", func(off, n int64) error { return v.Zero(off, n, false, true) }, "[[0,16384) data]"},
	} {
		want := make([]byte, 4*page)
		for i := range want {
			want[i] = byte(i%255 + 1)
		}
		write(t, v, want, 0)
		must(t, test.do(100, 4*page-200))
		clear(want[100 : 4*page-100])
		if got := read(t, v, 0, 4*page); !slices.Equal(got, want) {
			t.Errorf("%s: byte %d differs", test.name, firstDifference(got, want))
		}
		if got := extents(t, v, 0, 4*page); got != test.want {
			t.Errorf("%s: extents %s, want %s", test.name, got, test.want)
		}
	}
	// More than the zero pages that are kept ready, and than one request.
	must(t, v.Zero(1, 40<<20, false, true))
	if got, want := extents(t, v, 0, 64<<20), "[[0,41947136) data [41947136,67108864) hole]"; got != want {
		t.Errorf("extents %s, want %s", got, want)
	}
}

// TestLongRequests: more than one store takes at once, in one piece and in many.
func TestLongRequests(t *testing.T) {
	want := make([]byte, store.MaxIO+3*store.PageSize)
	for i := range want {
		want[i] = byte(i >> 12 * 7)
	}
	for _, test := range []struct {
		nodes, copies int
		off           int64
	}{{1, 1, store.PageSize}, {3, 2, 777}} {
		v := open(t, newNodes(test.nodes, test.copies, nil).options(1, 64<<20))
		write(t, v, want, test.off)
		if got := read(t, v, test.off, int64(len(want))); !bytes.Equal(got, want) {
			t.Errorf("at %d: byte %d differs", test.off, firstDifference(got, want))
		}
	}
}
