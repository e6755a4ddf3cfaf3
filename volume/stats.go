package volume

import (
	"sync/atomic"

	"torus/store"
)

// counters are what Stats reads.
type counters struct {
	reads, bytesRead, readWaits, failovers, healed atomic.Int64

	writes, bytesWritten, zeroes, merges atomic.Int64

	flushes, syncs atomic.Int64
}

// Stats are counts since the volume was opened.
type Stats struct {
	Reads, BytesRead     int64 // requests answered, and their bytes
	ReadWaits            int64 // reads that waited for a write they overlapped
	Failovers            int64 // reads that failed on one copy and went to another
	Healed               int64 // pages rewritten that a copy had lost
	Writes, BytesWritten int64 // requests answered, and their bytes
	Zeroes               int64 // trims and zeroings answered
	Merges               int64 // writes and zeroings with edges inside a page
	Flushes              int64 // calls of Sync
	Syncs                int64 // syncs asked of nodes
	InFlight             int64 // writes not answered yet, now
	Unstable             int64 // bytes written that copies have not been told to be stable, now
	Last                 store.Version
}

// Stats returns the counts; each is right, but they need not be of one moment.
func (v *Volume) Stats() Stats {
	c := &v.counts
	return Stats{
		Reads: c.reads.Load(), BytesRead: c.bytesRead.Load(),
		ReadWaits: c.readWaits.Load(), Failovers: c.failovers.Load(), Healed: c.healed.Load(),
		Writes: c.writes.Load(), BytesWritten: c.bytesWritten.Load(),
		Zeroes: c.zeroes.Load(), Merges: c.merges.Load(),
		Flushes: c.flushes.Load(), Syncs: c.syncs.Load(),
		InFlight: v.flight.count(), Unstable: v.settle.pending.Load(),
		Last: v.flight.given(),
	}
}
