package segment

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"torus/store"
)

func TestSecondOpenIsRefused(t *testing.T) {
	m := newCrashMachine(t, 1)
	openScribe(t, m)
	o := m.options()
	o.disk = nil
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrLocked) {
		t.Fatalf("second open: %v", err)
	}
	m.ok(m.st.Close())
	m.ok(m.open())
}

// A file of another format is refused by its name, whichever it is.
func TestUnknownFormat(t *testing.T) {
	closed := func(t *testing.T) *crashMachine {
		m := newCrashMachine(t, 1)
		openScribe(t, m)
		m.ok(m.st.Close())
		m.st = nil
		return m
	}
	refused := func(t *testing.T, m *crashMachine, name string) {
		t.Helper()
		err := m.open()
		var format *FormatError
		if !errors.As(err, &format) || format.Found != 77 || !errors.Is(err, store.ErrInvalid) {
			t.Fatalf("open: %v", err)
		}
		if !strings.Contains(err.Error(), name) {
			t.Fatalf("%q does not name %s", err, name)
		}
	}
	t.Run("store.json", func(t *testing.T) {
		m := closed(t)
		path := filepath.Join(m.dir, stateName)
		p, err := os.ReadFile(path)
		m.ok(err)
		m.ok(os.WriteFile(path, []byte(strings.Replace(string(p), `"format": 1`, `"format": 77`, 1)), 0o600))
		refused(t, m, stateName)
	})
	t.Run("segment", func(t *testing.T) {
		m := closed(t)
		name := segNum(1).String() + segmentSuffix
		f, err := os.OpenFile(filepath.Join(m.disk.under.dir, name), os.O_RDWR, 0)
		m.ok(err)
		defer f.Close()
		_, err = f.WriteAt([]byte{77, 0, 0, 0}, 8)
		m.ok(err)
		refused(t, m, name)
	})
	t.Run("index", func(t *testing.T) {
		m := closed(t)
		x, err := openIndexDB(filepath.Join(m.dir, indexDir), 8<<20, nil)
		m.ok(err)
		v := make([]byte, metaSize)
		binary.LittleEndian.PutUint32(v[4:], 77)
		m.ok(x.db.Update(func(txn *badger.Txn) error { return txn.Set([]byte{keyMeta}, seal([]byte{keyMeta}, v)) }))
		m.ok(x.close())
		refused(t, m, "index")
	})
}

// Segments without the file that says whose they are may be anybody's.
func TestSegmentsWithoutState(t *testing.T) {
	m := newCrashMachine(t, 1)
	openScribe(t, m)
	m.ok(m.st.Close())
	m.st = nil
	m.ok(os.Remove(filepath.Join(m.dir, stateName)))
	if err := m.open(); !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), stateName) {
		t.Fatalf("open: %v", err)
	}
}

// A segment of another store is not taken for this one's.
func TestSegmentOfAnotherStore(t *testing.T) {
	m, other := newCrashMachine(t, 1), newCrashMachine(t, 2)
	for _, m := range []*crashMachine{m, other} {
		openScribe(t, m)
		m.ok(m.st.Close())
		m.st = nil
	}
	name := segNum(1).String() + segmentSuffix
	m.ok(copySparse(filepath.Join(other.disk.under.dir, name), filepath.Join(m.disk.under.dir, name)))
	if err := m.open(); !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), name) {
		t.Fatalf("open: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{
		{SegmentSize: 1<<20 - 4096}, {SegmentSize: 256<<20 + 4096}, {SegmentSize: 1<<20 + 1},
		{Capacity: -1}, {Reserve: -1}, {CacheBytes: -1},
	} {
		o.Dir = filepath.Join(t.TempDir(), "store")
		if _, err := Open(context.Background(), o); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
