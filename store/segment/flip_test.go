package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"torus/store"
)

// A damage is what is done to a file of a store that is not open.
type damage struct {
	file string // in the store's directory
	off  int64
	what string // bit, zero (4 KiB), cut, gone
}

func (d damage) String() string { return fmt.Sprintf("%s of %s at %d", d.what, d.file, d.off) }

func (d damage) do(dir string) error {
	path := filepath.Join(dir, d.file)
	switch d.what {
	case "gone":
		return os.Remove(path)
	case "cut":
		return os.Truncate(path, d.off)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, blockSize)
	if d.what == "bit" {
		p = p[:1]
		if _, err := f.ReadAt(p, d.off); err != nil {
			return err
		}
		p[0] ^= 1 << (d.off % 8)
	}
	_, err = f.WriteAt(p, d.off)
	return err
}

// flipStore is a directory with a store that was closed, or killed, and what
// may be read from it.
type flipStore struct {
	dir    string
	h      *history
	closed bool
}

// newFlipStore makes a store that has hot and cold segments, spares, drops,
// holes. Everything in it is synced, and the log says so.
func newFlipStore(t *testing.T, closed bool) *flipStore {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	s.create(layerB, layerA)
	s.write(layerB, windowFirst, 60)
	for range 40 {
		s.write(layerA, windowFirst+s.rng0().Int64N(150), 20)
	}
	s.work()
	s.zero(layerA, windowFirst+20, 10)
	s.adopt(layerA, windowFirst+100, 10, store.Hole)
	s.dropChunk(layerB, 1)
	s.write(layerB, windowEnd-30, 20)
	s.work()
	s.write(layerA, windowFirst+33, 20)
	s.adopt(layerB, windowEnd-15, 3, store.Absent)
	for range 3 { // the last one names the one before as synced
		s.sync()
		s.write(layerA, windowFirst, 1)
	}
	m.ok(s.err)
	f := &flipStore{dir: filepath.Join(t.TempDir(), "store"), h: s.h, closed: closed}
	if closed {
		m.ok(m.st.Close())
		m.st = nil
	} else {
		m.end(killed)
	}
	for _, sub := range []string{"", segmentsDir, indexDir} {
		m.ok(copyFiles(filepath.Join(m.dir, sub), filepath.Join(f.dir, sub)))
	}
	return f
}

func (s *scribe) rng0() *rand.Rand {
	if s.rng == nil {
		s.rng = rand.New(rand.NewPCG(5, 5))
	}
	return s.rng
}

