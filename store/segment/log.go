package segment

import (
	"fmt"
	"sync"
	"sync/atomic"

	"torus/store"
)

// Bounds of a batch. A batch always takes one request, however large; more
// only as long as it stays below.
const (
	batchPages   = 2048
	batchBufs    = 512
	batchRecords = 256 << 10 // bytes of header
)

// A request is what one caller wants logged, all in one batch.
type request struct {
	next *request
	recs []record
	bufs [][]byte // the pages of the recData records, aligned, in their order
	// touched are the buckets whose pages the records change, held until applied.
	touched []touch
	// meta changes the tables beside the index; nil where there is nothing.
	meta func()
	need need

	pages, header uint32    // pages; bytes of records
	ready         chan bool // true: lead the next batch; false: answered
	err           error

	crcs   []uint32 // those of recs
	bounce []byte   // pages that came unaligned
}

func (r *request) add(rec record) {
	r.recs = append(r.recs, rec)
	r.header += uint32(rec.size())
	if rec.kind == recData {
		r.pages += rec.count
	}
}

// blocks is what the request takes in a batch of its own.
func (r *request) blocks() uint32 {
	return (batchFixedSize+r.header+blockSize-1)/blockSize + r.pages
}

// A need decides how much of the log's last segment a request leaves to those of
// greater need, where there is space for no other segment: what frees space takes
// some of the log itself, and without that nothing could be freed any more.
type need uint8

const (
	forData  need = iota
	forPages      // holes and absences page by page, watermarks: many, and each frees little
	forFacts      // fences and layers, without which nothing is trimmed; what is said of whole chunks
	forSpace      // what frees segments; a start, and an end, of the store
)

// leaves returns how many of a segment's blocks the request leaves. Each time it
// is half as many, and a lone request takes one: a start, or a segment that is
// freed, has a thirty-second part.
func (n need) leaves(blocks uint32) uint32 {
	if n == forSpace {
		return 0
	}
	return blocks / 8 >> n
}

// A logPoint is where the log goes on behind everything up to applied.
type logPoint struct {
	applied position
	segment segNum
	block   uint32
	chain   uint32 // checksum of the last batch header
}

// hotLog appends batches to the open segment: group commit by leader and
// followers. The caller that finds nobody writing writes what is queued, itself
// first; those that come meanwhile queue up, and the first of them leads next.
// So one writer alone pays for no goroutine switch.
//
// Batches are applied to the index in log order, after their write and before
// any of their requests is answered.
type hotLog struct {
	segs *segments
	// apply enters a request in the index and the tables, in log order; err is
	// what its write returned. It must release what the request holds.
	apply func(g *seg, r *request, header, first uint32, err error)
	// snapshot appends the records that a segment begins with.
	snapshot func() []record
	// failed ends the store: a write or a sync went wrong.
	failed func(error)

	mu         sync.Mutex
	head, tail *request
	queued     uint32 // blocks in the queue
	leading    bool
	cur        *seg
	off        uint32 // block at which the next batch goes
	prevSum    uint32
	nextPos    position
	sequence   uint64
	written    uint64 // batches
	broken     error  // of a write: nothing is written behind it
	rotating   bool
	supply     sync.Cond // there may be room, or there never will
	zeroing    zeroWindow

	scratch []byte
	bufs    [][]byte

	turnMu      sync.Mutex // held while a batch is applied
	turn        sync.Cond
	appliedTurn uint64
	point       logPoint

	// applied is the last position applied, synced the last one on stable storage.
	applied, synced atomic.Uint64
	syncMu          sync.Mutex
	syncDone        sync.Cond
	syncing         bool
	syncErr         error

	bytes, syncs atomic.Int64
}

func newHotLog(segs *segments) *hotLog {
	l := &hotLog{segs: segs, nextPos: 1, scratch: alignedBuffer(blockSize)}
	l.supply.L, l.turn.L, l.syncDone.L = &l.mu, &l.turnMu, &l.syncMu
	l.zeroing.done.L = &l.mu
	return l
}

// commit logs r and returns when it is applied. ErrNoSpace: nothing was logged.
func (l *hotLog) commit(r *request) error {
	if most := l.segs.blocks / 4 * 3; r.blocks() > most {
		err := fmt.Errorf("%w: %d blocks in one request, a segment takes %d", store.ErrInvalid, r.blocks(), most)
		l.apply(nil, r, 0, 0, err)
		return err
	}
	l.mu.Lock()
	for l.broken == nil && l.queued+r.blocks() > l.room(r.need, r.blocks()) {
		if l.rotating {
			l.supply.Wait() // the old segment is full, the next one not yet open
			continue
		}
		if full := l.segs.exhausted(); full != nil {
			l.mu.Unlock()
			l.apply(nil, r, 0, 0, full)
			return full
		}
		l.segs.starve()
		l.supply.Wait()
		l.segs.fed()
	}
	r.next, r.err = nil, nil
	if l.tail == nil {
		l.head = r
	} else {
		l.tail.next = r
	}
	l.tail = r
	l.queued += r.blocks()
	if l.leading {
		l.mu.Unlock()
		if lead := <-r.ready; !lead {
			return r.err
		}
		l.mu.Lock()
	}
	l.leading = true
	l.lead(r)
	return r.err
}

