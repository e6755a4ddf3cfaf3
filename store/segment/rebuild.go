package segment

import (
	"encoding/binary"
	"errors"
	"fmt"

	"torus/store"
)

func be32(p []byte) uint32 { return binary.BigEndian.Uint32(p) }
func be64(p []byte) uint64 { return binary.BigEndian.Uint64(p) }
func le64(p []byte) uint64 { return binary.LittleEndian.Uint64(p) }

// fromSegments makes tables and index from the segments alone: the newest hot
// segment with a whole snapshot says what the tables were and which segments
// are in use, the log behind it what came since, and all of them what the pages
// are. It returns with the tail applied.
func (st *Store) fromSegments(f *scanned) (*logTail, error) {
	st.forgetAll(f)
	if err := st.freshIndex(); err != nil {
		return nil, err
	}
	base, w, used, err := st.findBase(f)
	if err != nil {
		return nil, err
	}
	if base == nil {
		return &logTail{}, nil
	}
	if _, err := st.use(f, base.num); err != nil {
		return nil, err
	}
	t, err := st.readTail(f, base, logPoint{base.firstPos - 1, base.num, w.block, w.chain})
	if err != nil {
		return nil, err
	}
	if err := st.enterFacts(t, used); err != nil {
		return nil, err
	}
	for n := range used {
		if _, err := st.use(f, n); err != nil {
			return nil, err
		}
	}
	if err := t.sync(); err != nil {
		return nil, err
	}
	st.log.synced.Store(uint64(t.end.applied))
	if err := st.indexAll(t.seg, used); err != nil {
		return nil, err
	}
	// What the tail says is in the index now.
	t.batches = nil
	return t, nil
}

// forgetAll empties what an attempt to load the index has entered.
func (st *Store) forgetAll(f *scanned) {
	st.tables = newTables()
	for _, g := range f.segs {
		g.uncount()
		g.used.Store(1)
	}
	st.segments.clear()
	st.persisted, st.tableSums, st.freedSegments = meta{}, nil, nil
	st.sweeps = sweepQueue{}
}

func (st *Store) freshIndex() error {
	if st.index != nil && st.index.db != nil {
		if err := st.index.db.close(); err != nil {
			st.logger.Warn("closing the damaged index", "error", err)
		}
	}
	if err := st.setIndexAside(); err != nil {
		return err
	}
	return st.openIndex()
}

// findBase returns the newest hot segment with a whole snapshot, loads that,
// and tells the segments in use with the blocks that each must have. Nil: the
// store never got as far as its first snapshot.
func (st *Store) findBase(f *scanned) (*seg, *walk, map[segNum]uint32, error) {
	for i := len(f.hot) - 1; i >= 0; i-- {
		g := f.hot[i]
		used := map[segNum]uint32{g.num: 0}
		st.tables = newTables()
		st.sweeps = sweepQueue{}
		loader := tableLoader{st: st}
		w, err := st.readSnapshot(g, func(r *record) {
			if r.kind == recSegment {
				used[segNum(r.layer)] = uint32(r.page)
			} else {
				loader.load(r)
			}
		})
		if err == nil {
			return g, w, used, nil
		}
		if !errors.Is(err, errBlank) {
			return nil, nil, nil, err
		}
		// Only the newest can have been interrupted; before it, the first.
		if g.sequence > 1 && i < len(f.hot)-1 {
			return nil, nil, nil, fmt.Errorf("%w: segment %v has no snapshot", store.ErrCorrupt, g.num)
		}
	}
	return nil, nil, nil, st.neverUsed(f)
}

// neverUsed refuses what has no log but signs of one.
func (st *Store) neverUsed(f *scanned) error {
	if st.state.Founded {
		return fmt.Errorf("%w: the store was in use, and no segment of its log is there", store.ErrCorrupt)
	}
	for n, err := range f.bad {
		return fmt.Errorf("%w: no segment of the log can be read; segment %v: %v", store.ErrCorrupt, n, err)
	}
	for n, g := range f.segs {
		if g.stream == cold || g.sequence > 1 {
			return fmt.Errorf("%w: the log is gone, but there is segment %v", store.ErrCorrupt, n)
		}
	}
	end, n, err := st.beyond(f)
	if err == nil && end > 0 {
		err = fmt.Errorf("%w: the log is gone, but segment %v names position %d as synced", store.ErrCorrupt, n, end)
	}
	return err
}

// enterFacts enters the tables' records of the tail, and which segments came
// and went.
func (st *Store) enterFacts(t *logTail, used map[segNum]uint32) error {
	for i := range t.batches {
		b := &t.batches[i]
		if _, ok := used[b.seg.num]; !ok {
			used[b.seg.num] = 0
		}
		for j := range b.recs {
			switch r := &b.recs[j]; r.kind {
			case recSegment:
				used[segNum(r.layer)] = max(used[segNum(r.layer)], uint32(r.page))
			case recFreed:
				st.segments.reserve(segNum(r.layer))
				delete(used, segNum(r.layer))
			case recWide:
				st.replayWide(r)
			default:
				st.enterFact(r)
			}
		}
	}
	used[t.seg.num] = 0
	return nil
}

