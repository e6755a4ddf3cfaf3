package volume

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"torus/store"
)

// flight gives every write its version and knows which are in flight, that is,
// sent to a replica perhaps and not acknowledged. On it rest
//
//   - reads, which are answered only when every write that overlapped them has
//     been acknowledged (I6): await, after the replica has answered;
//   - read-merge-write, which takes its version first, then waits for what is
//     below it, and only then reads: await, before the read. So a merge contains
//     all that has a lower version, and what has a higher one replaces it: whole
//     pages never wait, and there are no page locks beside this table;
//   - the stable mark, which must lie below every write in flight: low.
//
// A write is kept as a value in the slice of one shard: that of its region of
// the address space, or the wide one if it touches several regions. A version
// is drawn under the lock of the shard in which it is entered at once, so
// whoever has seen version v given and then looks into a shard finds every
// write below v there, unless it has ended. No lock is held over I/O, and a
// shard's lock is never taken under another's.
type flight struct {
	last atomic.Uint64 // store.Version given last
	end  uint64        // versions from here on are not given
	_    [112]byte     // keeps last, which every write changes, off the shards' lines

	shards [flightShards]shard
	wide   shard
}

const (
	// regionSize: requests up to here mostly lie in one region; longer ones are
	// few at a time, so that scanning all of them costs little.
	regionSize   = 256 << 10
	flightShards = 64
	// sequenceReserve is what is left of an epoch's sequence when writing ends:
	// more than the writers that can pass the check at the same moment.
	sequenceReserve = 1 << 20
)

// shard holds the writes in flight of some regions.
type shard struct {
	count atomic.Int64 // writes; raised before the version of one is drawn

	mu      sync.Mutex // guards what follows
	writes  []span
	waiters int
	ended   sync.Cond
	_       [40]byte
}

// span is a write in flight: the pages [off, end), in bytes.
type span struct {
	off, end int64
	version  store.Version
	gen      uint64 // the change of state of the nodes for which it has planned

	id      store.Version // the version that it began with, by which it is known
	merging bool          // nothing of it has been sent: it may get another version
}

// unplanned is the gen of a write that has not looked yet at which nodes are in
// sync, and will.
const unplanned = math.MaxUint64

// newFlight starts the sequence of an epoch.
func newFlight(e store.Epoch) *flight {
	f := &flight{end: uint64(store.NewVersion(e, store.MaxSequence-sequenceReserve))}
	f.last.Store(uint64(store.NewVersion(e, 0)))
	for i := range f.shards {
		f.shards[i].ended.L = &f.shards[i].mu
	}
	f.wide.ended.L = &f.wide.mu
	return f
}

// home returns the shard for a write of [off, end).
func (f *flight) home(off, end int64) *shard {
	region := off / regionSize
	if region != (end-1)/regionSize {
		return &f.wide
	}
	return &f.shards[region%flightShards]
}

// begin enters a write of the pages [off, end) and returns its version, higher
// than all given before. It is about to plan for gen: to look at the nodes after
// begin. ErrSequence if the epoch has none left.
func (f *flight) begin(off, end int64, gen uint64) (store.Version, error) {
	return f.enter(span{off: off, end: end, gen: gen})
}

// beginMerge is begin for a write that reads first what lies below it: until sends
// says so, it may be given another version.
func (f *flight) beginMerge(off, end int64) (store.Version, error) {
	// It may have to wait for a write that waits for a copy to be in sync.
	return f.enter(span{off: off, end: end, gen: unplanned, merging: true})
}

// enter enters a write, with its version.
func (f *flight) enter(w span) (store.Version, error) {
	// Here a new epoch taken in place will have its moment: last and end are
	// all that tells one epoch from the next.
	if f.last.Load() >= f.end {
		return 0, ErrSequence
	}
	s := f.home(w.off, w.end)
	s.mu.Lock()
	s.count.Add(1)
	w.version = store.Version(f.last.Add(1))
	w.id = w.version
	s.writes = append(s.writes, w)
	s.mu.Unlock()
	return w.version, nil
}

// sends is called when the merge id has read what lies below version, and is about
// to send. If it returns another version the merge has that now, and reads anew.
func (f *flight) sends(off, end int64, id, version store.Version) store.Version {
	s := f.home(off, end)
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &s.writes[slices.IndexFunc(s.writes, func(w span) bool { return w.id == id })]
	w.merging = w.version != version
	return w.version
}

