package segment

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"torus/store"
)

const segmentSuffix = ".seg"

// A seg is one use of a segment file.
//
//	spare -> open -> sealed -> freed (its file becomes a spare, or is removed)
type seg struct {
	num      segNum
	stream   stream
	sequence uint64
	nonce    uint64
	firstPos position
	f        file

	// used is the block behind the last batch.
	used atomic.Uint32
	// live counts the pages, tombs the holes and absences by page, that the index places here.
	live, tombs atomic.Int32
	// headers counts the blocks of headers that the collector wrote here in this life.
	headers atomic.Uint32
	// punched counts the pages given back to the file system.
	punched atomic.Uint32
	sealed  atomic.Bool
	// damaged: a header, or a page that lives, is corrupt; nothing is copied out.
	damaged atomic.Bool
	// warm: every block of the file was written before, so a sync needs no journal.
	warm bool
	// pins counts the readers that have a location in it.
	pins atomic.Int32
	// freed is set once nothing points here; the last pin closes unpinned.
	freed    atomic.Bool
	unpinned chan struct{}
	once     sync.Once

	// flushed are the counts as Badger has them, sum that record's; the flusher's alone.
	flushed segCounts
	sum     uint64

	mu sync.Mutex
	// oldest has the lowest position of a page record of each layer: what kills
	// older things is kept until no segment has any (I8).
	oldest map[store.LayerID]position
}

func (s *seg) name() string { return s.num.String() + segmentSuffix }

// note enters that the segment states something of layer at pos.
func (s *seg) note(layer store.LayerID, pos position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.oldest[layer]; !ok || pos < old {
		s.oldest[layer] = pos
	}
}

// hasOlder reports whether the segment states anything of layer before pos.
func (s *seg) hasOlder(layer store.LayerID, pos position) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.oldest[layer]
	return ok && old < pos
}

func (s *seg) unpin() {
	if s.pins.Add(-1) == 0 && s.freed.Load() {
		s.once.Do(func() { close(s.unpinned) })
	}
}

// waitUnpinned returns when no reader has a location in it any more. The
// segment is not in the table then, so no new one comes.
func (s *seg) waitUnpinned() {
	s.freed.Store(true)
	if s.pins.Load() == 0 {
		s.once.Do(func() { close(s.unpinned) })
	}
	<-s.unpinned
}

// segments is the table of all segments, and the supply of new ones.
type segments struct {
	d        disk
	identity store.Identity
	blocks   uint32 // of each segment
	ballast  *ballast

	// table is replaced, never changed: readers take it without a lock.
	table atomic.Pointer[map[segNum]*seg]

	mu        sync.Mutex // guards what follows; taken after every other lock
	supply    sync.Cond
	spares    []*seg
	opening   int // taken from the spares, and not in the table yet
	next      segNum
	capacity  int64 // 0: what the disk has
	full      error // why the last attempt to add a spare failed
	want      int   // spares to have ready
	starving  int   // who waits for spares,
	short     int   // and how many there must be for the neediest of them
	closed    bool
	done      chan struct{}
	removals  sync.WaitGroup
	removeErr error // of a removal; tidy and close report it
	onSupply  func()
}

// spareOfCollector is never given to the hot log: at a full disk the collector
// needs somewhere to copy to.
const spareOfCollector = 1

func newSegments(d disk, id store.Identity, segmentSize, capacity int64, b *ballast) *segments {
	s := &segments{d: d, identity: id, blocks: uint32(segmentSize / blockSize), ballast: b,
		capacity: capacity, want: spareOfCollector + 1, next: 1}
	s.supply.L = &s.mu
	s.table.Store(&map[segNum]*seg{})
	return s
}

func (s *segments) size() int64 { return int64(s.blocks) * blockSize }

// get returns a segment in use, or nil.
func (s *segments) get(n segNum) *seg { return (*s.table.Load())[n] }

// all returns the segments in use, in no order.
func (s *segments) all() map[segNum]*seg { return *s.table.Load() }

func (s *segments) enter(g *seg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(func(m map[segNum]*seg) { m[g.num] = g })
}

// reserve keeps n from being given to another segment: what the index and the
// log say of it means the one that had it.
func (s *segments) reserve(n segNum) { s.next = max(s.next, n+1) }

func (s *segments) change(f func(map[segNum]*seg)) {
	old := *s.table.Load()
	m := make(map[segNum]*seg, len(old)+1)
	for k, v := range old {
		m[k] = v
	}
	f(m)
	s.table.Store(&m)
}

// noOlder reports whether no segment but except states anything of layer
// before pos: then what pos kills cannot come back from a rebuild.
func (s *segments) noOlder(layer store.LayerID, pos position, except *seg) bool {
	for _, g := range s.all() {
		if g != except && g.hasOlder(layer, pos) {
			return false
		}
	}
	return true
}

// start begins to prepare spares in the background.
func (s *segments) start(onSupply func()) {
	s.onSupply = onSupply
	s.done = make(chan struct{})
	go s.prepareLoop()
}

