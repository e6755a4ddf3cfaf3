package volume

import (
	"errors"

	"torus/store"
)

// The decisions of the data path, as functions of the answers alone.

// tally counts how the copies of one run of pages answered one write.
type tally struct {
	applied int // nil
	refused int // store.ErrNoSpace: that copy applied nothing
	failed  int // anything else: that copy may have applied it, or may yet
}

// add counts an answer.
func (t *tally) add(err error) {
	switch {
	case err == nil:
		t.applied++
	case errors.Is(err, store.ErrNoSpace):
		t.refused++
	default:
		t.failed++
	}
}

// verdict is what became of a write when all copies have answered.
type verdict uint8

const (
	// writeDone: every copy has it; it may be acknowledged.
	writeDone verdict = iota
	// writeRefused: no copy has it, for want of space; the copies are equal, so
	// its error may be reported and the volume goes on (I9).
	writeRefused
	// writeMixed: some copy may have it and another not. It can neither be
	// acknowledged (I4) nor forgotten (I6).
	writeMixed
)

// verdict judges a write. A single copy that failed is mixed too: whether it
// applied the write is unknown, and a late one would change what was read.
func (t tally) verdict() verdict {
	switch {
	case t.refused == 0 && t.failed == 0:
		return writeDone
	case t.applied == 0 && t.failed == 0:
		return writeRefused
	}
	return writeMixed
}

// next is what follows the failure of a read from one copy.
type next uint8

const (
	// tryAnother: ask the next copy in sync.
	tryAnother next = iota
	// reportError: no copy is left; the request fails, the volume goes on (I9).
	reportError
	// stopServing: the attachment is over.
	stopServing
)

// afterRead decides on err from one copy when others in sync are left to ask.
func afterRead(err error, others int) next {
	switch {
	case errors.Is(err, store.ErrFenced):
		// Another holder is attaching. A copy it has not reached would still
		// answer, but nothing this volume says may count any more.
		return stopServing
	case others > 0:
		return tryAnother
	case errors.Is(err, store.ErrIncarnation):
		// The last copy may have lost what was acknowledged.
		return stopServing
	}
	return reportError
}

// fatal reports whether an answer to anything else than a read or a write,
// whose failure alone does no harm, shows that the attachment is over.
func fatal(err error) bool {
	return errors.Is(err, store.ErrFenced) || errors.Is(err, store.ErrIncarnation)
}