// room returns the blocks that queued requests may take: what is left of the
// open segment and of the spares, less what segments end and begin with. least
// spares the look at the supply where the open segment has enough.
func (l *hotLog) room(n need, least uint32) uint32 {
	floor := n.leaves(l.segs.blocks)
	left := l.segs.blocks - l.off
	if left >= l.queued+least+floor {
		return left - floor
	}
	spares := l.segs.usable()
	waste := l.segs.blocks / 8
	return max(left+uint32(spares)*(l.segs.blocks-waste), floor+waste) - floor - waste
}

// supplied wakes requests that wait for room.
func (l *hotLog) supplied() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.supply.Broadcast()
}

// lead writes one batch that has r at its front, and answers its requests. It
// is called with mu held and returns without.
func (l *hotLog) lead(r *request) {
	batch, err := l.begin()
	l.mu.Unlock()
	if err == nil {
		err = batch.write(l)
	}
	l.mu.Lock()
	turn := l.written
	l.written++
	if err != nil && batch.started && l.broken == nil {
		// What comes behind would be lost at the next start, or worse: named as
		// synced behind a gap.
		l.breakLocked(fmt.Errorf("%w: %v", store.ErrFailed, err))
	}
	if l.head != nil {
		l.head.ready <- true
	} else {
		l.leading = false
	}
	l.mu.Unlock()
	if err != nil && batch.started {
		// What was logged is unknown now; the store ends before anyone is answered.
		l.failed(err)
		err = fmt.Errorf("%w: %v", store.ErrFailed, err)
	}
	l.applyBatch(&batch, turn, err)
	for q := batch.first; q != nil; {
		next := q.next
		if q == batch.last {
			next = nil
		}
		q.err, q.next = err, nil
		if q != r {
			q.ready <- false
		}
		q = next
	}
}

// breakOff ends the log after a failure of the disk: nothing is written or
// synced any more, so that nothing is answered as durable behind a gap (N2).
func (l *hotLog) breakOff(err error) {
	err = fmt.Errorf("%w: %v", store.ErrFailed, err)
	l.mu.Lock()
	if l.broken == nil {
		l.breakLocked(err)
	}
	l.mu.Unlock()
	l.syncMu.Lock()
	if l.syncErr == nil {
		l.syncErr = err
	}
	l.syncMu.Unlock()
}

func (l *hotLog) breakLocked(err error) {
	l.broken = err
	l.supply.Broadcast()
}

func (l *hotLog) applyBatch(b *batch, turn uint64, err error) {
	l.turnMu.Lock()
	for l.appliedTurn != turn {
		l.turn.Wait()
	}
	block := b.off + b.headerBlocks
	for q := b.first; q != nil; q = q.next {
		l.apply(b.seg, q, b.off, block, err)
		block += q.pages
		if q == b.last {
			break
		}
	}
	if err == nil {
		l.point = logPoint{b.end - 1, b.seg.num, b.off + b.headerBlocks + b.pages, b.sum}
		l.applied.Store(uint64(b.end - 1))
	}
	l.appliedTurn++
	l.turn.Broadcast()
	l.turnMu.Unlock()
}

// waitApplied returns when every batch that was written is applied. Only the
// leader calls it, so none is being written.
func (l *hotLog) waitApplied() {
	l.turnMu.Lock()
	defer l.turnMu.Unlock()
	for l.appliedTurn != l.written {
		l.turn.Wait()
	}
}

// A batch is one write to the log: the requests from first to last.
type batch struct {
	first, last  *request
	seg          *seg
	off          uint32 // block of the header
	headerBlocks uint32
	length       uint32 // of the header, bytes
	pages        uint32
	count        uint32 // records
	start, end   position
	sum          uint32 // of the header
	started      bool   // something may have reached the disk
}