func (s *segments) close() error {
	s.mu.Lock()
	s.closed = true
	s.supply.Broadcast()
	s.mu.Unlock()
	if s.done != nil {
		<-s.done
	}
	s.removals.Wait()
	errs := []error{s.removeErr}
	for _, g := range s.all() {
		errs = append(errs, g.f.close())
	}
	for _, g := range s.spares {
		errs = append(errs, g.f.close())
	}
	return errors.Join(errs...)
}

func (s *segments) prepareLoop() {
	defer close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.closed {
		if s.full != nil || len(s.spares) >= s.need() {
			s.supply.Wait()
			continue
		}
		if s.capacity > 0 && s.usedLocked()+s.size() > s.capacity {
			s.setFull(fmt.Errorf("%w: the capacity of %d bytes is in use", store.ErrNoSpace, s.capacity))
			continue
		}
		n := s.next
		s.next++
		s.mu.Unlock()
		g, err := s.makeSpare(n)
		s.mu.Lock()
		if err != nil {
			s.setFull(err)
			continue
		}
		s.addSpare(g)
	}
}

func (s *segments) setFull(err error) {
	s.full = err
	s.supply.Broadcast()
	if s.onSupply != nil {
		go s.onSupply()
	}
}

func (s *segments) addSpare(g *seg) {
	s.spares = append(s.spares, g)
	s.full = nil
	s.supply.Broadcast()
	if s.onSupply != nil {
		go s.onSupply()
	}
}

// makeSpare creates a file whose space is physically there.
func (s *segments) makeSpare(n segNum) (*seg, error) {
	if err := s.ballast.admit(s.size()); err != nil {
		return nil, err
	}
	g := s.newSeg(n)
	var err error
	if g.f, err = s.d.open(g.name()); err != nil {
		return nil, err
	}
	if err := s.fillSpare(g); err != nil {
		return nil, errors.Join(err, g.f.close(), s.d.remove(g.name()))
	}
	return g, nil
}

func (s *segments) newSeg(n segNum) *seg {
	return &seg{num: n, unpinned: make(chan struct{}), oldest: map[store.LayerID]position{}}
}

func (s *segments) fillSpare(g *seg) error {
	if err := g.f.allocate(s.size()); err != nil {
		return fmt.Errorf("%w: %v", store.ErrNoSpace, err)
	}
	if err := g.f.writeAt([][]byte{zeroBlock}, 0); err != nil {
		return err
	}
	return errors.Join(g.f.datasync(), s.d.syncDir())
}

var zeroBlock = alignedBuffer(blockSize)

// keepSpares is how many files of freed segments are kept for use while clients
// write; tidy removes those that are too many at rest. Blocks that were written
// before take half as long to sync, and removing a file may stall the disk.
const keepSpares = 4

