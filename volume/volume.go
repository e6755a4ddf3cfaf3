// Package volume makes a random-access file out of pages that lie on several
// nodes. It is what block exporters stand on, and a library for programs that
// want a replicated volume without a block device: Open one, and use it as
// io.ReaderAt and io.WriterAt at any offset and length.
//
// It promises:
//
//   - A write that returned nil is on every copy and survives the end of any
//     process; after Sync (or WriteAtSync) it also survives a power cut. A
//     write under way is, page by page, whole or not there.
//   - What a read returned does not change without a write, whichever copy
//     answers the next one: a read is answered when the writes that overlapped
//     it have been.
//   - So it is after a crash: Open brings copies that differ to one value, which
//     has all that was acknowledged, and is durable before it is read. If every
//     copy of a page lost its power, it has all that was flushed, and says so.
//   - Every page is checked; a corrupt one is read from another copy, or is
//     store.ErrCorrupt, never wrong bytes.
//   - An error from a write that did not reach all copies alike is final: the
//     volume stops with ErrBroken rather than show a page that differs between
//     its copies. store.ErrNoSpace, where no copy took anything, is reported
//     and passes.
//
// All methods may be called concurrently. Concurrent writes that overlap are
// ordered for each page as a whole; a program that needs more orders them itself.
//
// One Volume is the only writer of its volume. That is the caller's part: each
// Open takes an epoch that was never used before and is higher than all that
// were; with it, whoever held the volume before is fenced on every node. Where
// epochs, placement and stores come from is left to others (packages cluster,
// ring, store/...), a volume sees nodes as store.Store values only.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"torus/ring"
	"torus/store"
)

// Options say what to open. Fields without a default must be set.
type Options struct {
	ID    store.VolumeID
	Epoch store.Epoch     // of this attachment: never used before, higher than all that were
	Chain []store.LayerID // head first; the head is written, the others are sealed
	Size  int64           // bytes: a positive multiple of store.PageSize, at most store.MaxVolumeSize

	// Stores has every node that Place can name. They stay the caller's, who
	// closes them after the volume.
	Stores map[ring.NodeID]store.Store
	// Place names the nodes of a chunk, nearest first for reads, each once. It
	// is called for every request, concurrently, and must be quick and always
	// say the same; the slice is only read. With one store it is not called.
	Place func(ring.ChunkIndex) []ring.NodeID
	// MinCopies is how many copies a chunk must have to be written; default 1.
	MinCopies int
	// Clean says that the last holder detached cleanly (its Close returned nil):
	// the copies are equal and durable. Otherwise they are compared and made so.
	Clean bool
	// Recorded is what Found.Copies was when the volume was last served; empty if
	// it never was.
	Recorded map[ring.NodeID]Copy
	// Stale are the copies that are recorded to be so, for the layers of Chain.
	Stale []Stale
	// CompareAll: Clean and Recorded are not known, nor which copies are in sync, but
	// that those of Stale have nothing. All others are waited for and compared, with
	// store.ErrFenced if a node has known Epoch or a higher one; ErrNoCopy if one has
	// lost what it had. Served: the volume surely has been served.
	CompareAll, Served bool
	// KeepHoles: no copy is told that it may forget holes.
	KeepHoles bool
	// Records keeps what copies lack; nil: nothing can be recorded, so a copy that
	// fails is waited for.
	Records Records
	// Dial returns the store of a node, as it is reached now; it stays the
	// caller's. It is asked when the volume is opened and whenever a node is
	// attached again; nil: Stores are.
	Dial func(ctx context.Context, id ring.NodeID) (store.Store, error)
	// Nodes are all that Place can name; nil: those of Stores.
	Nodes []ring.NodeID
	// Targets are those of Nodes that are copies of a target ring (PROTOCOL.md, Ring
	// change): the copy's ID, which is no node's, and the node on which it lies. All
	// that is said of nodes by ID here, in Records and in Found goes for such a copy
	// under its own ID. Place names them behind the others. They get all writes once
	// they were caught up with, but are never read and count for nothing else.
	Targets map[ring.NodeID]ring.NodeID
	// Period: Place's sets of copies repeat after so many chunks; 0: they don't.
	Period ring.ChunkIndex
	// Held reports that the lease surely has not run out; nil: it never does.
	Held func() bool
	// HeldUntil is until when the last holder may still answer reads; zero: it
	// does not.
	HeldUntil time.Time
	// Pace says how fast copies are brought up to date and scrubbed; nil: one of
	// this volume's own, without a rate.
	Pace *Pace
	// ReadOnly refuses writes with ErrReadOnly.
	ReadOnly bool

	// SyncBytes and SyncEvery bound what a crash leaves unstable: so many bytes
	// written, or so long after the first of them, a sync is done in the
	// background. Defaults 64 MiB and 5 s.
	SyncBytes int64
	SyncEvery time.Duration

	Logger *slog.Logger // nil discards
}

