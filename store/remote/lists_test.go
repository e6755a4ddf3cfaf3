package remote_test

import (
	"testing"

	"torus/store"
)

// TestLongLists come whole, in several frames, and may be left early.
func TestLongLists(t *testing.T) {
	const many = 5000
	h := newHost(t)
	c := h.client()
	inner := h.faulty
	for i := range store.VolumeID(many) {
		r, err := inner.Attach(t.Context(), i*7919%100003+1, 1+store.Epoch(i))
		ok(t, err)
		ok(t, r.Create(t.Context(), store.LayerID(uint64(i)*0x9e3779b97f4a7c15|1), 0))
	}
	want := map[store.LayerID]bool{}
	for l, err := range inner.Layers(t.Context()) {
		ok(t, err)
		want[l.ID] = true
	}
	last, n := store.LayerID(0), 0
	for l, err := range c.Layers(t.Context()) {
		ok(t, err)
		if !want[l.ID] || l.ID <= last {
			t.Fatalf("layer %v behind %v; it is one: %v", l.ID, last, want[l.ID])
		}
		last, n = l.ID, n+1
	}
	if n != len(want) {
		t.Errorf("%d layers, want %d", n, len(want))
	}
	fences := 0
	for f, err := range c.Fences(t.Context()) {
		ok(t, err)
		if f.Epoch == 0 {
			t.Fatalf("fence %+v", f)
		}
		fences++
	}
	if fences != many {
		t.Errorf("%d fences, want %d", fences, many)
	}
	for range c.Layers(t.Context()) {
		break
	}
}

// TestLongExtents are asked for page by page; each page is checked against the
// fence, so one that was raised ends them.
func TestLongExtents(t *testing.T) {
	const many = 5000
	h := newHost(t)
	c := h.client()
	r := attach(t, c, epoch)
	direct, err := h.faulty.Attach(t.Context(), volume, epoch)
	ok(t, err)
	for i := range int64(many) {
		ok(t, direct.Write(t.Context(), layer, i*2*ps, page(i, 1), v(1), 0))
	}
	for name, seq := range map[string]func(func(store.Extent, error) bool){
		"extents":  r.Extents(t.Context(), layer, 0, store.MaxVolumeSize, 0),
		"unstable": r.Unstable(t.Context(), layer),
	} {
		n := int64(0)
		for e, err := range seq {
			ok(t, err)
			if want := (store.Extent{Off: n * 2 * ps, N: ps, Kind: store.Data, Version: v(1)}); e != want {
				t.Fatalf("%s: got %v, want %v", name, e, want)
			}
			n++
		}
		if n != many {
			t.Errorf("%s: %d, want %d", name, n, many)
		}
	}
	var last error
	n := 0
	for _, err := range r.Extents(t.Context(), layer, 0, store.MaxVolumeSize, 0) {
		if n == 10 {
			_, err := c.Attach(t.Context(), volume, epoch+1)
			ok(t, err)
		}
		n, last = n+1, err
	}
	fails(t, last, store.ErrFenced)
	if n >= many {
		t.Errorf("%d extents came under an epoch that was fenced", n)
	}
}
