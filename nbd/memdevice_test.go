package nbd

import (
	"bytes"
	"context"
	"io"
	"iter"
	"sync"
	"sync/atomic"
)

// memDevice is a Device in memory: the smallest that keeps the contract.
// Ranges that were never written or were trimmed are holes.
type memDevice struct {
	mu    sync.Mutex
	data  []byte
	used  []bool // a page has been written
	syncs atomic.Int64
	fuas  atomic.Int64
	// before, if set, is called before each operation; its error is the
	// operation's.
	before func(op string, off, n int64) error
}

var _ Device = (*memDevice)(nil)

func newMemDevice(size int64) *memDevice {
	return &memDevice{data: make([]byte, size), used: make([]bool, (size+pageSize-1)/pageSize)}
}

func (d *memDevice) hook(op string, off, n int64) error {
	if d.before != nil {
		return d.before(op, off, n)
	}
	return nil
}

func (d *memDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := d.hook("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := copy(p, d.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memDevice) WriteAt(p []byte, off int64) (int, error) {
	if err := d.hook("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := off / pageSize; i*pageSize < off+int64(len(p)); i++ {
		d.used[i] = true
	}
	return copy(d.data[off:], p), nil
}

func (d *memDevice) WriteAtSync(p []byte, off int64) (int, error) {
	d.fuas.Add(1)
	return d.WriteAt(p, off)
}

func (d *memDevice) Sync() error {
	d.syncs.Add(1)
	return d.hook("sync", 0, 0)
}

func (d *memDevice) Trim(off, n int64, fua bool) error {
	if err := d.hook("trim", off, n); err != nil {
		return err
	}
	return d.zero(off, n, fua, false)
}

func (d *memDevice) Zero(off, n int64, fua, noHole bool) error {
	if err := d.hook("zero", off, n); err != nil {
		return err
	}
	return d.zero(off, n, fua, noHole)
}

func (d *memDevice) zero(off, n int64, fua, noHole bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if fua {
		d.fuas.Add(1)
	}
	clear(d.data[off : off+n])
	for i := (off + pageSize - 1) / pageSize; (i+1)*pageSize <= off+n; i++ {
		d.used[i] = noHole
	}
	return nil
}

// holds tells whether p stands at off.
func (d *memDevice) holds(p []byte, off int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Equal(d.data[off:off+int64(len(p))], p)
}

func (d *memDevice) Size() int64 { return int64(len(d.data)) }

func (d *memDevice) Extents(off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if err := d.hook("extents", off, n); err != nil {
			yield(Extent{}, err)
			return
		}
		for end := off + n; off < end; {
			d.mu.Lock()
			used := d.used[off/pageSize]
			d.mu.Unlock()
			next := min(end, (off/pageSize+1)*pageSize)
			if !yield(Extent{Off: off, Len: next - off, Hole: !used, Zero: !used}, nil) {
				return
			}
			off = next
		}
	}
}

// memExports are named devices.
type memExports map[string]*memExport

type memExport struct {
	dev      Device
	desc     string
	readOnly bool
	openErr  error
	opens    atomic.Int32
	closes   atomic.Int32
}

var _ Exports = memExports{}

func (m memExports) List(context.Context) (list []ExportInfo, err error) {
	for name, e := range m {
		list = append(list, e.info(name))
	}
	return list, nil
}

func (e *memExport) info(name string) ExportInfo {
	return ExportInfo{Name: name, Description: e.desc, Size: e.dev.Size(), ReadOnly: e.readOnly}
}

func (m memExports) Info(_ context.Context, name string) (ExportInfo, error) {
	e := m[name]
	if e == nil {
		return ExportInfo{}, ErrNotFound
	}
	return e.info(name), nil
}

func (m memExports) Open(_ context.Context, name string) (Device, func(), error) {
	e := m[name]
	switch {
	case e == nil:
		return nil, nil, ErrNotFound
	case e.openErr != nil:
		return nil, nil, e.openErr
	}
	e.opens.Add(1)
	return e.dev, func() { e.closes.Add(1) }, nil
}
