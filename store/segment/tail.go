package segment

import (
	"errors"
	"fmt"
	"slices"

	"torus/store"
)

// A logTail is the part of the hot log that the index does not cover.
type logTail struct {
	batches []tailBatch
	// end is where the log goes on: behind the last batch that counts.
	end logPoint
	seg *seg // nil in a new store
}

type tailBatch struct {
	seg   *seg
	h     batchHeader
	recs  []record
	chain uint32
}

func (b *tailBatch) last() position { return b.h.firstPos + position(b.h.count) - 1 }

// readTail reads the hot log from point, in g, to its end, through all
// segments. What is damaged and was synced is ErrCorrupt; a batch that is not
// whole and was not synced is a torn tail and ends the log.
func (st *Store) readTail(f *scanned, g *seg, point logPoint) (*logTail, error) {
	t := &logTail{end: point, seg: g}
	synced := point.applied // the index is behind what is synced
	w := newWalk(g, st.segments.blocks, point.block, point.chain)
	for {
		b, err := w.next()
		if err == nil {
			if b.firstPos != t.end.applied+1 {
				return nil, fmt.Errorf("%w: segment %v block %d: position %d follows %d", store.ErrCorrupt, g.num, b.block, b.firstPos, t.end.applied)
			}
			synced = max(synced, b.synced)
			t.batches = append(t.batches, tailBatch{g, b.batchHeader, slices.Clone(b.recs), w.chain})
			t.end = logPoint{b.firstPos + position(b.count) - 1, g.num, w.block, w.chain}
			g.used.Store(w.block)
			continue
		}
		next, nerr := st.nextHot(f, g)
		if nerr != nil {
			return nil, nerr
		}
		if next == nil {
			if !errors.Is(err, errBlank) && !errors.Is(err, store.ErrCorrupt) {
				return nil, err
			}
			break
		}
		// Rotating synced g: the log goes on in next, or g lost something.
		if !errors.Is(err, errBlank) || next.firstPos != t.end.applied+1 {
			return nil, fmt.Errorf("%w: segment %v ends at position %d, the next one begins at %d (%v)",
				store.ErrCorrupt, g.num, t.end.applied, next.firstPos, err)
		}
		if g, w, err = st.enterHot(f, next); err != nil {
			return nil, err
		}
		synced = max(synced, t.end.applied)
		t.seg = g
		t.end.segment, t.end.block, t.end.chain = g.num, w.block, w.chain
	}
	behind, err := w.syncedBehind(w.block)
	if err != nil {
		return nil, err
	}
	if err := t.cut(max(synced, behind)); err != nil {
		return nil, err
	}
	if end, n, err := st.beyond(f); err != nil {
		return nil, err
	} else if end > t.end.applied {
		return nil, fmt.Errorf("%w: segment %v has lost its header: position %d was synced, the log ends at %d",
			store.ErrCorrupt, n, end, t.end.applied)
	}
	return t, nil
}

// cut ends the tail before the first batch that is not whole. Nothing up to
// synced may be missing.
func (t *logTail) cut(synced position) error {
	for i := range t.batches {
		b := &t.batches[i]
		if b.last() <= synced {
			continue // its pages are checked when they are read
		}
		w := newWalk(b.seg, b.seg.used.Load(), 0, 0)
		whole, err := w.intact(&walked{b.h, b.recs})
		if err != nil {
			return err
		}
		if !whole {
			t.batches = t.batches[:i]
			t.end = logPoint{b.h.firstPos - 1, b.seg.num, b.h.block, b.h.prev}
			t.seg = b.seg
			b.seg.used.Store(b.h.block)
			break
		}
	}
	if t.end.applied < synced {
		return fmt.Errorf("%w: segment %v ends at block %d with position %d, but position %d was synced: the log has lost writes",
			store.ErrCorrupt, t.end.segment, t.end.block, t.end.applied, synced)
	}
	return nil
}

