package segment

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// memoryDir returns an empty directory in memory where there is one: tests of
// crashes sync and remove a lot, and what a disk forgets is crashDisk's doing.
func memoryDir(t testing.TB) string {
	if dir, err := os.MkdirTemp("/dev/shm", "torus-segment"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return t.TempDir()
}

var errCrashed = errors.New("the machine has crashed")

// A crashDisk is a directory that ends at a chosen operation, and remembers of
// what was not synced how to take it back. The files below are real.
type crashDisk struct {
	under *osDisk
	attic string // files that were removed, while that may be taken back

	mu      sync.Mutex
	rng     *rand.Rand
	ops     int
	crashAt int // operation that is the last one, and may be half done; 0: none
	dead    bool
	// broken makes an operation fail that matches, once or for ever, with nothing done.
	broken  func(op, name string) error
	before  func(op, name string) // called before an operation, without the mutex
	onCrash func()
	full    int64 // what free says; -1: what the disk says
	nodes   map[string]*inode
	dirty   []dirOp // since the last syncDir
	moved   int
}

// An inode has, for each block that was written since the last sync, all that
// it was since then; the first is what is on stable storage.
type inode struct {
	synced int64 // size
	size   int64
	undo   map[int64][][]byte
}

// A dirOp is a change of the directory that may be taken back.
type dirOp struct {
	what     string // create, rename, remove
	name, to string // to: the new name, or the place in the attic
}

type crashFile struct {
	d    *crashDisk
	name string // when it was opened
	node *inode
	f    file
}

var (
	_ disk = (*crashDisk)(nil)
	_ file = (*crashFile)(nil)
)

func newCrashDisk(t testing.TB, storeDir string, seed uint64) *crashDisk {
	t.Helper()
	dir := filepath.Join(storeDir, segmentsDir)
	attic := filepath.Join(storeDir, "attic")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.MkdirAll(attic, 0o700)); err != nil {
		t.Fatal(err)
	}
	under, err := newOSDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &crashDisk{under: under, attic: attic, rng: rand.New(rand.NewPCG(seed, 7)), full: -1, nodes: map[string]*inode{}}
}

