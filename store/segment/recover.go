package segment

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"time"

	"torus/store"
)

// recover brings a store to where it was: from the index and the log's tail
// behind it, or, where the index is lost or in doubt, from the segments alone.
func (st *Store) recover() error {
	found, err := st.scan()
	if err != nil {
		return err
	}
	start := time.Now()
	tail, err := st.fromIndex(found)
	if errors.Is(err, errDoubt) {
		st.logger.Warn("the index is rebuilt from the segments", "why", err)
		tail, err = st.fromSegments(found)
	}
	if err != nil {
		return err
	}
	if err := st.takeSpares(found); err != nil {
		return err
	}
	if err := st.resume(found, tail); err != nil {
		return err
	}
	st.noteStrays()
	if err := st.removeAside(); err != nil {
		return err
	}
	st.logger.Debug("store recovered", "segments", len(st.segments.all()), "took", time.Since(start))
	return nil
}

// noteStrays notes what stands behind the end of cold segments: copies that were
// made when the store was killed, and that no index points to. A rebuild finds
// them all the same, so what kills them is kept for as long as they are there (I8).
// It reads one block of each such segment, and more only where something stands.
// The rest is given back: a cold segment is not written any more after a start.
func (st *Store) noteStrays() {
	p := alignedBuffer(blockSize)
	for _, g := range st.segments.all() {
		end := g.used.Load()
		if g.stream == hot || end >= st.segments.blocks {
			continue
		}
		err := g.f.readAt(p, int64(end)*blockSize, false)
		if h, ok := decodeBatchFixed(p, g.nonce, end, st.segments.blocks); err == nil && ok {
			w := newWalk(g, st.segments.blocks, end, h.prev)
			err, end = g.noteFrom(w), w.block
		}
		if err == nil || errors.Is(err, errBlank) {
			err = g.cutTail(end, st.segments.blocks)
		}
		if err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errBlank) || errors.Is(err, store.ErrCorrupt) {
			continue // a rebuild goes no further either
		}
		st.logger.Warn("what stands behind a segment's end is not known", "segment", g.num, "block", end, "error", err)
		for _, l := range st.tables.allLayers() {
			g.note(l.id, 0) // it may be anything
		}
	}
}

// noteFrom notes what w comes by, and returns what ended it.
func (g *seg) noteFrom(w *walk) error {
	for {
		b, err := w.next()
		if err != nil {
			return err
		}
		for i := range b.recs {
			g.note(b.recs[i].layer, b.recs[i].pos)
		}
	}
}

// cutTail gives back the blocks from end on, where nothing stands.
func (g *seg) cutTail(end, blocks uint32) error {
	n, err := g.f.allocated()
	if err != nil || n/blockSize < int64(end)+punchRun || end >= blocks {
		return err
	}
	return g.f.punch(int64(end)*blockSize, int64(blocks-end)*blockSize)
}

// scanned is what the directory has.
type scanned struct {
	segs   map[segNum]*seg // with a valid header
	hot    []*seg          // by sequence
	spares []*seg          // blank, or not in use any more
	bad    map[segNum]error
	// missing are those that the index knows, without a file.
	missing map[segNum]*seg
}