// copyFiles copies a directory's files, not its directories.
func copyFiles(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			if err := copySparse(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// try damages a copy of the store, opens it and reads everything: each page is
// as it was, or there is an error that says what is wrong.
func (f *flipStore) try(t *testing.T, dir string, d damage, loseIndex bool) (outcome string) {
	t.Helper()
	defer os.RemoveAll(dir)
	for _, sub := range []string{"", segmentsDir, indexDir} {
		if err := copyFiles(filepath.Join(f.dir, sub), filepath.Join(dir, sub)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.do(dir); err != nil {
		t.Fatal(err)
	}
	if loseIndex {
		if err := os.RemoveAll(filepath.Join(dir, indexDir)); err != nil {
			t.Fatal(err)
		}
	}
	st, err := Open(context.Background(), Options{Dir: dir, Reserve: 1 << 20, SegmentSize: 1 << 20, CacheBytes: 1,
		bootID: "boot 0", manual: true, memtable: 8 << 20})
	if err != nil {
		if !typed(err) {
			t.Errorf("%v, index lost %v: open: %v", d, loseIndex, err)
		}
		return "refused"
	}
	defer st.kill()
	outcome = "whole"
	for l, pages := range f.h.pages {
		for n, p := range pages {
			buf, info := alignedBuffer(ps), make([]store.PageInfo, 1)
			err := readPage(st, l, n, buf, info)
			got := value{kind: info[0].Kind, version: info[0].Version, tag: p.now.tag}
			switch {
			case err != nil && typed(err):
				outcome = "corrupt"
			case err != nil:
				t.Errorf("%v, index lost %v: page %d of %v: %v", d, loseIndex, n, l, err)
			case !f.may(p, got) || !bytes.Equal(buf, got.bytes(n)):
				t.Errorf("%v, index lost %v: page %d of %v is %+v, was %+v", d, loseIndex, n, l, got, p.now)
				return outcome
			}
		}
	}
	return outcome
}

// may reports whether a page may be v: what it was, or before the last write,
// of which nothing says that it was synced. Damage to that is a torn tail.
func (f *flipStore) may(p *pageHistory, v value) bool {
	return v == p.now || !f.closed && slices.Contains(p.since, v)
}

func readPage(st *Store, l store.LayerID, n int64, p []byte, info []store.PageInfo) error {
	r, err := st.Attach(context.Background(), 1, 9)
	if err != nil {
		return err
	}
	return r.Read(context.Background(), []store.LayerID{l}, n*ps, p, info)
}

func typed(err error) bool {
	return errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrInvalid)
}

// damages are places in each kind of byte of a segment, by its batches, and in
// every other file.
func (f *flipStore) damages(t *testing.T) []damage {
	t.Helper()
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	var all []damage
	for _, sub := range []string{"", segmentsDir, indexDir} {
		entries, err := os.ReadDir(filepath.Join(f.dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := filepath.Join(sub, e.Name())
			if !e.Type().IsRegular() || e.Name() == "lock" || e.Name() == "LOCK" {
				continue
			}
			if _, ok := parseSegmentName(e.Name()); ok {
				all = append(all, f.segmentDamages(t, rng, name)...)
			} else {
				all = append(all, fileDamages(t, rng, f.dir, name)...)
			}
		}
	}
	return all
}

func fileDamages(t *testing.T, rng *rand.Rand, dir, name string) []damage {
	t.Helper()
	p, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	end := int64(len(bytes.TrimRight(p, "\x00")))
	all := []damage{{name, 0, "gone"}, {name, 0, "cut"}, {name, end / 2, "cut"}}
	for range 6 {
		if end > 0 {
			all = append(all, damage{name, rng.Int64N(end), "bit"})
		}
	}
	if end > 0 && !strings.HasSuffix(name, ".json") {
		all = append(all, damage{name, rng.Int64N(end), "zero"})
	}
	return all
}

func (f *flipStore) segmentDamages(t *testing.T, rng *rand.Rand, name string) []damage {
	t.Helper()
	p, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	all := []damage{{name, 0, "gone"}, {name, 0, "zero"}, {name, 0, "cut"}, {name, int64(len(p)) / 2, "cut"}}
	for _, off := range []int64{0, 8, 12, 20, 30, 34, 36, 40, 50, 56, 2000, 4095} {
		all = append(all, damage{name, off, "bit"})
	}
	h, err := decodeSegmentHeader(p)
	if err != nil {
		return all
	}
	for block := uint32(1); block < h.blocks; {
		b, ok := decodeBatchFixed(p[block*blockSize:], h.nonce, block, h.blocks)
		if !ok {
			break
		}
		at := int64(block) * blockSize
		if rng.IntN(4) == 0 { // some batches
			for _, off := range []int64{rng.Int64N(52), 52 + rng.Int64N(12), batchFixedSize + rng.Int64N(int64(b.length)-batchFixedSize)} {
				all = append(all, damage{name, at + off, "bit"})
			}
			if pad := int64(b.headerBlocks())*blockSize - int64(b.length); pad > 0 {
				all = append(all, damage{name, at + int64(b.length) + rng.Int64N(pad), "bit"})
			}
			all = append(all, damage{name, at, "zero"})
			if b.pages > 0 {
				page := at + int64(b.headerBlocks())*blockSize + rng.Int64N(int64(b.pages))*blockSize
				all = append(all, damage{name, page, "zero"}, damage{name, page + rng.Int64N(blockSize), "bit"})
			}
		}
		block += b.blocks()
	}
	return all
}

// Whatever byte of whatever file is damaged, a page is right or an error.
func TestDamage(t *testing.T) {
	outcomes := map[string]int{}
	for _, closed := range []bool{true, false} {
		f := newFlipStore(t, closed)
		all := f.damages(t)
		rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if most := 120; testing.Short() {
			all = all[:30]
		} else if !longTests && len(all) > most {
			all = all[:most]
		}
		dir := filepath.Join(memoryDir(t), "store")
		for _, d := range all {
			outcomes[f.try(t, dir, d, false)]++
			outcomes[f.try(t, dir, d, true)]++
		}
	}
	t.Logf("%v", outcomes)
	if longTests && (outcomes["whole"] == 0 || outcomes["refused"] == 0 || outcomes["corrupt"] == 0) {
		t.Errorf("not every kind of end came up: %v", outcomes)
	}
}
