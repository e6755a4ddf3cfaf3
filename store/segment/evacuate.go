package segment

import (
	"errors"
	"fmt"

	"torus/store"
)

// evacuate makes g take less: where most of it lives, its long dead runs are
// given back to the file system, which copies nothing; else what lives is
// copied to the cold log. Headers stay in place for as long as the segment
// does, so that a rebuild can walk it.
func (st *Store) evacuate(g *seg) error {
	if taken := g.taken(); 2*uint32(g.live.Load()) > taken {
		if err := st.survey(g, true); err != nil {
			return err
		}
		if taken-g.taken() >= minGarbage {
			return nil
		}
	}
	if err := st.survey(g, false); err != nil {
		return err
	}
	return st.collector.cold.write(st)
}

// A survey goes through a segment and finds what the index still places there.
type survey struct {
	st    *Store
	g     *seg
	w     *walk
	punch bool
	dead  deadRun
	runs  []deadRun // to be given back
}

// A deadRun is pages in a row that nothing points to.
type deadRun struct{ from, n uint32 }

func (st *Store) survey(g *seg, punch bool) error {
	s := survey{st: st, g: g, w: newWalk(g, g.used.Load(), 1, 0), punch: punch}
	for s.w.block < g.used.Load() {
		select {
		case <-st.stop:
			return store.ErrClosed
		default:
		}
		b, err := s.w.next()
		if err != nil {
			g.damaged.Store(true)
			return fmt.Errorf("collecting segment %v, block %d: %w", g.num, s.w.block, err)
		}
		if err := s.batch(&b); err != nil {
			return err
		}
		st.pace()
		if err := st.tend(); err != nil {
			return err
		}
	}
	return s.giveBack()
}

func (s *survey) batch(b *walked) error {
	block := b.firstPage()
	for i := range b.recs {
		rec := &b.recs[i]
		switch rec.kind {
		case recData:
			if err := s.record(rec, block); err != nil {
				return err
			}
			block += rec.count
		case recHole, recAbsent:
			if err := s.record(rec, b.block); err != nil {
				return err
			}
		}
	}
	s.endRun()
	return nil
}

// record goes through the pages of rec bucket by bucket. block is that of its
// first page, or of the header for a hole.
func (s *survey) record(rec *record, block uint32) error {
	for k := uint32(0); k < rec.count; {
		page := int64(rec.page) + int64(k)
		n := min(bucketPages-uint32(page%bucketPages), rec.count-k)
		at := block
		if rec.kind == recData {
			at += k
		}
		live, c, err := s.live(rec, page, n, at)
		if err != nil {
			return err
		}
		switch {
		case !s.punch:
			err = s.copy(c, rec, page, n, at, live)
		case rec.kind == recData:
			s.extendRun(live, n, at)
		}
		if err == nil {
			err = s.flushMoved()
		}
		if err != nil {
			return err
		}
		k += n
	}
	return nil
}

// flushMoved keeps what the collector changes within what one flush can take:
// nobody else flushes meanwhile, unless there are writers.
func (s *survey) flushMoved() error {
	if s.st.index.dirtyCount.Load() < flushDirty {
		return nil
	}
	if err := s.st.flush(); err != nil {
		return err
	}
	if why := s.st.doubt.Load(); why != nil {
		return fmt.Errorf("%w: collecting ends: %s", errDoubt, *why)
	}
	return nil
}

