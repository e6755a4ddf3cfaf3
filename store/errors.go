package store

import (
	"errors"
	"fmt"
)

// What a caller can act on. Implementations wrap them in *Error; test with
// errors.Is.
var (
	// ErrInvalid: the request itself is wrong; repeating it is in vain.
	ErrInvalid = errors.New("invalid request")
	// ErrFenced: a higher epoch is on record (I1). See FencedError.
	ErrFenced = errors.New("fenced by a higher epoch")
	// ErrIncarnation: the store is no longer what the replica was attached to (N2).
	ErrIncarnation = errors.New("store has another incarnation")
	// ErrUnknownLayer: the store cannot say whether it has the page (N6).
	ErrUnknownLayer = errors.New("unknown layer")
	// ErrCorrupt: bytes on disk fail their checksum. Never absence (N6). See CorruptError.
	ErrCorrupt = errors.New("corrupt")
	// ErrNoSpace: the disk or the capacity is full; nothing was applied.
	ErrNoSpace = errors.New("no space left")
	// ErrFailed: the disk failed; the store serves nothing until it is opened anew.
	ErrFailed = errors.New("store failed")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store closed")
	// ErrUnreachable: no connection to the store's node, or no answer in time.
	// Whether the request was applied, or will yet be, is not known.
	ErrUnreachable = errors.New("store unreachable")
)

// Error adds to an error what was done to what.
type Error struct {
	Op    string // "write", "read", ...
	Layer LayerID
	Off   int64 // bytes; -1 where none applies
	Err   error
}

// Error names operation, layer and offset before the cause.
func (e *Error) Error() string {
	if e.Off < 0 {
		return fmt.Sprintf("%s layer %v: %v", e.Op, e.Layer, e.Err)
	}
	return fmt.Sprintf("%s layer %v at %d: %v", e.Op, e.Layer, e.Off, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// FencedError is ErrFenced with the epochs.
type FencedError struct {
	Volume   VolumeID
	Epoch    Epoch // of the request
	Recorded Epoch // on record
}

// Error names the volume and both epochs.
func (e *FencedError) Error() string {
	return fmt.Sprintf("volume %v: epoch %v is fenced by epoch %v", e.Volume, e.Epoch, e.Recorded)
}

// Is makes the error ErrFenced.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// CorruptError is ErrCorrupt with the first page that failed.
type CorruptError struct {
	Layer  LayerID
	Off    int64  // bytes
	Detail string // what did not match, and where on disk
}

// Error names page and place.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("layer %v at %d is corrupt: %s", e.Layer, e.Off, e.Detail)
}

// Is makes the error ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// MaxIO is the most bytes that one read or write moves.
const MaxIO = 32 << 20

// CheckRange returns ErrInvalid, naming value and bound, unless off and n are
// multiples of PageSize, n > 0 and [off, off+n) lies in [0, MaxVolumeSize].
func CheckRange(off, n int64) error {
	switch {
	case off < 0 || off%PageSize != 0:
		return fmt.Errorf("%w: offset %d is not a multiple of %d", ErrInvalid, off, PageSize)
	case n <= 0 || n%PageSize != 0:
		return fmt.Errorf("%w: length %d is not a positive multiple of %d", ErrInvalid, n, PageSize)
	case n > MaxVolumeSize || off > MaxVolumeSize-n:
		return fmt.Errorf("%w: [%d, %d) ends beyond %d", ErrInvalid, off, off+n, int64(MaxVolumeSize))
	}
	return nil
}