func (st *Store) scan() (*scanned, error) {
	names, err := st.disk.list()
	if err != nil {
		return nil, err
	}
	f := &scanned{segs: map[segNum]*seg{}, bad: map[segNum]error{}, missing: map[segNum]*seg{}}
	p := alignedBuffer(blockSize)
	for _, name := range names {
		n, ok := parseSegmentName(name)
		if !ok {
			continue
		}
		g := st.segments.newSeg(n)
		st.segments.reserve(n)
		if g.f, err = st.disk.open(name); err != nil {
			return nil, err
		}
		if err := st.identify(f, g, p); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	sort.Slice(f.hot, func(a, b int) bool { return f.hot[a].sequence < f.hot[b].sequence })
	return f, nil
}

// identify reads the header of g. A header that is damaged is an error only if
// the segment is in use, which is known later.
func (st *Store) identify(f *scanned, g *seg, p []byte) error {
	err := g.f.readAt(p, 0, false)
	var h segmentHeader
	if err == nil {
		h, err = decodeSegmentHeader(p)
	}
	var format *FormatError
	switch {
	case errors.As(err, &format):
		format.File = g.name()
		return err
	case errors.Is(err, errBlank), errors.Is(err, io.ErrUnexpectedEOF), err == nil && h.number != g.num:
		// A spare; one with less than a block was being made.
		f.spares = append(f.spares, g)
		return nil
	case err != nil:
		f.bad[g.num] = err
		f.spares = append(f.spares, g)
		return nil
	case h.identity != st.state.Identity:
		return fmt.Errorf("%w: segment of store %v, this is store %v", store.ErrInvalid, h.identity, st.state.Identity)
	case h.blocks != st.segments.blocks:
		return fmt.Errorf("%w: segment of %d blocks, this store has %d", store.ErrCorrupt, h.blocks, st.segments.blocks)
	}
	g.stream, g.sequence, g.nonce, g.firstPos = h.stream, h.sequence, h.nonce, h.firstPos
	g.used.Store(1)
	f.segs[g.num] = g
	if g.stream == hot {
		f.hot = append(f.hot, g)
	}
	return nil
}

// use takes a segment into the table; it must be there.
func (st *Store) use(f *scanned, n segNum) (*seg, error) {
	if g := st.segments.get(n); g != nil {
		return g, nil
	}
	g := f.segs[n]
	if g == nil {
		why := "the file is missing"
		if err := f.bad[n]; err != nil {
			why = err.Error()
		}
		return nil, fmt.Errorf("%w: segment %v is in use: %s", store.ErrCorrupt, n, why)
	}
	g.sealed.Store(true)
	st.segments.enter(g)
	return g, nil
}

func (st *Store) openIndex() error {
	db, err := openIndexDB(filepath.Join(st.options.Dir, indexDir), st.options.memtable, badgerLog{st.logger})
	if err != nil {
		return err
	}
	st.index = newIndex(db, st.options.CacheBytes)
	return nil
}

// fromIndex loads what Badger has, and returns the log behind it.
func (st *Store) fromIndex(f *scanned) (*logTail, error) {
	if err := st.openIndex(); err != nil {
		return nil, err
	}
	m, ok, err := st.index.db.meta()
	if err != nil {
		return nil, err
	}
	if !ok && len(f.hot) == 0 {
		return &logTail{}, st.neverUsed(f)
	}
	if !ok || m.segment == 0 {
		return nil, fmt.Errorf("%w: it has no position in the log", errDoubt)
	}
	st.persisted = m
	if err := st.loadTables(m); err != nil {
		return nil, err
	}
	if err := st.loadSegments(f, m); err != nil {
		return nil, err
	}
	if err := st.loadChunks(m); err != nil {
		return nil, err
	}
	if f.segs[m.segment] == nil {
		return nil, fmt.Errorf("%w: its position is in segment %v, which is gone", errDoubt, m.segment)
	}
	g, err := st.use(f, m.segment)
	if err != nil {
		return nil, err
	}
	t, err := st.readTail(f, g, m.logPoint)
	if errors.Is(err, store.ErrCorrupt) {
		// An index that is older than it should be needs segments that were freed:
		// whether the log has lost something, it says itself.
		return nil, fmt.Errorf("%w: %v", errDoubt, err)
	} else if err != nil {
		return nil, err
	}
	return t, st.freedInTail(f, t)
}

// freedInTail takes out the segments that were freed since the index was
// written: their files may be gone already. Any other that is gone is a loss.
// A cold segment that was begun since is in use, though the index has nothing
// in it: the log names it, and a rebuild would look for it.
func (st *Store) freedInTail(f *scanned, t *logTail) error {
	for i := range t.batches {
		for _, r := range t.batches[i].recs {
			n := segNum(r.layer)
			switch r.kind {
			case recSegment:
				if f.segs[n] != nil {
					if _, err := st.use(f, n); err != nil {
						return err
					}
				}
			case recFreed:
				if err := st.freedBefore(f, n); err != nil {
					return err
				}
			}
		}
	}
	for n := range f.missing {
		_, err := st.use(f, n)
		return err
	}
	return nil
}

// freedBefore takes out a segment that the log says was freed. The index that
// has nothing in it was durable before that record was written.
func (st *Store) freedBefore(f *scanned, n segNum) error {
	st.segments.reserve(n)
	g := st.segments.get(n)
	if g != nil {
		st.segments.drop(n)
	} else if g = f.missing[n]; g != nil {
		delete(f.missing, n)
	} else {
		return nil
	}
	if g.flushed.live != 0 || g.flushed.tombs != 0 {
		return fmt.Errorf("%w: it has pages in segment %v, which was freed: it is older than it was", errDoubt, n)
	}
	st.freedSegments = append(st.freedSegments, g)
	return nil
}

func (st *Store) loadTables(m meta) error {
	var recs []record
	err := st.index.db.each(keyTables, m.tables, func(_, v []byte, sum uint64) error {
		st.tableSums = append(st.tableSums, &sum)
		for len(v) > 0 {
			r, n, err := decodeRecord(v)
			if err != nil {
				return fmt.Errorf("%w: %v", errDoubt, err)
			}
			recs, v = append(recs, r), v[n:]
		}
		return nil
	})
	if err != nil {
		return err
	}
	loader := tableLoader{st: st}
	for i := range recs {
		loader.load(&recs[i])
	}
	return nil
}

func (st *Store) loadSegments(f *scanned, m meta) error {
	err := st.index.db.each(keySegment, m.segs, func(k, v []byte, sum uint64) error {
		if len(k) != 4 {
			return fmt.Errorf("%w: malformed record of a segment", errDoubt)
		}
		n := segNum(be32(k))
		st.segments.reserve(n)
		if f.segs[n] == nil {
			f.missing[n] = st.segments.newSeg(n)
			f.missing[n].sum = sum
			return f.missing[n].decodeCounts(v)
		}
		g, err := st.use(f, n)
		if err != nil {
			return err
		}
		g.sum = sum
		return g.decodeCounts(v)
	})
	if err != nil {
		return err
	}
	return st.index.db.each(keyLayer, m.layers, func(k, v []byte, sum uint64) error {
		if len(k) != 8 || len(v) != 8 {
			return fmt.Errorf("%w: malformed record of a layer", errDoubt)
		}
		l := st.tables.entry(store.LayerID(be64(k)))
		l.sum, l.flushedLive = sum, int64(le64(v))
		l.live.Store(l.flushedLive)
		return nil
	})
}

func (st *Store) loadChunks(m meta) error {
	return st.index.db.each(keyChunk, m.chunks, func(k, v []byte, sum uint64) error {
		if len(k) != 12 || len(v) != bucketsPerChunk+8 {
			return fmt.Errorf("%w: malformed record of a chunk", errDoubt)
		}
		c := st.tables.entry(store.LayerID(be64(k))).makeChunk(be32(k[8:]))
		copy(c.gens[:], v)
		c.maxVersion.Store(le64(v[bucketsPerChunk:]))
		c.sum = sum
		if c.wide.Load() != nil {
			st.sweeps.add([]*chunk{c})
		}
		return nil
	})
}

// A tableLoader makes the tables from the records of a snapshot.
type tableLoader struct {
	st      *Store
	killers []killer // of the next recWide
}

func (t *tableLoader) load(r *record) {
	switch r.kind {
	case recKiller:
		t.killers = append(t.killers, killer{r.pos, store.Version(r.extra)})
	case recWide:
		w := &wide{kind: store.Kind(r.flags), version: r.version, pos: r.pos, killers: t.killers}
		t.killers = nil
		l := t.st.tables.entry(r.layer)
		first := uint32(r.page)
		t.st.sweeps.add(l.state(first, first+r.count, w))
	default:
		t.st.enterFact(r)
	}
}

// enterFact enters a record of the tables that may stand in the log too.
func (st *Store) enterFact(r *record) {
	switch r.kind {
	case recCreate:
		l := st.tables.entry(r.layer)
		l.mu.Lock()
		l.known, l.parent, l.created = true, store.LayerID(r.page), r.pos
		l.mu.Unlock()
		l.stable.Store(0)
		l.settled.Store(0)
	case recStable:
		l := st.tables.entry(r.layer)
		raise(&l.stable, uint64(r.version))
		raise(&l.settled, r.page)
	case recFence:
		v := st.tables.volume(store.VolumeID(r.layer))
		v.epoch = max(v.epoch, store.Epoch(r.version))
		v.durable.Store(uint32(v.epoch))
		v.pos.Store(uint64(r.pos))
	case recForget:
		st.tables.mu.Lock()
		delete(st.tables.volumes, store.VolumeID(r.layer))
		st.tables.mu.Unlock()
	}
}

// takeSpares makes spares of the files that nothing is in.
func (st *Store) takeSpares(f *scanned) error {
	for _, g := range f.segs {
		if st.segments.get(g.num) == nil {
			f.spares = append(f.spares, g)
		}
	}
	for _, g := range f.spares {
		if err := st.segments.takeBack(g); err != nil {
			return err
		}
	}
	for _, g := range st.segments.all() {
		if err := g.measure(); err != nil {
			return err
		}
	}
	return nil
}

// setIndexAside puts Badger's directory out of the way, to be removed when the
// segments have sufficed for another index. One that is there already stays:
// what is in the way then is an unfinished rebuild.
func (st *Store) setIndexAside() error {
	dir, aside := filepath.Join(st.options.Dir, indexDir), filepath.Join(st.options.Dir, indexAside)
	var err error
	if _, serr := os.Stat(aside); serr == nil {
		err = os.RemoveAll(dir)
	} else if err = os.Rename(dir, aside); errors.Is(err, os.ErrNotExist) {
		err = nil // it is lost
	}
	return errors.Join(err, syncDir(st.options.Dir))
}

// removeAside removes the index that was put aside.
func (st *Store) removeAside() error {
	aside := filepath.Join(st.options.Dir, indexAside)
	if _, err := os.Stat(aside); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(os.RemoveAll(aside), syncDir(st.options.Dir))
}

// badgerLog passes on what Badger has to say, a level quieter.
type badgerLog struct{ l *slog.Logger }

func (b badgerLog) Errorf(f string, a ...any)   { b.l.Error("badger: " + fmt.Sprintf(f, a...)) }
func (b badgerLog) Warningf(f string, a ...any) { b.l.Warn("badger: " + fmt.Sprintf(f, a...)) }
func (b badgerLog) Infof(f string, a ...any)    { b.l.Debug("badger: " + fmt.Sprintf(f, a...)) }
func (b badgerLog) Debugf(f string, a ...any)   {}