// live returns which of the n pages from page on the index places at block on.
func (s *survey) live(rec *record, page int64, n, block uint32) (uint16, *chunk, error) {
	l := s.st.tables.entryIfThere(rec.layer)
	if l == nil {
		return 0, nil, nil
	}
	c, _ := l.chunk(uint32(page / store.PagesPerChunk))
	if c == nil {
		return 0, nil, nil
	}
	b, err := s.st.index.hold(c, bucketKey{rec.layer, uint64(page / bucketPages)}, false)
	if err != nil || b == nil {
		return 0, nil, s.st.doubted(err)
	}
	sh := s.st.index.shard(b.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	b.pins--
	var mask uint16
	for i := range n {
		at := newLocation(s.g.num, block)
		if rec.kind == recData {
			at += location(i)
		}
		if d := &b.pages[uint32(page%bucketPages)+i]; d.pos == rec.pos && d.loc == at {
			mask |= 1 << i
		}
	}
	return mask, c, nil
}

// extendRun extends or ends the run of dead pages.
func (s *survey) extendRun(live uint16, n, block uint32) {
	for i := range n {
		if live&(1<<i) == 0 && s.dead.n > 0 && s.dead.from+s.dead.n == block+i {
			s.dead.n++
			continue
		}
		s.endRun()
		if live&(1<<i) == 0 {
			s.dead = deadRun{block + i, 1}
		}
	}
}

func (s *survey) endRun() {
	if s.dead.n >= punchRun {
		s.runs = append(s.runs, s.dead)
	}
	s.dead = deadRun{}
}

// giveBack gives the runs back to the file system, once the index that does not
// point to them is durable: all of them were dead before that flush, since a
// page that dies during it may be what a power cut comes back to. A reader that
// found a page there before looks again when it doesn't read what it expected.
func (s *survey) giveBack() error {
	if len(s.runs) == 0 {
		return nil
	}
	if err := s.st.flush(); err != nil || s.st.doubt.Load() != nil {
		return err
	}
	for _, run := range s.runs {
		if err := s.g.f.punch(int64(run.from)*blockSize, int64(run.n)*blockSize); err != nil {
			return err
		}
	}
	return s.g.measure()
}

// measure notes what the file takes on disk.
func (g *seg) measure() error {
	n, err := g.f.allocated()
	if err != nil {
		return err
	}
	g.punched.Store(uint32(max(int64(g.used.Load())-n/blockSize, 0)))
	return nil
}

// copy takes the live pages of a record to the cold log. Holes and absences
// that nothing needs any more end here.
func (s *survey) copy(c *chunk, rec *record, page int64, n, block uint32, live uint16) error {
	for i := range n {
		if live&(1<<i) == 0 {
			continue
		}
		m := move{chunk: c, page: page + int64(i), from: desc{loc: newLocation(s.g.num, block), pos: rec.pos,
			version: rec.version, kind: kindOf(rec.kind)}}
		if rec.kind != recData {
			if s.st.needless(c, rec, s.g) {
				s.st.moveTo(m, 0)
				continue
			}
		} else if err := s.load(&m, rec, block+i); err != nil {
			return err
		} else if m.chunk == nil {
			continue
		}
		if err := s.st.collector.cold.add(s.st, m); err != nil {
			return err
		}
	}
	return nil
}

// load reads the page of a move into the cold log's buffer. A page that is
// corrupt stays where it is, and its segment with it.
func (s *survey) load(m *move, rec *record, block uint32) error {
	p, err := s.w.read(block, 1)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return err
	}
	m.from.loc = newLocation(s.g.num, block)
	m.from.crc = rec.crcs[m.page-int64(rec.page)]
	if err != nil || checksum(p) != m.from.crc {
		s.st.stats.corrupt.Add(1)
		s.st.logger.Error("a page is corrupt and stays where it is", "layer", rec.layer, "offset", m.page*store.PageSize,
			"segment", s.g.num, "block", block)
		s.g.damaged.Store(true)
		m.chunk = nil
		return nil
	}
	s.st.collector.cold.stage(p)
	return nil
}

// needless reports whether the hole or absence that rec states may go: what it
// kills is in no other segment, nothing shows through, and a hole is settled
// with no lower layer to hide (I7, "Watermarks").
func (st *Store) needless(c *chunk, rec *record, g *seg) bool {
	if c.wide.Load() != nil || !st.segments.noOlder(rec.layer, rec.pos, g) {
		return false
	}
	if rec.kind == recAbsent {
		return true
	}
	c.layer.mu.RLock()
	defer c.layer.mu.RUnlock()
	return c.layer.parent == 0 && uint64(rec.version) <= c.layer.settled.Load()
}

// moveTo makes the index place a page at another location; 0: nowhere. It does
// so only if the page is still what the move found.
func (st *Store) moveTo(m move, to location) {
	b, err := st.index.hold(m.chunk, bucketKey{m.chunk.layer.id, uint64(m.page / bucketPages)}, false)
	if err != nil || b == nil {
		_ = st.doubted(err) // noted there; the page stays where it was
		return
	}
	st.index.mu.Lock()
	defer st.index.mu.Unlock()
	s := st.index.shard(b.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	b.pins--
	d := &b.pages[m.page%bucketPages]
	if d.loc != m.from.loc || d.pos != m.from.pos {
		return
	}
	st.index.touchLocked(b)
	next := *d
	next.loc = to
	if to == 0 {
		next = desc{}
	}
	st.replace(m.chunk.layer, d, next)
}
