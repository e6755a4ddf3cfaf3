// Package nbd serves block devices over the NBD protocol.
//
// It promises the whole of the protocol document (doc/proto.md of
// NetworkBlockDevice/nbd, with its extended headers): fixed newstyle
// negotiation with every option that a server can answer, TLS, simple,
// structured and extended replies, all commands. Any alignment is served,
// requests are handled concurrently and answered out of order, and memory
// stays within a configured budget whatever clients send: what does not fit
// waits in the client's socket.
//
// What a device is, where its bytes are and what makes them durable it leaves
// to the Device that an Exports hands out. It knows nothing of the rest of
// the project and imports none of it.
package nbd

import (
	"context"
	"io"
	"iter"
)

// A Device is what an export serves: a random-access range of bytes.
//
// All methods may be called concurrently, from many connections at once. The
// server checks requests against Size first, so offsets and lengths lie within
// the device unless it shrinks meanwhile (then: ErrOutOfRange). Offsets and
// lengths are in bytes and need not be aligned; lengths are never zero.
// Buffers begin at an address that is congruent to the offset modulo 4096, so
// an aligned request has an aligned buffer, fit for O_DIRECT. Errors become
// NBD error numbers as errnoOf says; the sentinels of this package may be
// returned or wrapped.
type Device interface {
	// ReadAt fills p with the bytes at off. A short read is an error.
	io.ReaderAt

	// WriteAt writes p at off. It does not keep p after it returns.
	// The bytes need not be durable before the next Sync.
	io.WriterAt

	// WriteAtSync is WriteAt that returns nil only when this write is
	// durable (NBD_CMD_FLAG_FUA).
	WriteAtSync(p []byte, off int64) (int, error)

	// Sync returns nil only when all writes, trims and zeroes that were
	// answered before the call, on whatever connection, are durable.
	Sync() error

	// Trim gives the range back; it reads as zeroes afterwards. With fua it
	// is durable when the error is nil.
	Trim(off, n int64, fua bool) error

	// Zero makes the range read as zeroes, durably with fua. It must be
	// faster than writing zeroes, unless noHole asks that the range stay
	// allocated. The server never combines that with FAST_ZERO (a
	// FastZeroer says otherwise).
	Zero(off, n int64, fua, noHole bool) error

	// Size is the device's size in bytes. It may change; the server asks
	// for every request.
	Size() int64

	// Extents yields what is allocated, in order and without gaps, from off
	// to off+n. The server stops it early when its reply is full. An error
	// ends it.
	Extents(off, n int64) iter.Seq2[Extent, error]
}

// An Ender is a Device that may end while clients use it: when Done is closed
// their connections are broken, since whatever they were told may be gone. What fails
// from then on is not answered.
type Ender interface {
	Done() <-chan struct{}
}

// A FastZeroer is a Device that can also zero with noHole faster than a write
// of zeroes.
type FastZeroer interface {
	// FastZero says whether Zero with that value of noHole is fast.
	FastZero(noHole bool) bool
}

// A Cacher is a Device that can be told of reads to come (NBD_CMD_CACHE).
// Without it the server reads the range, up to 32 MiB, and drops what it read.
type Cacher interface {
	Cache(off, n int64) error
}

// An Extent is a run of a device with one allocation status, as the metadata
// context base:allocation has it.
type Extent struct {
	Off, Len int64 // bytes
	Hole     bool  // not allocated: writing there may fail for lack of space
	Zero     bool  // reads as zeroes
}

// Exports finds devices by name. Its methods may be called concurrently. The
// context ends when the server shuts down.
type Exports interface {
	// List names what can be opened, for NBD_OPT_LIST.
	List(ctx context.Context) ([]ExportInfo, error)

	// Info describes an export without attaching it, for NBD_OPT_INFO and
	// the negotiation before Open. ErrNotFound if there is none.
	Info(ctx context.Context, name string) (ExportInfo, error)

	// Open attaches the export. The server calls release once, when the
	// connection has ended and no call of the device is under way.
	Open(ctx context.Context, name string) (dev Device, release func(), err error)
}

// ExportInfo is what a client learns about an export before it opens it.
type ExportInfo struct {
	Name        string // canonical; at most 4096 bytes of UTF-8, no NUL
	Description string // for people; may be empty; at most 4096 bytes
	Size        int64  // bytes; after Open the Device's own Size counts
	ReadOnly    bool   // writes, trims and zeroes fail with EPERM
}
