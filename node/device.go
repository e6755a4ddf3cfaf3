package node

import (
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"torus/nbd"
	"torus/store"
	"torus/volume"
)

// A device is an attached volume as package nbd sees it. It maps errors, ends the
// attachment when the volume has stopped, and outlasts a volume that is closed to be
// opened anew (see reload): what that one did not do the next one does.
type device struct {
	vol   atomic.Pointer[volume.Volume]
	ended chan struct{} // closed when the attachment is over
	once  sync.Once     // of fail
	cause error         // why it is over; set before ended is closed

	mu      sync.Mutex
	changes chan struct{} // closed when vol is another, or there is to be none; nil: it stays
}

var _ nbd.Device = (*device)(nil)

func newDevice() *device { return &device{ended: make(chan struct{})} }

// Done is closed when the attachment is over: clients should be cut off.
func (d *device) Done() <-chan struct{} { return d.ended }

// fail ends the attachment; it may be called often.
func (d *device) fail(cause error) {
	d.once.Do(func() {
		d.cause = cause
		close(d.ended)
	})
}

// hold has requests that the volume refuses from here on, as it is closed, wait for the
// next one. serve ends that: with the next one, or nil for none.
func (d *device) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changes = make(chan struct{})
}

func (d *device) serve(v *volume.Volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v != nil {
		d.vol.Store(v)
	}
	if d.changes != nil {
		close(d.changes)
		d.changes = nil
	}
}

// again reports whether a request that failed with err is to be made once more: v ended
// before it was done, and there is another now, which is waited for. A write may have
// been done in part; as it was not answered, it may be done twice. Not after
// store.ErrIncarnation: what was answered before may be gone.
func (d *device) again(v *volume.Volume, err error) bool {
	if err == nil || !errors.Is(err, volume.ErrClosed) && !errors.Is(err, volume.ErrBroken) || errors.Is(err, store.ErrIncarnation) {
		return false
	}
	d.mu.Lock()
	now, changes := d.vol.Load(), d.changes
	d.mu.Unlock()
	if now == v && changes != nil {
		select {
		case <-changes:
		case <-d.ended:
		}
		now = d.vol.Load()
	}
	return now != v
}

// result maps err for a client. The common case costs one comparison.
func (d *device) result(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, volume.ErrBroken) || errors.Is(err, volume.ErrSequence) {
		d.fail(err)
	}
	return deviceError(err)
}

// deviceError adds to err what a client is told of it. Whatever is not named
// here is EIO to it: a corrupt page, a failed disk.
func deviceError(err error) error {
	for _, m := range [...]struct{ is, as error }{
		{volume.ErrClosed, nbd.ErrShutdown},
		{volume.ErrBroken, nbd.ErrShutdown},
		{volume.ErrSequence, nbd.ErrShutdown},
		{volume.ErrRange, nbd.ErrOutOfRange},
		{volume.ErrReadOnly, nbd.ErrReadOnly},
		{store.ErrNoSpace, nbd.ErrNoSpace},
		{store.ErrInvalid, nbd.ErrInvalid},
	} {
		if errors.Is(err, m.is) {
			return fmt.Errorf("%w: %v", m.as, err) // not %w: a cause has no say in the number
		}
	}
	return err
}

// ReadAt implements nbd.Device.
func (d *device) ReadAt(p []byte, off int64) (int, error) {
	for {
		v := d.vol.Load()
		n, err := v.ReadAt(p, off)
		if err == nil || n == len(p) {
			return n, err
		}
		if !d.again(v, err) {
			return n, d.result(err)
		}
	}
}

// WriteAt implements nbd.Device.
func (d *device) WriteAt(p []byte, off int64) (int, error) {
	for {
		v := d.vol.Load()
		if n, err := v.WriteAt(p, off); !d.again(v, err) {
			return n, d.result(err)
		}
	}
}

// WriteAtSync implements nbd.Device.
func (d *device) WriteAtSync(p []byte, off int64) (int, error) {
	for {
		v := d.vol.Load()
		if n, err := v.WriteAtSync(p, off); !d.again(v, err) {
			return n, d.result(err)
		}
	}
}

// Sync implements nbd.Device.
func (d *device) Sync() error {
	for {
		v := d.vol.Load()
		if err := v.Sync(); !d.again(v, err) {
			return d.result(err)
		}
	}
}

// Trim implements nbd.Device.
func (d *device) Trim(off, n int64, fua bool) error {
	for {
		v := d.vol.Load()
		if err := v.Trim(off, n, fua); !d.again(v, err) {
			return d.result(err)
		}
	}
}

// Zero implements nbd.Device.
func (d *device) Zero(off, n int64, fua, noHole bool) error {
	for {
		v := d.vol.Load()
		if err := v.Zero(off, n, fua, noHole); !d.again(v, err) {
			return d.result(err)
		}
	}
}

// Size implements nbd.Device.
func (d *device) Size() int64 { return d.vol.Load().Size() }

// Extents implements nbd.Device. What has no pages is a hole that reads as
// zeroes, whether it was trimmed or never written.
func (d *device) Extents(off, n int64) iter.Seq2[nbd.Extent, error] {
	return func(yield func(nbd.Extent, error) bool) {
		for end := off + n; off < end; {
			v := d.vol.Load()
			var failed error
			for e, err := range v.Extents(off, end-off) {
				if failed = err; err != nil {
					break
				}
				hole := e.Kind != store.Data
				if !yield(nbd.Extent{Off: e.Off, Len: e.N, Hole: hole, Zero: hole}, nil) {
					return
				}
				off = e.Off + e.N
			}
			switch {
			case failed == nil:
				return
			case !d.again(v, failed):
				yield(nbd.Extent{}, d.result(failed))
				return
			}
		}
	}
}
