package volume

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"torus/store"
)

// TestWants: every pair of absent, data and hole, of an older and of the present
// epoch, on both sides.
func TestWants(t *testing.T) {
	older, old, low, high := store.NewVersion(6, 8), store.NewVersion(6, 9), store.NewVersion(7, 1), store.NewVersion(7, 2)
	extent := func(k store.Kind, v store.Version) store.Extent { return store.Extent{Kind: k, Version: v} }
	all := []store.Extent{{}}
	for _, v := range []store.Version{older, old, low, high} {
		all = append(all, extent(store.Data, v), extent(store.Hole, v))
	}
	for _, n := range all {
		for _, p := range all {
			var want action
			switch {
			case n == p:
				want = leave
			case n.Version == low && p.Version < low, n.Version == high && p.Version < high:
				want = leave // sent to both, and p is about to have it
			case p.Kind == store.Absent:
				want = takeBack
			default:
				want = bring
			}
			if got := wants(n, p, 7); got != want {
				t.Errorf("node %v %v, peer %v %v: %v, want %v", n.Kind, n.Version, p.Kind, p.Version, got, want)
			}
		}
	}
}

// listed is a cursor over a list, with an error at its end unless that is nil.
func listed(list []store.Extent, err error) cursor {
	return cursor{now: store.Extent{Off: -1, N: 1}, next: func() (store.Extent, error, bool) {
		if len(list) == 0 {
			return store.Extent{}, err, err != nil
		}
		e := list[0]
		list = list[1:]
		return e, nil, true
	}}
}

// TestWalk: runs end where any copy has a border, and say what each copy lists.
func TestWalk(t *testing.T) {
	e := func(first, end int64, v store.Version) store.Extent {
		return store.Extent{Off: first << 12, N: (end - first) << 12, Kind: store.Hole, Version: v}
	}
	failed := errors.New("failed")
	for _, test := range []struct {
		err  error
		want []string
	}{
		{nil, []string{"0-3: 10 0", "3-4: 10 11", "4-6: 10 12", "6-7: 0 12", "8-9: 13 0", "20-22: 0 14", "30-30"}},
		{failed, []string{"0-3: 10 0", "3-4: 10 11", "4-6: 10 12", "6-7: 0 12", "8-9: 13 0", "failed"}},
	} {
		w := walk{end: 30 << 12, cursors: []cursor{
			listed([]store.Extent{e(0, 6, 10), e(8, 9, 13)}, test.err),
			listed([]store.Extent{e(3, 4, 11), e(4, 7, 12), e(20, 22, 14)}, nil),
		}}
		var got []string
		state := make([]store.Extent, 2)
		for {
			off, end, err := w.next(state)
			if err != nil {
				got = append(got, err.Error())
				break
			}
			if off == end {
				got = append(got, fmt.Sprintf("%d-%d", off>>12, end>>12))
				break
			}
			got = append(got, fmt.Sprintf("%d-%d: %d %d", off>>12, end>>12, state[0].Version, state[1].Version))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("got  %q\nwant %q", got, test.want)
		}
	}
}

// TestPieces: what is near is read together, at most a MiB at a time, and only
// what is lacking counts.
func TestPieces(t *testing.T) {
	const ps, mib = store.PageSize, int64(1 << 20)
	type run struct{ off, n int64 }
	for _, test := range []struct {
		runs          []run
		reads         []run
		lacking, gaps int64
	}{
		{[]run{{0, ps}, {ps, ps}}, []run{{0, 2 * ps}}, 2 * ps, 0},
		{[]run{{0, ps}, {5 * ps, ps}, {7 * ps, ps}}, []run{{0, 8 * ps}}, 3 * ps, 2},
		{[]run{{0, ps}, {6 * ps, ps}}, []run{{0, ps}, {6 * ps, ps}}, 2 * ps, 0},
		{[]run{{ps, ps}, {3 * ps, 2 * mib}}, []run{{ps, mib}, {ps + mib, mib}, {ps + 2*mib, 2 * ps}}, 2*mib + ps, 1},
		{[]run{{0, mib - ps}, {mib, ps}}, []run{{0, mib - ps}, {mib, ps}}, mib, 0},
	} {
		var pieces []piece
		for _, r := range test.runs {
			pieces = piece{Extent: store.Extent{Off: r.off, N: r.n, Kind: store.Data}}.join(pieces)
		}
		var reads []run
		var lacking, gaps int64
		for _, p := range pieces {
			reads = append(reads, run{p.Off, p.N})
			lacking += p.lacking()
			gaps += int64(len(p.gaps))
		}
		if !slices.Equal(reads, test.reads) || lacking != test.lacking || gaps != test.gaps {
			t.Errorf("%v: read as %v with %d gaps, %d bytes lacking; want %v, %d, %d",
				test.runs, reads, gaps, lacking, test.reads, test.gaps, test.lacking)
		}
	}
}

// TestLoads: a load is no more than is read at a time, and a hole stands alone.
func TestLoads(t *testing.T) {
	data := func(n int64) piece { return piece{Extent: store.Extent{N: n, Kind: store.Data}} }
	hole := piece{Extent: store.Extent{N: 1 << 40, Kind: store.Hole}}
	pieces := []piece{data(pieceBytes), data(pieceBytes - 4096), data(4096), data(4096), hole, data(4096)}
	var got []int
	for _, l := range loads(append(pieces, slices.Repeat([]piece{data(4096)}, loadPieces)...)) {
		got = append(got, len(l))
	}
	if want := []int{1, 2, 1, 1, loadPieces, 1}; !slices.Equal(got, want) {
		t.Errorf("loads of %v pieces, want %v", got, want)
	}
}
