package memstore_test

import (
	"math/rand/v2"
	"testing"

	"torus/store"
	"torus/store/memstore"
)

// What Look shows as durable is what a power cut can't take.
func TestLook(t *testing.T) {
	d := memstore.NewDisk(rand.New(rand.NewPCG(1, 1)))
	r := attach(t, d.Open())
	look := func(when string, now, durable store.Version) {
		t.Helper()
		for i, want := range []store.Version{now, durable} {
			seen := d.Look(layer, ps, i == 1)
			if seen.Version != want || !seen.Known || (seen.Kind == store.Data) != (want != 0) || (seen.Data != nil) != (want != 0) {
				t.Errorf("%s: durable %v: known %v, %+v, %d bytes, want version %v", when, i == 1, seen.Known, seen.PageInfo, len(seen.Data), want)
			}
		}
	}
	look("empty", 0, 0)
	if err := r.Write(t.Context(), layer, ps, make([]byte, ps), 7, 0); err != nil {
		t.Fatal(err)
	}
	look("written", 7, 0)
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	look("synced", 7, 7)
	d.Kill()
	look("with no store open", 7, 7)
	if seen := d.Look(layer+1, 0, false); seen.Known {
		t.Errorf("a layer that isn't there: %+v", seen)
	}
	if f := d.Fenced(); len(f) != 1 || f[0] != (store.Fence{Volume: volume, Epoch: 1}) {
		t.Errorf("fences %v", f)
	}
}
