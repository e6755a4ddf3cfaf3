package memstore

import (
	"slices"

	"torus/store"
)

// Pages and chunks are counted from the start of the layer.
const pagesPerChunk = store.PagesPerChunk

type page [store.PageSize]byte

// A cell is what one page is. data is set where kind is Data.
type cell struct {
	version store.Version
	kind    store.Kind
	data    *page
}

// A holeRun is a run of whole chunks that are holes of one version. It makes
// zeroing 1 PiB as cheap as zeroing a chunk.
type holeRun struct {
	first, end int64 // chunks
	version    store.Version
}

// pageSet is what the pages of one layer are. A chunk that has a table is
// described by the table alone, any other by the runs; where neither says
// anything the page is absent. Not safe for concurrent use.
type pageSet struct {
	tables map[int64]*[pagesPerChunk]cell
	runs   []holeRun // in order, disjoint
	live   int64     // cells of kind Data
	holes  int64     // cells of kind Hole, runs apart
}

func newPageSet() *pageSet {
	return &pageSet{tables: make(map[int64]*[pagesPerChunk]cell)}
}

// clone shares the data of the pages with s.
func (s *pageSet) clone() *pageSet {
	c := &pageSet{
		tables: make(map[int64]*[pagesPerChunk]cell, len(s.tables)),
		runs:   slices.Clone(s.runs),
		live:   s.live,
		holes:  s.holes,
	}
	for chunk, t := range s.tables {
		copied := *t
		c.tables[chunk] = &copied
	}
	return c
}

// get returns what the page is.
func (s *pageSet) get(i int64) cell {
	if t := s.tables[i/pagesPerChunk]; t != nil {
		return t[i%pagesPerChunk]
	}
	return s.ofRun(i / pagesPerChunk)
}

// ofRun returns what the pages of a chunk without a table are.
func (s *pageSet) ofRun(chunk int64) cell {
	for _, r := range s.runs {
		if r.first <= chunk && chunk < r.end {
			return cell{kind: store.Hole, version: r.version}
		}
	}
	return cell{}
}

// put makes one page c.
func (s *pageSet) put(i int64, c cell) {
	t := s.tables[i/pagesPerChunk]
	if t == nil {
		t = new([pagesPerChunk]cell)
		if under := s.ofRun(i / pagesPerChunk); under.kind != store.Absent {
			for j := range t {
				t[j] = under
			}
			s.holes += pagesPerChunk
		}
		s.tables[i/pagesPerChunk] = t
	}
	s.count(t[i%pagesPerChunk].kind, -1)
	s.count(c.kind, +1)
	t[i%pagesPerChunk] = c
}

func (s *pageSet) count(k store.Kind, by int64) {
	switch k {
	case store.Data:
		s.live += by
	case store.Hole:
		s.holes += by
	}
}

// fill makes the pages [first, end) c, which is a hole or absent.
func (s *pageSet) fill(first, end int64, c cell) {
	for first < end {
		chunk := first / pagesPerChunk
		if whole := (end - first) / pagesPerChunk; whole > 0 && first%pagesPerChunk == 0 {
			s.fillChunks(chunk, chunk+whole, c)
			first += whole * pagesPerChunk
			continue
		}
		stop := min(end, (chunk+1)*pagesPerChunk)
		if c.kind == store.Absent && s.tables[chunk] == nil && s.ofRun(chunk).kind == store.Absent {
			first = stop
		}
		for ; first < stop; first++ {
			s.put(first, c)
		}
	}
}

// fillChunks is fill for the chunks [first, end).
func (s *pageSet) fillChunks(first, end int64, c cell) {
	for _, chunk := range s.tablesIn(first, end) {
		for i := range s.tables[chunk] {
			s.count(s.tables[chunk][i].kind, -1)
		}
		delete(s.tables, chunk)
	}
	var runs []holeRun
	for _, r := range s.runs {
		if r.first < min(r.end, first) {
			runs = append(runs, holeRun{r.first, min(r.end, first), r.version})
		}
	}
	if c.kind == store.Hole {
		runs = append(runs, holeRun{first, end, c.version})
	}
	for _, r := range s.runs {
		if max(r.first, end) < r.end {
			runs = append(runs, holeRun{max(r.first, end), r.end, r.version})
		}
	}
	s.runs = runs
}

// tablesIn returns the chunks of [first, end) that have a table, in order.
func (s *pageSet) tablesIn(first, end int64) []int64 {
	var chunks []int64
	if end-first <= int64(len(s.tables)) {
		for chunk := first; chunk < end; chunk++ {
			if s.tables[chunk] != nil {
				chunks = append(chunks, chunk)
			}
		}
		return chunks
	}
	for chunk := range s.tables {
		if first <= chunk && chunk < end {
			chunks = append(chunks, chunk)
		}
	}
	slices.Sort(chunks)
	return chunks
}

// A span is a run of pages of one kind and version.
type span struct {
	first, end int64
	kind       store.Kind
	version    store.Version
}

func (s span) extent() store.Extent {
	return store.Extent{
		Off:     s.first * store.PageSize,
		N:       (s.end - s.first) * store.PageSize,
		Kind:    s.kind,
		Version: s.version,
	}
}

// spans returns, in order, what is not absent in [first, end). Neighbours that
// are alike are joined. With limit above 0 it stops at the first chunk behind
// that many spans.
func (s *pageSet) spans(first, end int64, limit int) []span {
	var found []span
	add := func(next span) {
		if last := len(found) - 1; last >= 0 && found[last].end == next.first &&
			found[last].kind == next.kind && found[last].version == next.version {
			found[last].end = next.end
			return
		}
		found = append(found, next)
	}
	addRuns := func(first, end int64) {
		for _, r := range s.runs {
			a, b := max(first, r.first*pagesPerChunk), min(end, r.end*pagesPerChunk)
			if a < b {
				add(span{a, b, store.Hole, r.version})
			}
		}
	}
	for _, chunk := range s.tablesIn(first/pagesPerChunk, (end+pagesPerChunk-1)/pagesPerChunk) {
		base := chunk * pagesPerChunk
		addRuns(first, base)
		for i := max(first, base); i < min(end, base+pagesPerChunk); i++ {
			if c := s.tables[chunk][i-base]; c.kind != store.Absent {
				add(span{i, i + 1, c.kind, c.version})
			}
		}
		first = max(first, base+pagesPerChunk)
		if limit > 0 && len(found) >= limit {
			return found
		}
	}
	addRuns(first, end)
	return found
}

// copyFrom makes the pages [first, end) what they are in from.
func (s *pageSet) copyFrom(from *pageSet, first, end int64) {
	s.fill(first, end, cell{})
	for _, p := range from.spans(first, end, 0) {
		if p.kind == store.Hole {
			s.fill(p.first, p.end, cell{kind: store.Hole, version: p.version})
			continue
		}
		for i := p.first; i < p.end; i++ {
			s.put(i, from.get(i))
		}
	}
}
