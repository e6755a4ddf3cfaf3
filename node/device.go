package node

import (
	"errors"
	"fmt"
	"iter"

	"torus/nbd"
	"torus/store"
	"torus/volume"
)

// A device is an attached volume as package nbd sees it. It maps errors, and
// ends the attachment when the volume has stopped.
type device struct {
	vol   *volume.Volume
	ended chan struct{} // closed when the attachment is over
	fail  func(error)   // ends the attachment; may be called often
}

var _ nbd.Device = (*device)(nil)

// Done is closed when the attachment is over: clients should be cut off.
func (d *device) Done() <-chan struct{} { return d.ended }

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
	n, err := d.vol.ReadAt(p, off)
	if err == nil || n == len(p) {
		return n, err
	}
	return n, d.result(err)
}

// WriteAt implements nbd.Device.
func (d *device) WriteAt(p []byte, off int64) (int, error) {
	n, err := d.vol.WriteAt(p, off)
	return n, d.result(err)
}

// WriteAtSync implements nbd.Device.
func (d *device) WriteAtSync(p []byte, off int64) (int, error) {
	n, err := d.vol.WriteAtSync(p, off)
	return n, d.result(err)
}

// Sync implements nbd.Device.
func (d *device) Sync() error { return d.result(d.vol.Sync()) }

// Trim implements nbd.Device.
func (d *device) Trim(off, n int64, fua bool) error { return d.result(d.vol.Trim(off, n, fua)) }

// Zero implements nbd.Device.
func (d *device) Zero(off, n int64, fua, noHole bool) error {
	return d.result(d.vol.Zero(off, n, fua, noHole))
}

// Size implements nbd.Device.
func (d *device) Size() int64 { return d.vol.Size() }

// Extents implements nbd.Device. What has no pages is a hole that reads as
// zeroes, whether it was trimmed or never written.
func (d *device) Extents(off, n int64) iter.Seq2[nbd.Extent, error] {
	return func(yield func(nbd.Extent, error) bool) {
		for e, err := range d.vol.Extents(off, n) {
			if err != nil {
				yield(nbd.Extent{}, d.result(err))
				return
			}
			hole := e.Kind != store.Data
			if !yield(nbd.Extent{Off: e.Off, Len: e.N, Hole: hole, Zero: hole}, nil) {
				return
			}
		}
	}
}