// nextHot returns the hot segment behind g, if its opening was completed.
func (st *Store) nextHot(f *scanned, g *seg) (*seg, error) {
	for _, h := range f.hot {
		if h.sequence != g.sequence+1 {
			continue
		}
		_, err := st.readSnapshot(h, nil)
		if errors.Is(err, errBlank) {
			return nil, nil // the crash came while it was opened
		}
		return h, err
	}
	if n := len(f.hot); n > 0 && f.hot[n-1].sequence > g.sequence {
		return nil, fmt.Errorf("%w: segment %v of the log is followed by %v, some between are missing",
			store.ErrCorrupt, g.num, f.hot[n-1].num)
	}
	return nil, nil
}

// beyond returns the highest position that a file without a header names as
// synced, among those that are in no use: more than the log has, and it was a
// segment of the log that lost its header.
func (st *Store) beyond(f *scanned) (position, segNum, error) {
	var highest position
	var num segNum
	for _, g := range f.spares {
		w := newWalk(g, st.segments.blocks, 1, 0)
		p, err := w.read(1, 1)
		if err != nil {
			continue // not a whole file: it was never in use
		}
		headless := st.segments.newSeg(g.num)
		headless.f, headless.nonce = g.f, le64(p[8:])
		for w.g = headless; err == nil; {
			var b walked
			if b, err = w.next(); err == nil && b.synced > highest {
				highest, num = b.synced, g.num
			}
		}
		if !errors.Is(err, errBlank) && !errors.Is(err, store.ErrCorrupt) {
			return 0, 0, err
		}
	}
	return highest, num, nil
}

// enterHot takes the next hot segment into use, and returns a walk that stands
// behind its snapshot.
func (st *Store) enterHot(f *scanned, g *seg) (*seg, *walk, error) {
	if _, err := st.use(f, g.num); err != nil {
		return nil, nil, err
	}
	w, err := st.readSnapshot(g, nil)
	return g, w, err
}

// readSnapshot reads the records that g begins with. errBlank: its opening was
// not completed, and so nothing follows it.
func (st *Store) readSnapshot(g *seg, each func(*record)) (*walk, error) {
	w := newWalk(g, st.segments.blocks, 1, 0)
	for {
		b, err := w.next()
		if errors.Is(err, errBlank) || errors.Is(err, store.ErrCorrupt) {
			return nil, st.tornSnapshot(w, err)
		} else if err != nil {
			return nil, err
		}
		for i := range b.recs {
			if b.recs[i].kind == recSnapshotEnd {
				g.used.Store(w.block)
				return w, nil
			}
			if each != nil {
				each(&b.recs[i])
			}
		}
	}
}

// tornSnapshot tells a snapshot that was never completed from a damaged one:
// behind the former is nothing that was synced.
func (st *Store) tornSnapshot(w *walk, cause error) error {
	behind, err := w.syncedBehind(w.block + 1)
	if err != nil {
		return err
	}
	if behind >= w.g.firstPos {
		return fmt.Errorf("%w: segment %v block %d, in the snapshot that it begins with: %v", store.ErrCorrupt, w.g.num, w.block, cause)
	}
	return errBlank
}

// resume replays the tail, makes it durable, and opens the log behind it.
func (st *Store) resume(f *scanned, t *logTail) error {
	st.segments.start(st.log.supplied)
	if t.seg == nil {
		return st.found()
	}
	l := st.log
	l.cur, l.off, l.prevSum, l.sequence = t.seg, t.end.block, t.end.chain, t.seg.sequence
	l.nextPos = t.end.applied + 1
	t.seg.used.Store(t.end.block)
	t.seg.sealed.Store(false)
	l.zeroing.reset(l.off, false)
	if err := t.sync(); err != nil {
		return err
	}
	l.synced.Store(uint64(t.end.applied))
	for i := range t.batches {
		b := &t.batches[i]
		if err := st.replay(b); err != nil {
			return err
		}
		l.point = logPoint{b.last(), b.seg.num, b.h.block + b.h.blocks(), b.chain}
		l.applied.Store(uint64(b.last()))
	}
	l.point = t.end
	l.applied.Store(uint64(t.end.applied))
	return errors.Join(st.beginSession(), st.sweepSoon())
}