// indexAll enters every page record of every segment in use; of what they say
// of a page, the highest position holds. open is the log's last segment, which
// ends where the tail was found to end.
func (st *Store) indexAll(open *seg, used map[segNum]uint32) error {
	for _, g := range st.segments.all() {
		end := uint32(0)
		if g == open {
			end = g.used.Load()
		}
		if g.stream == cold {
			// A kill may have come between a copy and its sync.
			if err := g.f.datasync(); err != nil {
				return err
			}
		}
		if err := st.indexSegment(g, used[g.num], end); err != nil {
			return err
		}
	}
	return nil
}

func (st *Store) indexSegment(g *seg, least, end uint32) error {
	w := newWalk(g, st.segments.blocks, 1, 0)
	for end == 0 || w.block < end {
		b, err := w.next()
		if errors.Is(err, errBlank) || errors.Is(err, store.ErrCorrupt) {
			if err := st.endOfSegment(w, least, end, err); err != nil {
				return err
			}
			break
		} else if err != nil {
			return err
		}
		if ok, err := st.counts(w, &b, least, end); err != nil {
			return err
		} else if !ok {
			w.block = b.block
			break
		}
		block := b.firstPage()
		for i := range b.recs {
			r := &b.recs[i]
			switch r.kind {
			case recData, recHole, recAbsent:
				if err := st.replayPages(g, r, b.block, block); err != nil {
					return err
				}
			}
			if r.kind == recData {
				block += r.count
			}
		}
		if st.index.dirtyCount.Load() >= flushDirty {
			if err := st.flushLocked(); err != nil { // with a log point in segment 0: not complete
				return err
			}
		}
	}
	g.used.Store(w.block)
	return nil
}

// counts reports whether a batch of a cold segment counts, of which nobody says
// that it was synced: the last one may be torn, while its pages are still where
// they were copied from.
func (st *Store) counts(w *walk, b *walked, least, end uint32) (bool, error) {
	if w.g.stream == hot || end != 0 || w.block <= least {
		return true, nil
	}
	return w.intact(b)
}

// endOfSegment says whether a segment may end where the walk stopped: not if
// it is known to be longer, or something stands behind.
func (st *Store) endOfSegment(w *walk, least, end uint32, cause error) error {
	if end == 0 && w.block >= least {
		if w.g.stream == cold {
			return nil
		}
		behind, err := w.syncedBehind(w.block)
		if err != nil {
			return err
		}
		if behind < w.g.firstPos {
			return nil
		}
	}
	return fmt.Errorf("%w: segment %v block %d, below its end: the index is lost and cannot be rebuilt without it (%v)",
		store.ErrCorrupt, w.g.num, w.block, cause)
}

// rebuildServing rebuilds the index of a store that is in use, between two
// requests. Tables and log are as they are.
func (st *Store) rebuildServing() (err error) {
	st.gate.Lock()
	defer st.gate.Unlock()
	st.flushMu.Lock()
	defer st.flushMu.Unlock()
	defer func() {
		if err != nil {
			st.fail(err) // while nobody asks the index, of which there is none now
		}
	}()
	if err := st.log.sync(); err != nil {
		return err
	}
	st.clearIndexed()
	if err := st.freshIndex(); err != nil {
		return err
	}
	point := st.log.point
	st.log.point = logPoint{}
	used := map[segNum]uint32{}
	for _, g := range st.segments.all() {
		used[g.num] = g.used.Load()
	}
	for _, g := range st.segments.all() {
		if err := st.indexSegment(g, used[g.num], used[g.num]); err != nil {
			return err
		}
	}
	st.log.point = point
	why := st.doubt.Swap(nil)
	if err := st.flushLocked(); err != nil {
		return err
	}
	if err := st.removeAside(); err != nil {
		return err
	}
	st.logger.Info("the index was rebuilt", "why", *why)
	return nil
}

// uncount forgets what the index counted in the segment.
func (g *seg) uncount() {
	g.live.Store(0)
	g.tombs.Store(0)
	g.flushed, g.sum = segCounts{}, 0
}

// clearIndexed takes out of memory what the index says, counts included.
func (st *Store) clearIndexed() {
	st.persisted, st.tableSums, st.freedSegments = meta{}, nil, nil
	for _, g := range st.segments.all() {
		g.uncount()
	}
	for _, l := range st.tables.allLayers() {
		l.mu.Lock()
		l.chunks = map[uint32]*chunk{}
		l.mu.Unlock()
		l.live.Store(0)
		l.flushedLive, l.sum = 0, 0
	}
	st.collector.cold.reset()
	st.sweeps = sweepQueue{}
}