// begin takes requests from the queue and gives them place and positions.
func (l *hotLog) begin() (b batch, err error) {
	first := l.head
	if l.broken != nil || l.segs.blocks-l.off < first.blocks() {
		err := l.broken
		if err == nil {
			err = l.rotate()
		}
		if err != nil {
			// Only this request fails; the others may be smaller.
			l.head = first.next
			if l.head == nil {
				l.tail = nil
			}
			l.queued -= first.blocks()
			return batch{first: first, last: first}, err
		}
	}
	b = batch{first: first, seg: l.cur, off: l.off, length: batchFixedSize, start: l.nextPos, started: true}
	bufs, left := 0, l.segs.blocks-l.off
	for q := first; q != nil; q = q.next {
		length := b.length + q.header
		blocks := (length+blockSize-1)/blockSize + b.pages + q.pages
		over := b.pages+q.pages > batchPages || bufs+len(q.bufs) > batchBufs || length > batchRecords
		if q != first && over || blocks > left {
			break
		}
		b.length, b.pages, b.last = length, b.pages+q.pages, q
		bufs += len(q.bufs)
		b.count += uint32(len(q.recs))
		l.queued -= q.blocks()
	}
	l.head = b.last.next
	if l.head == nil {
		l.tail = nil
	}
	b.headerBlocks = (b.length + blockSize - 1) / blockSize
	b.end = b.start + position(b.count)
	l.nextPos = b.end
	l.off += b.headerBlocks + b.pages
	if half := l.segs.blocks / 2; b.off < half && l.off >= half {
		l.segs.setWant(spareOfCollector + 1)
	}
	l.zeroing.wait(b.off, l.off)
	return b, nil
}

// write puts the batch on disk. Only the leader calls it.
func (b *batch) write(l *hotLog) error {
	n := int(b.headerBlocks) * blockSize
	if len(l.scratch) < n {
		l.scratch = alignedBuffer(n)
	}
	p, at, pos := l.scratch[:n], batchFixedSize, b.start
	l.bufs = append(l.bufs[:0], p)
	for q := b.first; ; q = q.next {
		for i := range q.recs {
			rec := &q.recs[i]
			if rec.pos == 0 {
				rec.pos = pos
			}
			pos++
			at += rec.encode(p[at:])
		}
		l.bufs = append(l.bufs, q.bufs...)
		if q == b.last {
			break
		}
	}
	h := batchHeader{nonce: b.seg.nonce, block: b.off, length: b.length, pages: b.pages, prev: l.prevSum,
		firstPos: b.start, synced: position(l.synced.Load()), count: b.count}
	b.sum = h.encode(p)
	l.prevSum = b.sum
	err := b.seg.f.writeAt(l.bufs, int64(b.off)*blockSize)
	l.bytes.Add(int64(b.headerBlocks+b.pages) * blockSize)
	b.seg.used.Store(b.off + b.headerBlocks + b.pages)
	clear(l.bufs)
	return err
}

// rotate seals the open segment, durably, and opens the next one with a
// snapshot of everything that is not in the index: so the newest hot segment
// suffices for that, and older ones may be freed. Called by the leader with mu
// held, which it gives up meanwhile.
func (l *hotLog) rotate() error {
	for l.zeroing.active {
		l.zeroing.done.Wait()
	}
	l.segs.setWant(spareOfCollector + 1)
	l.rotating = true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.rotating = false
		l.supply.Broadcast()
	}()
	l.waitApplied()
	if l.cur != nil {
		if err := l.cur.f.datasync(); err != nil {
			l.failed(err)
			return fmt.Errorf("%w: %v", store.ErrFailed, err)
		}
		l.syncedTo(l.applied.Load())
	}
	g, err := l.segs.take(hot, l.sequence+1, l.nextPos)
	if err != nil {
		return err
	}
	l.segs.setWant(spareOfCollector)
	return l.openSegment(g)
}

// openSegment makes g the open segment. Nobody else writes.
func (l *hotLog) openSegment(g *seg) error {
	recs := l.snapshot()
	off, sum, err := writeSnapshot(g, recs, l.nextPos, position(l.synced.Load()))
	if err != nil {
		l.failed(err)
		return fmt.Errorf("%w: %v", store.ErrFailed, err)
	}
	if l.cur != nil {
		l.cur.sealed.Store(true)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cur, l.off, l.prevSum = g, off, sum
	l.sequence = g.sequence
	l.zeroing.reset(off, g.warm)
	return nil
}

// writeSnapshot writes recs, and the record that ends them, behind the header
// of g. They take no positions of their own.
func writeSnapshot(g *seg, recs []record, next, synced position) (off, sum uint32, err error) {
	recs = append(recs, record{kind: recSnapshotEnd, pos: next})
	off = 1
	for len(recs) > 0 {
		n := min(len(recs), batchRecords/recordSize)
		h := batchHeader{nonce: g.nonce, block: off, length: uint32(batchFixedSize + n*recordSize), prev: sum,
			firstPos: next, synced: synced, count: uint32(n)}
		p := alignedBuffer(int(h.headerBlocks()) * blockSize)
		for i := range recs[:n] {
			recs[i].encode(p[batchFixedSize+i*recordSize:])
		}
		sum = h.encode(p)
		if err := g.f.writeAt([][]byte{p}, int64(off)*blockSize); err != nil {
			return 0, 0, err
		}
		off += h.headerBlocks()
		g.used.Store(off)
		recs = recs[n:]
	}
	return off, sum, nil
}
