package segment

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"torus/store"
)

// An index in doubt is kept for as long as nobody knows whether the segments
// suffice for another: here they do not, as the header of a batch is damaged.
func TestDoubtedIndexIsKept(t *testing.T) {
	m := newMachine(t)
	m.options.manual = true
	st := m.Open(t).(*Store)
	r, err := st.Attach(context.Background(), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Create(context.Background(), 1, 0); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(4) {
		if err := r.Write(context.Background(), 1, int64(i)*store.PageSize, make([]byte, store.PageSize), store.NewVersion(1, i+1), 0); err != nil {
			t.Fatal(err)
		}
	}
	block, name := st.log.point.block, st.log.cur.name()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	m.st = nil
	segment := filepath.Join(m.options.Dir, segmentsDir, name)
	whole := flipBit(t, segment, int64(block-4)*blockSize+batchFixedSize)
	manifest := filepath.Join(m.options.Dir, indexDir, "MANIFEST")
	flipBit(t, manifest, 0)
	aside := filepath.Join(m.options.Dir, indexAside)
	for range 2 {
		if _, err := Open(context.Background(), m.options); !errors.Is(err, store.ErrCorrupt) {
			t.Fatalf("open: got %v, want corrupt", err)
		}
		if _, err := os.Stat(filepath.Join(aside, "MANIFEST")); err != nil {
			t.Fatalf("the index is not kept: %v", err)
		}
	}
	if err := os.WriteFile(segment, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Open(t)
	if _, err := os.Stat(aside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the index is kept though there is another: %v", err)
	}
}

// flipBit flips a bit of a file and returns what it was.
func flipBit(t *testing.T, name string, at int64) []byte {
	t.Helper()
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte(nil), p...)
	bad[at] ^= 1
	if err := os.WriteFile(name, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}
