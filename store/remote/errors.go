package remote

import (
	"context"
	"errors"
	"fmt"

	"torus/store"
)

// errno is an error on the wire. Append only.
type errno uint16

const (
	errnoNone errno = iota
	errnoOther
	errnoInvalid
	errnoFenced
	errnoIncarnation
	errnoUnknownLayer
	errnoCorrupt
	errnoNoSpace
	errnoFailed
	errnoClosed
	errnoUnreachable
	errnoCanceled
	errnoDeadline
	errnoCount
)

// errnos is the table of what keeps its identity across the wire.
var errnos = [errnoCount]error{
	errnoInvalid:      store.ErrInvalid,
	errnoFenced:       store.ErrFenced,
	errnoIncarnation:  store.ErrIncarnation,
	errnoUnknownLayer: store.ErrUnknownLayer,
	errnoCorrupt:      store.ErrCorrupt,
	errnoNoSpace:      store.ErrNoSpace,
	errnoFailed:       store.ErrFailed,
	errnoClosed:       store.ErrClosed,
	errnoUnreachable:  store.ErrUnreachable,
	errnoCanceled:     context.Canceled,
	errnoDeadline:     context.DeadlineExceeded,
}

func errnoOf(err error) errno {
	for n, known := range errnos {
		if known != nil && errors.Is(err, known) {
			return errno(n)
		}
	}
	return errnoOther
}

// The body of an error:
//
//	 0  u8   which parts are set: 1 operation, 2 fence, 4 corrupt page
//	 1  u64  operation's layer
//	 9  u64  operation's offset
//	17  u64  fenced volume, or corrupt layer
//	25  u64  epoch, or corrupt offset
//	33  u64  epoch on record
//	41  u8   length of the operation's name, and that
//	    ...  the text: the corrupt page's detail, or what the cause says
const (
	partOp      = 1 << 0
	partFence   = 1 << 1
	partCorrupt = 1 << 2

	errorFixed = 42
)

// appendError encodes what keeps its fields, and otherwise the text.
func appendError(b []byte, err error) []byte {
	start := len(b)
	b = append(b, make([]byte, errorFixed)...)
	fixed := b[start:]
	var name string
	var op *store.Error
	if errors.As(err, &op) {
		fixed[0] |= partOp
		le.PutUint64(fixed[1:], uint64(op.Layer))
		le.PutUint64(fixed[9:], uint64(op.Off))
		name, err = op.Op[:min(len(op.Op), 32)], op.Err
	}
	text := err.Error()
	var fence *store.FencedError
	var corrupt *store.CorruptError
	switch {
	case errors.As(err, &fence):
		fixed[0] |= partFence
		le.PutUint64(fixed[17:], uint64(fence.Volume))
		le.PutUint64(fixed[25:], uint64(fence.Epoch))
		le.PutUint64(fixed[33:], uint64(fence.Recorded))
	case errors.As(err, &corrupt):
		fixed[0] |= partCorrupt
		le.PutUint64(fixed[17:], uint64(corrupt.Layer))
		le.PutUint64(fixed[25:], uint64(corrupt.Off))
		text = corrupt.Detail
	}
	fixed[41] = uint8(len(name))
	b = append(b, name...)
	return append(b, text[:min(len(text), maxErrorBody-len(b)+start)]...)
}

// decodeError is the way back. An errno of a newer peer becomes one that is
// nothing in particular.
func decodeError(n errno, b []byte) (error, error) {
	if len(b) < errorFixed || len(b) < errorFixed+int(b[41]) {
		return nil, fmt.Errorf("error with a body of %d bytes", len(b))
	}
	name, text := string(b[errorFixed:][:b[41]]), string(b[errorFixed+int(b[41]):])
	var err error
	switch {
	case b[0]&partFence != 0:
		err = &store.FencedError{Volume: store.VolumeID(le.Uint64(b[17:])), Epoch: store.Epoch(le.Uint64(b[25:])),
			Recorded: store.Epoch(le.Uint64(b[33:]))}
	case b[0]&partCorrupt != 0:
		err = &store.CorruptError{Layer: store.LayerID(le.Uint64(b[17:])), Off: int64(le.Uint64(b[25:])), Detail: text}
	default:
		err = &peerError{text: text}
		if n < errnoCount {
			err = &peerError{text: text, is: errnos[n]}
		}
	}
	if b[0]&partOp != 0 {
		err = &store.Error{Op: name, Layer: store.LayerID(le.Uint64(b[1:])), Off: int64(le.Uint64(b[9:])), Err: err}
	}
	return err, nil
}

// A peerError is what the peer said, and what that is.
type peerError struct {
	text string
	is   error // nil: nothing that a caller can act on
}

func (e *peerError) Error() string { return e.text }
func (e *peerError) Unwrap() error { return e.is }