// watch has before called ahead of each operation, without the mutex.
func (d *crashDisk) watch(before func(op, name string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = before
}

// breaks has broken say, under the mutex, which operations fail; nil mends the disk.
func (d *crashDisk) breaks(broken func(op, name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = broken
}

// operate counts one operation and runs do, or half of it where the crash comes.
func (d *crashDisk) operate(op, name string, do, half func() error) error {
	d.mu.Lock()
	before := d.before
	d.mu.Unlock()
	if before != nil {
		before(op, name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errCrashed
	}
	d.ops++
	if d.broken != nil {
		if err := d.broken(op, name); err != nil {
			return err
		}
	}
	if d.ops != d.crashAt {
		return do()
	}
	d.dead = true
	if d.onCrash != nil {
		d.onCrash()
	}
	var err error
	switch {
	case half != nil && d.rng.IntN(4) > 0:
		err = half()
	case d.rng.IntN(2) == 0:
		err = do()
	}
	return errors.Join(err, errCrashed)
}

// restart lets operations through again, and has the next crash at crashAt.
func (d *crashDisk) restart(crashAt int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead, d.ops, d.crashAt = false, 0, crashAt
}

func (d *crashDisk) crashed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

func (d *crashDisk) list() ([]string, error) { return d.under.list() }

func (d *crashDisk) free() (int64, error) {
	d.mu.Lock()
	full := d.full
	d.mu.Unlock()
	if full >= 0 {
		return full, nil
	}
	return d.under.free()
}

func (d *crashDisk) open(name string) (file, error) {
	path := filepath.Join(d.under.dir, name)
	c := &crashFile{d: d, name: name}
	open := func() (err error) {
		if c.f, err = d.under.open(name); err != nil {
			return err
		}
		c.node = d.nodes[name]
		if c.node == nil {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			c.node = &inode{synced: info.Size(), size: info.Size(), undo: map[int64][][]byte{}}
			d.nodes[name] = c.node
		}
		return nil
	}
	if _, err := os.Stat(path); err == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.dead {
			return nil, errCrashed
		}
		return c, open()
	}
	err := d.operate("create", name, func() error {
		d.dirty = append(d.dirty, dirOp{"create", name, ""})
		return open()
	}, nil)
	if err != nil {
		if c.f != nil {
			c.f.close()
		}
		return nil, err
	}
	return c, nil
}

func (d *crashDisk) rename(from, to string) error {
	return d.operate("rename", from, func() error {
		d.dirty = append(d.dirty, dirOp{"rename", from, to})
		d.nodes[to] = d.nodes[from]
		delete(d.nodes, from)
		return d.under.rename(from, to)
	}, nil)
}

func (d *crashDisk) remove(name string) error {
	return d.operate("remove", name, func() error {
		d.moved++
		to := filepath.Join(d.attic, fmt.Sprint(d.moved))
		d.dirty = append(d.dirty, dirOp{"remove", name, to})
		d.nodes[to] = d.nodes[name]
		delete(d.nodes, name)
		return os.Rename(filepath.Join(d.under.dir, name), to)
	}, nil)
}

func (d *crashDisk) syncDir() error {
	return d.operate("syncDir", "", d.forgetDirOps, nil)
}

func (d *crashDisk) forgetDirOps() error {
	for _, o := range d.dirty {
		if o.what == "remove" {
			delete(d.nodes, o.to)
			if err := os.Remove(o.to); err != nil {
				return err
			}
		}
	}
	d.dirty = nil
	return nil
}

// powerCut takes back a part of what was not synced, at random. The store that
// wrote it is gone.
func (d *crashDisk) powerCut() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.cutDir(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(keys(d.nodes)) {
		if filepath.IsAbs(name) {
			continue // removed
		}
		if err := d.cutFile(name, d.nodes[name]); err != nil {
			return err
		}
	}
	return nil
}

// cutDir takes changes of the directory back, the last one first; what an
// earlier one of the same name rests on stays with it.
func (d *crashDisk) cutDir() error {
	kept := map[string]bool{}
	for i := len(d.dirty) - 1; i >= 0; i-- {
		o := d.dirty[i]
		if kept[o.name] || kept[o.to] || d.rng.IntN(2) == 0 {
			kept[o.name], kept[o.to] = true, true
			delete(kept, "")
			continue
		}
		var err error
		path := filepath.Join(d.under.dir, o.name)
		switch o.what {
		case "create":
			delete(d.nodes, o.name)
			err = os.Remove(path)
		case "rename":
			d.nodes[o.name] = d.nodes[o.to]
			delete(d.nodes, o.to)
			err = d.under.rename(o.to, o.name)
		case "remove":
			d.nodes[o.name] = d.nodes[o.to]
			delete(d.nodes, o.to)
			err = os.Rename(o.to, path)
		}
		if err != nil {
			return err
		}
		d.dirty = slices.Delete(d.dirty, i, i+1)
	}
	return d.forgetDirOps()
}

func (d *crashDisk) cutFile(name string, n *inode) error {
	f, err := os.OpenFile(filepath.Join(d.under.dir, name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	blocks := slices.Sorted(keys(n.undo))
	for _, b := range blocks {
		was := n.undo[b]
		i := d.rng.IntN(2 * len(was))
		if i >= len(was) {
			continue // as it is
		}
		if _, err := f.WriteAt(was[i], b*blockSize); err != nil {
			return err
		}
	}
	if n.size != n.synced && d.rng.IntN(2) == 0 {
		if err := f.Truncate(n.synced); err != nil {
			return err
		}
		n.size = n.synced
	}
	n.synced, n.undo = n.size, map[int64][][]byte{}
	return f.Sync()
}

func (c *crashFile) readAt(p []byte, off int64, cached bool) error { return c.f.readAt(p, off, cached) }
func (c *crashFile) allocated() (int64, error)                     { return c.f.allocated() }
func (c *crashFile) close() error                                  { return c.f.close() }

// save remembers what n bytes at off are.
func (c *crashFile) save(off, n int64) error {
	p := alignedBuffer(blockSize)
	for b := off / blockSize; b < (off+n)/blockSize; b++ {
		clear(p)
		if (b+1)*blockSize <= c.node.size {
			if err := c.f.readAt(p, b*blockSize, false); err != nil {
				return err
			}
		}
		c.node.undo[b] = append(c.node.undo[b], slices.Clone(p))
	}
	return nil
}

func (c *crashFile) writeAt(bufs [][]byte, off int64) error {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	do := func() error {
		if err := c.save(off, n); err != nil {
			return err
		}
		c.node.size = max(c.node.size, off+n)
		return c.f.writeAt(bufs, off)
	}
	return c.d.operate("writeAt", c.name, do, func() error { return c.tear(bufs, off, n) })
}

// tear writes a prefix, or some of the blocks.
func (c *crashFile) tear(bufs [][]byte, off, n int64) error {
	if err := c.save(off, n); err != nil {
		return err
	}
	prefix, upTo := c.d.rng.IntN(2) == 0, c.d.rng.Int64N(n/blockSize+1)
	at := off
	for _, b := range bufs {
		for ; len(b) > 0; b, at = b[blockSize:], at+blockSize {
			if prefix && (at-off)/blockSize >= upTo || !prefix && c.d.rng.IntN(2) == 0 {
				continue
			}
			c.node.size = max(c.node.size, at+blockSize)
			if err := c.f.writeAt([][]byte{b[:blockSize]}, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *crashFile) datasync() error {
	return c.d.operate("datasync", c.name, func() error {
		c.node.synced, c.node.undo = c.node.size, map[int64][][]byte{}
		return nil // the files are synced by nobody but crashDisk
	}, nil)
}

func (c *crashFile) allocate(size int64) error {
	return c.d.operate("allocate", c.name, func() error {
		c.node.size = max(c.node.size, size)
		return c.f.allocate(size)
	}, nil)
}

func (c *crashFile) truncate(size int64) error {
	return c.d.operate("truncate", c.name, func() error {
		c.node.size, c.node.synced = size, size
		return c.f.truncate(size)
	}, nil)
}

func (c *crashFile) punch(off, n int64) error {
	do := func(n int64) error {
		if err := c.save(off, n); err != nil || n == 0 {
			return err
		}
		return c.f.punch(off, n)
	}
	return c.d.operate("punch", c.name, func() error { return do(n) },
		func() error { return do(n / 2 / blockSize * blockSize) })
}

func keys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
