package segment

import (
	"errors"
	"fmt"

	"torus/store"
)

// position counts the records of the hot log from 1. A record that the
// collector copies keeps the position at which it was first logged: of all that
// the segments say of a page, the highest position is what holds, since neither
// version (adopting lowers it) nor place (collecting changes it) would do.
type position uint64

// segNum numbers a use of a segment file. Numbers grow and are not used twice.
type segNum uint32

func (n segNum) String() string { return fmt.Sprintf("%08x", uint32(n)) }

// location is where a page, or the header that states a hole, lies: the
// segment's number above 16 bits of block.
type location uint64

const maxBlocks = 1 << 16

func newLocation(s segNum, block uint32) location { return location(s)<<16 | location(block) }

func (l location) segment() segNum { return segNum(l >> 16) }
func (l location) block() uint32   { return uint32(l & (maxBlocks - 1)) }

// desc is what the index knows of one page of one layer. pos 0: nothing.
type desc struct {
	loc     location
	pos     position
	version store.Version
	crc     uint32
	kind    store.Kind
}

var errBlank = errors.New("blank")

// FormatError refuses a file of another format.
type FormatError struct {
	File  string
	Found uint32
}

// Error names file, format and what this program reads.
func (e *FormatError) Error() string {
	return fmt.Sprintf("%s has format %d, this program reads format %d", e.File, e.Found, FormatVersion)
}

// Is makes the error ErrInvalid: no repair helps, another program does.
func (e *FormatError) Is(target error) bool { return target == store.ErrInvalid }