// recycle makes the file of a freed segment a spare, or removes it if there
// are enough, or if with what was punched out of it the file takes too much.
func (s *segments) recycle(g *seg) error {
	s.mu.Lock()
	keep := len(s.spares) < max(s.need(), keepSpares) && !s.closed &&
		(s.capacity == 0 || s.usedLocked()+s.size() <= s.capacity)
	n := s.next
	if keep {
		s.next++
	}
	s.mu.Unlock()
	g.waitUnpinned()
	if !keep {
		s.discard(g)
		return nil
	}
	fresh := s.newSeg(n)
	fresh.f, fresh.warm = g.f, g.punched.Load() == 0
	if err := s.d.rename(g.name(), fresh.name()); err != nil {
		return errors.Join(err, g.f.close())
	}
	if err := s.fillSpare(fresh); err != nil {
		return errors.Join(err, g.f.close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addSpare(fresh)
	return nil
}

// discard closes and removes a file whose segment is in use no more, in the
// background: where the file system discards freed blocks at once, removing
// 256 MiB was seen to take seconds.
func (s *segments) discard(g *seg) {
	s.removals.Add(1)
	go func() {
		defer s.removals.Done()
		err := errors.Join(g.f.close(), s.d.remove(g.name()), s.d.syncDir())
		s.mu.Lock()
		defer s.mu.Unlock()
		s.removeErr = errors.Join(s.removeErr, err)
		s.retry()
	}()
}

// retry lets the supply try again after space was freed.
func (s *segments) retry() {
	s.full = nil
	s.supply.Broadcast()
}

// supplyAgain lets the supply look whether there is space now.
func (s *segments) supplyAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full != nil {
		s.retry()
	}
}

// takeBack makes a spare of a file that is in the directory, and not in use.
func (s *segments) takeBack(g *seg) error {
	fresh := s.newSeg(g.num)
	fresh.f = g.f
	if err := s.fillSpare(fresh); err != nil {
		// Not even its own space is there any more: let it go.
		return errors.Join(g.f.close(), s.d.remove(g.name()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spares = append(s.spares, fresh)
	return nil
}

// drop takes a segment out of the table.
func (s *segments) drop(n segNum) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(func(m map[segNum]*seg) { delete(m, n) })
}

// clear empties the table, without closing anything.
func (s *segments) clear() { s.table.Store(&map[segNum]*seg{}) }

// tidy removes spares beyond what is wanted; a burst asked for more.
func (s *segments) tidy() error {
	s.mu.Lock()
	var extra []*seg
	if need := s.need(); len(s.spares) > need {
		extra = append(extra, s.spares[need:]...)
		s.spares = s.spares[:need]
	}
	s.mu.Unlock()
	for _, g := range extra {
		s.discard(g)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.removeErr
	s.removeErr = nil
	return err
}

// usable returns how many spares the hot log may still take.
func (s *segments) usable() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(len(s.spares)-spareOfCollector, 0)
}

// exhausted returns why no spare can be made; nil while they can, or are there.
func (s *segments) exhausted() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

// setWant says how many spares to have ready: two when the hot log will soon
// need one, else the collector's.
func (s *segments) setWant(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > s.want {
		s.supply.Broadcast()
	}
	s.want = n
}

// need returns how many spares to have ready, whatever was wanted last: nobody
// waits for one that is not being made. Called with mu held.
func (s *segments) need() int {
	if s.starving > 0 {
		return max(s.want, s.short)
	}
	return s.want
}

// starve asks for one spare more than there are, until fed is called.
func (s *segments) starve() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starveLocked(len(s.spares) + 1)
}

func (s *segments) starveLocked(short int) {
	s.starving++
	s.short = max(s.short, short)
	s.supply.Broadcast()
}

func (s *segments) fed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fedLocked()
}

func (s *segments) fedLocked() {
	if s.starving--; s.starving == 0 {
		s.short = 0
	}
}

// take opens a spare for st: ErrNoSpace when none is there and none can be
// made; it waits while one is being made.
func (s *segments) take(st stream, sequence uint64, firstPos position) (*seg, error) {
	keep := 0
	if st == hot {
		keep = spareOfCollector
	}
	s.mu.Lock()
	s.starveLocked(keep + 1)
	for len(s.spares) <= keep && s.full == nil && !s.closed {
		s.supply.Wait()
	}
	s.fedLocked()
	if len(s.spares) <= keep {
		err := s.full
		if err == nil {
			err = store.ErrClosed
		}
		s.mu.Unlock()
		return nil, err
	}
	g := s.spares[0]
	s.spares = s.spares[1:]
	s.opening++
	s.supply.Broadcast()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.opening--
	}()
	err := s.open(g, st, sequence, firstPos)
	if err == nil && st == cold {
		err = g.f.datasync() // the log is about to name it
	}
	if err != nil {
		return nil, errors.Join(err, g.f.close())
	}
	s.enter(g)
	return g, nil
}

// open writes the header. That of a hot segment becomes durable with the first
// sync of the segment; until then a crash leaves a spare.
func (s *segments) open(g *seg, st stream, sequence uint64, firstPos position) error {
	var b [8]byte
	rand.Read(b[:])
	g.stream, g.sequence, g.firstPos, g.nonce = st, sequence, firstPos, binary.LittleEndian.Uint64(b[:])
	h := segmentHeader{identity: s.identity, nonce: g.nonce, number: g.num, stream: st,
		sequence: sequence, firstPos: firstPos, blocks: s.blocks}
	p := alignedBuffer(blockSize)
	h.encode(p)
	g.used.Store(1)
	return g.f.writeAt([][]byte{p}, 0)
}

// parseSegmentName returns the number in a segment's file name.
func parseSegmentName(name string) (segNum, bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	var n uint32
	if !ok || len(hex) != 8 {
		return 0, false
	}
	if _, err := fmt.Sscanf(hex, "%08x", &n); err != nil || segNum(n).String() != hex {
		return 0, false
	}
	return segNum(n), true
}

// usedBytes returns what all files take, as far as is known without asking the
// file system.
func (s *segments) usedBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usedLocked()
}

func (s *segments) usedLocked() int64 {
	n := int64(len(s.spares)+s.opening) * s.size()
	for _, g := range s.all() {
		if g.sealed.Load() {
			n += int64(g.taken()) * blockSize
		} else {
			n += s.size()
		}
	}
	return n
}

// available returns what pages may take in all: the capacity, or what the disk
// has beside the reserve.
func (s *segments) available() int64 {
	if s.capacity > 0 {
		return s.capacity
	}
	free, err := s.d.free()
	if err != nil {
		return 0
	}
	return s.usedBytes() + max(free-s.ballast.headroom(), 0)
}

// easeSegments is how many segments the hot log has to have before it for the
// collector to take its time; it is an eighth of all where these are fewer.
const easeSegments = 8

// ease returns how much of that there is: from 1 down to 0, with which no
// further segment is to be had.
func (s *segments) ease() float64 {
	if s.exhausted() != nil {
		return 0
	}
	all := s.available()
	left := all - s.usedBytes() + int64(s.usable())*s.size()
	return min(1, max(0, float64(left)/float64(min(easeSegments*s.size(), all/8))))
}