// postpone gives the merges of [off, end) that began before the write of version own,
// and of which nothing has been sent, versions above it. It reports whether no
// other write that began before is in flight there.
func (f *flight) postpone(off, end int64, own store.Version) bool {
	none := true
	for _, s := range f.touched(off, end) {
		s.mu.Lock()
		for i := range s.writes {
			switch w := &s.writes[i]; {
			case w.off >= end || off >= w.end || w.version >= own:
			case w.merging:
				w.version = store.Version(f.last.Add(1))
			default:
				none = false
			}
		}
		if s.waiters > 0 {
			s.ended.Broadcast() // who waits for what is below it
		}
		s.mu.Unlock()
	}
	return none
}

// touched returns the shards in which writes may be that touch [off, end).
func (f *flight) touched(off, end int64) []*shard {
	first, regions := off/regionSize, (end-1)/regionSize-off/regionSize+1
	shards := []*shard{&f.wide}
	for i := range min(regions, flightShards) {
		shards = append(shards, &f.shards[(first+i)%flightShards])
	}
	return shards
}

// finish takes out a write that begin entered with the same bounds, and for which
// it returned id.
func (f *flight) finish(off, end int64, id store.Version) {
	s := f.home(off, end)
	s.mu.Lock()
	for i := range s.writes {
		if s.writes[i].id == id {
			last := len(s.writes) - 1
			s.writes[i] = s.writes[last]
			s.writes = s.writes[:last]
			break
		}
	}
	s.count.Add(-1)
	if s.waiters > 0 {
		s.ended.Broadcast()
	}
	s.mu.Unlock()
}

// replanned says of a write in flight that it is about to plan for gen.
func (f *flight) replanned(off, end int64, version store.Version, gen uint64) {
	s := f.home(off, end)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.writes {
		if s.writes[i].version == version {
			s.writes[i].gen = gen
		}
	}
	if s.waiters > 0 {
		s.ended.Broadcast()
	}
}

// awaitPlanned returns when every write in flight has planned for gen, or will:
// which of them a shard's lock shows afterwards looks at the nodes later.
func (f *flight) awaitPlanned(gen uint64) {
	for i := range f.shards {
		f.shards[i].awaitPlanned(gen)
	}
	f.wide.awaitPlanned(gen)
}

func (s *shard) awaitPlanned(gen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for slices.ContainsFunc(s.writes, func(w span) bool { return w.gen < gen }) {
		s.waiters++
		s.ended.Wait()
		s.waiters--
	}
}

// given returns the version given last.
func (f *flight) given() store.Version { return store.Version(f.last.Load()) }

// await returns when no write up to and with version last that touches
// [off, end) is in flight, and reports whether it had to wait. Later writes do
// not prolong it.
func (f *flight) await(off, end int64, last store.Version) bool {
	waited := f.wide.await(off, end, last)
	first, regions := off/regionSize, (end-1)/regionSize-off/regionSize+1
	for i := range min(regions, flightShards) {
		if f.shards[(first+i)%flightShards].await(off, end, last) {
			waited = true
		}
	}
	return waited
}

// await is flight.await for one shard.
func (s *shard) await(off, end int64, last store.Version) bool {
	if s.count.Load() == 0 {
		return false
	}
	waited := false
	s.mu.Lock()
	for s.touches(off, end, last) {
		waited = true
		s.waiters++
		s.ended.Wait()
		s.waiters--
	}
	s.mu.Unlock()
	return waited
}

// touches reports whether a write up to version last overlaps [off, end).
func (s *shard) touches(off, end int64, last store.Version) bool {
	for i := range s.writes {
		w := &s.writes[i]
		if w.off < end && off < w.end && w.version <= last {
			return true
		}
	}
	return false
}

// low returns the highest version such that it and all below have ended.
func (f *flight) low() store.Version {
	low := f.given() // before the shards: later writes are above it
	for i := range f.shards {
		low = f.shards[i].low(low)
	}
	return f.wide.low(low)
}

// low lowers v to below every write in flight here.
func (s *shard) low(v store.Version) store.Version {
	if s.count.Load() == 0 {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.writes {
		v = min(v, s.writes[i].version-1)
	}
	return v
}

// count returns how many writes are in flight.
func (f *flight) count() int64 {
	n := f.wide.count.Load()
	for i := range f.shards {
		n += f.shards[i].count.Load()
	}
	return n
}
