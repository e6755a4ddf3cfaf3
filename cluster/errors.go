package cluster

import (
	"errors"
	"fmt"

	"torus/store"
)

// What a caller can act on. Test with errors.Is.
var (
	// ErrInvalid: the request itself is wrong; repeating it is in vain.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: there is no such record.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name or the ID is taken.
	ErrExists = errors.New("exists already")
	// ErrBusy: the volume is attached. See BusyError.
	ErrBusy = errors.New("busy")
	// ErrLost: the attachment is over; somebody else may hold the volume.
	ErrLost = errors.New("attachment lost")
	// ErrMoved: the lineage has another ring or target than when the volume was
	// attached; nothing was done. It is to be attached anew.
	ErrMoved = errors.New("the volume's data has moved")
	// ErrTooFewNodes: more copies are asked for than there are nodes for.
	ErrTooFewNodes = errors.New("too few storage nodes")
	// ErrEpochs: the lineage has used its last epoch.
	ErrEpochs = errors.New("no epochs left")
	// ErrOtherCluster: these are the records of another cluster.
	ErrOtherCluster = errors.New("another cluster")
	// ErrFormat: a record has a format that this program does not know. See RecordError.
	ErrFormat = errors.New("unknown format")
	// ErrCorrupt: a record cannot be understood. See RecordError.
	ErrCorrupt = errors.New("corrupt record")

	// ErrUnavailable: the records can't be reached, nothing was done.
	ErrUnavailable = errors.New("cluster records unavailable")
	// ErrUnknown: the transaction may have been done, or may be done yet.
	ErrUnknown = errors.New("outcome unknown")
	// ErrCompacted: the revision is too old to be read.
	ErrCompacted = errors.New("revision compacted")
	// ErrNoLease: the lease has ended.
	ErrNoLease = errors.New("no such lease")
	// ErrFull: the records have no space left.
	ErrFull = errors.New("no space left for cluster records")
	// ErrClosed: the KV or the server was closed.
	ErrClosed = errors.New("closed")
)

// Error adds to an error which object it is about: "volume vol1", "node n2".
type Error struct {
	Object string
	Err    error
}

// Error names the object before the cause.
func (e *Error) Error() string { return e.Object + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// about wraps err, unless it is nil or names its object already.
func about(object string, err error) error {
	if err == nil {
		return nil
	}
	var named interface{ namesObject() }
	if errors.As(err, &named) {
		return err
	}
	return &Error{Object: object, Err: err}
}

func volumeNamed(name string) string { return objectNamed("volume", name) }
func nodeNamed(name string) string   { return objectNamed("node", name) }

// objectNamed keeps a name that is none from disappearing in the text.
func objectNamed(kind, name string) string {
	if name == "" {
		name = `""`
	}
	return kind + " " + name
}

func (*Error) namesObject()       {}
func (*BusyError) namesObject()   {}
func (*RecordError) namesObject() {}

// BusyError is ErrBusy with who holds the volume.
type BusyError struct {
	Volume string
	Holder Holder
	// Purpose: one for maintenance is given up when somebody wants the volume.
	Purpose Purpose
	Epoch   store.Epoch
}

// Error names the volume and its holder.
func (e *BusyError) Error() string {
	return fmt.Sprintf("volume %s: attached by %v", e.Volume, e.Holder)
}

// Is makes the error ErrBusy.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// RecordError is ErrFormat or ErrCorrupt with the record's key.
type RecordError struct {
	Key    string
	Err    error  // ErrFormat or ErrCorrupt
	Detail string // the format, or what can't be understood
}

// Error names the key and what is wrong with its value.
func (e *RecordError) Error() string {
	return fmt.Sprintf("record %s: %v: %s", e.Key, e.Err, e.Detail)
}

// Unwrap returns ErrFormat or ErrCorrupt.
func (e *RecordError) Unwrap() error { return e.Err }
