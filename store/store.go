// Package store is the contract of a node's page store: versioned, checksummed
// pages of many layers, fenced by volume, with positive answers about absence.
//
// It promises nothing itself; its implementations do: store/segment on this
// machine's disk, store/memstore in memory, store/remote over a connection, and
// store/faultstore, which wraps any of them. store/storetest holds all of them
// to the text of this file. What many nodes make of it together (which copy is
// in sync, who may write, what is recovered how) is left to package volume.
package store

import (
	"context"
	"iter"
)

// A Store keeps the replicas of many volumes on one node.
//
// All methods may be called concurrently. Offsets and lengths are in bytes and
// multiples of PageSize, inside [0, MaxVolumeSize]; anything else is ErrInvalid
// and nothing is done. A slice handed in is the caller's again when the call
// has returned. Memory aligned to PageSize spares copies; any alignment works.
type Store interface {
	// Attach durably refuses every epoch of vol below e from now on (N1) and
	// returns the volume as seen under e. It returns only when each request
	// that was let in under a lower epoch has been applied or refused.
	// Attaching again under the same epoch is allowed and changes nothing.
	// ErrFenced, as a *FencedError with the epoch on record, if that is higher.
	// e is at least 1.
	Attach(ctx context.Context, vol VolumeID, e Epoch) (Replica, error)

	// ReadSealed reads as Replica.Read does, of sealed layers, which need no
	// epoch because they never change (I10).
	ReadSealed(ctx context.Context, chain []LayerID, off int64, p []byte) error

	// Drop deletes chunks of a layer, or with AllChunks the layer; it is the
	// positive record that they are dead (I8). Nil: the drop is durable and
	// reads see it; the space comes back in the background. Whatever is created
	// or written after it is not touched by it. Dropping what is not there is
	// no error.
	Drop(ctx context.Context, layer LayerID, chunks Chunks) error

	// Forget removes the fence of a volume that is gone for good. Its layers
	// are dropped apart. Durable on return; replicas of it get ErrFenced.
	Forget(ctx context.Context, vol VolumeID) error

	// Layers yields the layers that are here, in no order.
	Layers(ctx context.Context) iter.Seq2[LayerInfo, error]

	// Fences yields the volumes whose fences are here, in no order.
	Fences(ctx context.Context) iter.Seq2[Fence, error]

	// Stat describes the store. It does no I/O.
	Stat(ctx context.Context) (Stat, error)

	// Close makes everything durable, ends all replicas (ErrClosed) and
	// releases what the store holds. Requests under way are finished first.
	Close() error
}

// A Replica is one volume as one attachment sees it on one node. It is bound to
// its epoch and to the incarnation the store had: with a higher epoch on record
// every method returns ErrFenced, reads too (I1), and after a change of
// incarnation ErrIncarnation (N2).
type Replica interface {
	// Incarnation returns what the store had when the replica was attached.
	Incarnation() Incarnation

	// Create makes a layer known. parent is the next layer of its chain, 0 if
	// it is the last one. Durable on return. Creating a layer that is there is
	// no error and changes nothing. Only a known layer answers that a page is
	// absent; any other is ErrUnknownLayer (N6).
	Create(ctx context.Context, layer, parent LayerID) error

	// Write stores p at off with version v, page by page where v is higher than
	// what the page has and above the layer's stable mark (N4, I2); elsewhere it
	// is answered and not applied. Nil: the pages survive the end of the
	// process, and with FlagSync (or after Sync) a power cut. ErrNoSpace: no
	// page was applied. p is at least one page long; requests above 32 MiB are
	// ErrInvalid.
	Write(ctx context.Context, layer LayerID, off int64, p []byte, v Version, f Flags) error

	// Zero makes n bytes at off a hole with version v, by the rules of Write
	// (I7). n is at most MaxVolumeSize.
	Zero(ctx context.Context, layer LayerID, off, n int64, v Version, f Flags) error

	// Read fills p from off on: each page from the first layer of the chain
	// that has it, zeroes where none has. info is nil, or has room for one
	// entry a page and gets what was read. The answer holds whole pages, each
	// as some one write left it. ErrCorrupt, as a *CorruptError that names the
	// page, if a page failed its checksum (I5); p is garbage then.
	Read(ctx context.Context, chain []LayerID, off int64, p []byte, info []PageInfo) error

	// Sync returns nil when all writes answered before the call are durable.
	// After a failed sync the store has another incarnation.
	Sync(ctx context.Context) error

	// Extents yields what one layer has in [off, off+n) with versions above
	// since: Data and Hole, in order, runs of one kind and version joined or
	// not. With since 0 that is everything.
	Extents(ctx context.Context, layer LayerID, off, n int64, since Version) iter.Seq2[Extent, error]

	// Unstable yields, in order, the extents of a layer above the stable mark it
	// was last told: what may differ between replicas after a crash.
	Unstable(ctx context.Context, layer LayerID) iter.Seq2[Extent, error]

	// Adopt makes pages equal to a peer's, whatever version they have here,
	// absence included: with Kind Data, p holds e.N bytes; else p is nil. Only
	// a page whose version is higher and of the replica's own epoch stays.
	// Adopted pages are as durable as written ones: after Sync.
	Adopt(ctx context.Context, layer LayerID, e Extent, p []byte) error

	// Stable tells the layer's watermarks: every in-sync replica has all up to
	// stable durable; up to settled holes may be forgotten. Marks never go
	// back; settled is at most stable. Made durable lazily.
	Stable(ctx context.Context, layer LayerID, stable, settled Version) error
}

// A Starter is a Replica whose writes can be under way without a goroutine that
// waits for each: one on another node. Whoever writes to several copies spares
// two switches of goroutines a copy (see package volume).
type Starter interface {
	Replica

	// StartWrite begins a Write and returns. Unless it returns an error, Wait is
	// to be called once, and p is the callee's until that has returned.
	StartWrite(ctx context.Context, layer LayerID, off int64, p []byte, v Version, f Flags) (Started, error)
}

// Started is a write under way.
type Started interface {
	// Wait returns what Write would have returned.
	Wait() error
}

// PageInfo says where one page of a read came from.
type PageInfo struct {
	Layer   LayerID // 0 where no layer of the chain has the page
	Kind    Kind
	Version Version
}

// LayerInfo describes a layer on one node.
type LayerInfo struct {
	ID              LayerID
	Parent          LayerID // 0: none
	Bytes           int64   // of live data pages
	Stable, Settled Version
}

// Fence is the highest epoch that a node has recorded for a volume.
type Fence struct {
	Volume VolumeID
	Epoch  Epoch
}

// Stat describes a store. Sizes in bytes.
type Stat struct {
	Identity    Identity
	Incarnation Incarnation
	Capacity    int64  // what may be used for pages
	Used        int64  // on disk, dead pages included
	Live        int64  // of live data pages; what a drop has just killed may still count
	Corrupt     int64  // pages found corrupt since the start
	NoSpace     bool   // writes are refused
	Failed      string // why the store serves no more; empty while it does

	Writes, Reads, Syncs    int64 // requests since the start
	BytesWritten, BytesRead int64 // by clients
	BytesToDisk             int64 // log, index apart
	BytesCollected          int64 // copied by the collector
}