// Volume is an open volume. See the package comment for what it promises.
type Volume struct {
	id       store.VolumeID
	epoch    store.Epoch
	chain    []store.LayerID
	size     int64
	readOnly bool
	moving   bool // there is a target
	adopted  atomic.Bool
	copies   copies
	records  Records
	held     func() bool // the lease surely has not run out; nil: it never does
	dial     func(context.Context, ring.NodeID) (store.Store, error)
	tenders  sync.WaitGroup
	pace     *Pace
	log      *slog.Logger
	place    placement

	ctx    context.Context // the volume's own lifetime: ends when Close is done
	cancel context.CancelFunc

	gate   gate
	flight *flight
	broken atomic.Pointer[broken] // why the volume stopped; nil while it serves
	flush  flusher
	settle settler
	healer healer
	counts counters
}

// Size returns the size of the volume in bytes.
func (v *Volume) Size() int64 { return v.size }

// Close waits for the requests under way, makes everything durable, tells the
// copies so, and ends the volume; later calls return ErrClosed. Nil says that
// it ended clean: all copies are equal and durable, and nothing has to be
// recovered when the volume is opened next. The stores stay open.
//
// Requests that wait for a copy are given closePatience, or movedPatience; then the
// volume ends with an error, and they do.
func (v *Volume) Close() error {
	defer v.copies.shut(func() { v.stop(errClosing) }).Stop()
	if !v.gate.shut() {
		return v.wrap("close", 0, -1, ErrClosed)
	}
	v.settle.end()
	err := v.stopped()
	if err == nil {
		err = v.settleNow()
	}
	if err == nil {
		err = v.awaitSettled()
	}
	v.cancel()
	v.tenders.Wait()
	v.pace.leave(v)
	return v.wrap("close", 0, -1, err)
}

// closePatience is how long Close waits for copies that do not answer and can't
// be recorded stale.
const closePatience = 10 * time.Second

// movedPatience is closePatience where copies can't be recorded stale any more, so
// that all that is left is that they answer again.
const movedPatience = time.Second

var errClosing = errors.New("closed while requests waited for a copy")

// awaitSettled returns when no node's record may yet come or go.
func (v *Volume) awaitSettled() error {
	for {
		gen := v.copies.gen.Load()
		if !slices.ContainsFunc(v.place.nodes, func(n *node) bool {
			s := n.view.Load().state
			return s == failing || s == pending
		}) {
			return nil
		}
		if err := v.await(gen); err != nil {
			return err
		}
	}
}

// enter lets a request in that must leave through v.gate.leave.
func (v *Volume) enter() error {
	if !v.gate.enter() {
		return ErrClosed
	}
	if err := v.stopped(); err != nil {
		v.gate.leave()
		return err
	}
	return nil
}

// enterWrite is enter for a change of [off, off+n).
func (v *Volume) enterWrite(off, n int64) error {
	switch {
	case v.readOnly:
		return ErrReadOnly
	case off < 0 || n < 0:
		return fmt.Errorf("%w: negative offset %d or length %d", store.ErrInvalid, off, n)
	case n > v.size || off > v.size-n:
		return fmt.Errorf("%w: %d+%d ends beyond %d", ErrRange, off, n, v.size)
	}
	return v.enter()
}

// pageFloor returns the start of the page that holds off.
func pageFloor(off int64) int64 { return off &^ (store.PageSize - 1) }

// pageCeil returns the first page boundary at or behind off.
func pageCeil(off int64) int64 { return pageFloor(off + store.PageSize - 1) }

// parallel calls do(0) ... do(n-1), at most limit at a time, and returns when
// all have. The last one runs on the caller's goroutine.
func parallel(n, limit int, do func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, limit)
	for i := range n {
		if i == n-1 {
			do(i)
			break
		}
		slots <- struct{}{}
		wg.Go(func() {
			do(i)
			<-slots
		})
	}
	wg.Wait()
}