// sync makes durable what the process that wrote it may not have synced (N5).
func (t *logTail) sync() error {
	done := map[*seg]bool{}
	for _, b := range t.batches {
		done[b.seg] = true
	}
	done[t.seg] = true
	for g := range done {
		if err := g.f.datasync(); err != nil {
			return err
		}
	}
	return nil
}

// found begins the log of a new store.
func (st *Store) found() error {
	g, err := st.segments.take(hot, 1, 1)
	if err != nil {
		return err
	}
	if err := st.log.openSegment(g); err != nil {
		return err
	}
	st.log.point = logPoint{0, g.num, st.log.off, st.log.prevSum}
	if err := st.beginSession(); err != nil {
		return err
	}
	if err := st.flush(); err != nil {
		return err
	}
	return st.state.founded()
}

// beginSession logs a random number, so that the checksums that follow differ
// from those of batches that an earlier process wrote behind a torn one. Where
// the open segment has no block left none is needed: the next segment has a
// nonce of its own.
func (st *Store) beginSession() error {
	r := newRequest()
	r.need = forSpace
	r.add(record{kind: recSession, layer: store.LayerID(random64())})
	if err := st.commitDurable(r); !errors.Is(err, store.ErrNoSpace) {
		return err
	}
	return nil
}

// replay enters one batch of the tail.
func (st *Store) replay(b *tailBatch) error {
	block := b.h.block + b.h.headerBlocks()
	for i := range b.recs {
		r := &b.recs[i]
		switch r.kind {
		case recData, recHole, recAbsent:
			if err := st.replayPages(b.seg, r, b.h.block, block); err != nil {
				return err
			}
			if r.kind == recData {
				block += r.count
			}
		case recWide:
			st.replayWide(r)
		default:
			st.enterFact(r)
		}
	}
	if st.index.dirtyCount.Load() < flushDirty {
		return nil
	}
	return st.flush()
}

func (st *Store) replayWide(r *record) {
	l := st.tables.entry(r.layer)
	st.applyWide(l, r)
	if r.page == 0 && r.count == store.AllChunks.End && store.Kind(r.flags) == store.Absent && store.Version(r.extra) == anyVersion {
		l.mu.Lock()
		l.known, l.parent = false, 0
		l.mu.Unlock()
	}
}

// replayPages enters the pages of one record where nothing later is known.
func (st *Store) replayPages(g *seg, r *record, header, block uint32) error {
	l := st.tables.entryIfThere(r.layer)
	if l == nil {
		return nil // dropped, and forgotten: dead
	}
	g.note(r.layer, r.pos)
	for k := uint32(0); k < r.count; {
		page := int64(r.page) + int64(k)
		n := min(bucketPages-uint32(page%bucketPages), r.count-k)
		c := l.makeChunk(uint32(page / store.PagesPerChunk))
		raise(&c.maxVersion, uint64(r.version))
		b, err := st.index.hold(c, bucketKey{l.id, uint64(page / bucketPages)}, true)
		if err != nil {
			return err
		}
		st.replayBucket(g, c, b, r, k, n, header, block)
		k += n
	}
	return nil
}

func (st *Store) replayBucket(g *seg, c *chunk, b *bucket, r *record, k, n, header, block uint32) {
	st.index.mu.Lock()
	defer st.index.mu.Unlock()
	s := st.index.shard(b.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	b.pins--
	w := c.wide.Load()
	for i := range n {
		old := &b.pages[(uint32(r.page)+k+i)%bucketPages]
		d := desc{loc: newLocation(g.num, header), pos: r.pos, version: r.version, kind: kindOf(r.kind)}
		if d.kind == store.Data {
			d.loc, d.crc = newLocation(g.num, block+k+i), r.crcs[k+i]
		}
		if d.pos > old.pos && !w.kills(&d) {
			st.index.touchLocked(b)
			st.replace(c.layer, old, d)
		}
	}
}
