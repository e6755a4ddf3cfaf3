package volume

import (
	"errors"
	"fmt"

	"torus/store"
)

// What a caller can act on, beside store.ErrInvalid, store.ErrNoSpace and
// store.ErrCorrupt, which come through. All are wrapped in *Error; test with
// errors.Is.
var (
	// ErrClosed: the volume was closed.
	ErrClosed = errors.New("volume closed")
	// ErrBroken: the attachment has ended by itself, since going on could have
	// shown a page that differs between its copies, or that another holder has
	// changed. It wraps the cause. Opening the volume anew is the way on.
	ErrBroken = errors.New("volume stopped")
	// ErrReadOnly: the volume was opened for reading only.
	ErrReadOnly = errors.New("volume is read-only")
	// ErrRange: the request reaches beyond the end of the volume.
	ErrRange = errors.New("beyond the end of the volume")
	// ErrOtherStore: a node has not the store that had the volume's copy, and so
	// nothing of it (N3).
	ErrOtherStore = errors.New("not the store that had the copy")
	// ErrNoCopy: no copy of some chunk is in sync.
	ErrNoCopy = errors.New("no copy in sync")
	// ErrAgain: the volume has to be attached again, under a new epoch.
	ErrAgain = errors.New("attach again")
	// ErrLost, of Records: another holder has the volume.
	ErrLost = errors.New("the volume has another holder")
	// ErrNotDone, of Records: the transaction was not done, and never will be.
	ErrNotDone = errors.New("not recorded")
	// ErrMoved, of Records, is an ErrNotDone: the volume's data has moved to another
	// ring than it was opened for, so nothing is recorded any more of the copies that
	// it knows. It is to be closed and opened anew.
	ErrMoved = fmt.Errorf("%w: the volume's data has moved", ErrNotDone)
	// ErrSequence: the attachment has given all its versions; the volume must
	// be attached under another epoch before it can be written again.
	ErrSequence = errors.New("no versions left in this epoch")
)

// Error adds to an error what was asked of which volume.
type Error struct {
	Op     string // "read", "write", "trim", ...
	Volume store.VolumeID
	Off, N int64 // bytes; N is -1 where no range applies
	Err    error
}

// Error names operation, volume and range before the cause.
func (e *Error) Error() string {
	if e.N < 0 {
		return fmt.Sprintf("%s volume %v: %v", e.Op, e.Volume, e.Err)
	}
	return fmt.Sprintf("%s volume %v at %d+%d: %v", e.Op, e.Volume, e.Off, e.N, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// wrap names request and volume in err; nil stays nil.
func (v *Volume) wrap(op string, off, n int64, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Volume: v.id, Off: off, N: n, Err: err}
}

// broken is why a volume stopped.
type broken struct{ cause error }

// Error gives the cause.
func (b *broken) Error() string { return fmt.Sprintf("%v: %v", ErrBroken, b.cause) }

// Unwrap makes it ErrBroken and its cause.
func (b *broken) Unwrap() []error { return []error{ErrBroken, b.cause} }

// stop ends the attachment from within; the first cause stays. It is called
// before the write that failed leaves the table of writes in flight, so that no
// read that waits for that write is answered.
func (v *Volume) stop(cause error) error {
	b := &broken{cause}
	if !v.broken.CompareAndSwap(nil, b) {
		return v.broken.Load()
	}
	v.log.Error("volume stopped", "volume", v.id, "cause", cause)
	v.cancel() // nobody has to wait for a node that does not answer
	return b
}

// Stopped is closed when the volume has stopped, and Err says why, or was closed.
func (v *Volume) Stopped() <-chan struct{} { return v.ctx.Done() }

// Err returns why the volume stopped; nil while it serves, and after Close of one
// that did.
func (v *Volume) Err() error { return v.stopped() }

// stopped returns why the volume stopped, nil while it serves.
func (v *Volume) stopped() error {
	if b := v.broken.Load(); b != nil {
		return b
	}
	return nil
}
