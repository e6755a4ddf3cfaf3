package memstore

import (
	"sync"

	"torus/store"
)

const maxPages = store.MaxVolumeSize / store.PageSize

// marks are the watermarks of a layer.
type marks struct{ stable, settled store.Version }

// A layer is its pages as requests see them and, on a disk that can lose some,
// as they would be found after a power cut that takes all it may.
type layer struct {
	id, parent store.LayerID

	mu    sync.RWMutex // guards all below
	now   *pageSet
	marks marks

	durable      *pageSet // nil: every write is durable at once
	durableMarks marks
	unsynced     []effect // what leads from durable to now, in order
}

func newLayer(id, parent store.LayerID, losesWrites bool) *layer {
	l := &layer{id: id, parent: parent, now: newPageSet()}
	if losesWrites {
		l.durable = newPageSet()
	}
	return l
}

// write applies p page by page where v is higher (N4, I2).
func (l *layer) write(first int64, p []byte, v store.Version, f store.Flags) {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := first + int64(len(p)/store.PageSize)
	for i := first; i < end && v > l.marks.stable; i++ {
		if here := l.now.get(i); v > here.version {
			l.putData(i, here, p[(i-first)*store.PageSize:], v)
		}
	}
	l.finish(first, end, f)
}

// zero makes pages a hole by the same rules.
func (l *layer) zero(first, end int64, v store.Version, f store.Flags) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v > l.marks.stable {
		hole := cell{kind: store.Hole, version: v}
		for _, s := range l.yielding(first, end, func(here store.Version) bool { return v > here }) {
			l.fill(s.first, s.end, hole)
		}
	}
	l.finish(first, end, f)
}

// finish makes durable what the pages are now, if the request asks for it; also
// where it was not applied: a repeated write is answered like the first one.
func (l *layer) finish(first, end int64, f store.Flags) {
	if f&store.FlagSync != 0 && l.durable != nil {
		l.unsynced = without(l.unsynced, first, end)
		l.durable.copyFrom(l.now, first, end)
	}
}

// adopt makes pages equal to a peer's; a higher version of epoch stays.
func (l *layer) adopt(e store.Extent, p []byte, epoch store.Epoch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, end := e.Off/store.PageSize, e.End()/store.PageSize
	yields := func(here store.Version) bool { return here <= e.Version || here.Epoch() != epoch }
	for _, s := range l.yielding(first, end, yields) {
		if e.Kind != store.Data {
			l.fill(s.first, s.end, cell{kind: e.Kind, version: e.Version})
			continue
		}
		for i := s.first; i < s.end; i++ {
			l.putData(i, l.now.get(i), p[(i-first)*store.PageSize:], e.Version)
		}
	}
}

// yielding returns the runs of pages in [first, end) whose version gives way.
func (l *layer) yielding(first, end int64, yields func(here store.Version) bool) []span {
	var found []span
	for _, s := range l.now.spans(first, end, 0) {
		if yields(s.version) {
			continue
		}
		if first < s.first {
			found = append(found, span{first: first, end: s.first})
		}
		first = s.end
	}
	if first < end {
		found = append(found, span{first: first, end: end})
	}
	return found
}

// putData makes a page, which is here now, the first page of p.
func (l *layer) putData(i int64, here cell, p []byte, v store.Version) {
	data := here.data
	if data == nil || l.durable != nil { // otherwise nobody else refers to it
		data = new(page)
	}
	copy(data[:], p)
	c := cell{kind: store.Data, version: v, data: data}
	l.now.put(i, c)
	l.note(effect{i, i + 1, c})
}

// fill makes pages a hole or absent.
func (l *layer) fill(first, end int64, c cell) {
	l.now.fill(first, end, c)
	l.note(effect{first, end, c})
}

// read fills those pages of p that info has no layer for yet.
func (l *layer) read(first int64, p []byte, info []store.PageInfo) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for n := range info {
		if info[n].Layer != 0 {
			continue
		}
		c := l.now.get(first + int64(n))
		if c.kind == store.Absent {
			continue
		}
		if c.kind == store.Data {
			copy(p[n*store.PageSize:(n+1)*store.PageSize], c.data[:])
		}
		info[n] = store.PageInfo{Layer: l.id, Kind: c.kind, Version: c.version}
	}
}

// extents returns some of what is in [first, end) above since (if nil, above
// the stable mark) and the page up to which that is all.
func (l *layer) extents(first, end int64, since *store.Version) (found []store.Extent, upTo int64) {
	const batch = 4096
	l.mu.RLock()
	defer l.mu.RUnlock()
	above := l.marks.stable
	if since != nil {
		above = *since
	}
	upTo = end
	spans := l.now.spans(first, end, batch)
	if len(spans) >= batch {
		upTo = spans[len(spans)-1].end
	}
	for _, s := range spans {
		if s.version > above {
			found = append(found, s.extent())
		}
	}
	return found, upTo
}

// drop makes chunks absent, for good.
func (l *layer) drop(c store.Chunks) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := min(int64(c.First)*pagesPerChunk, maxPages)
	end := min(int64(c.End)*pagesPerChunk, maxPages)
	l.now.fill(first, end, cell{})
	if l.durable != nil {
		// What was written before must not come back after a power cut (I8).
		l.unsynced = without(l.unsynced, first, end)
		l.durable.fill(first, end, cell{})
	}
}

// raise sets the marks, never back, and forgets holes at or below settled
// where no layer below has the page.
func (l *layer) raise(stable, settled store.Version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marks.stable = max(l.marks.stable, stable)
	if settled <= l.marks.settled {
		return
	}
	l.marks.settled = settled
	if l.parent != 0 || l.now.holes+int64(len(l.now.runs)) == 0 {
		return
	}
	// Durable before the first hole is gone: without the mark a late copy of
	// an older write would be let in where the hole was (N4).
	l.durableMarks = l.marks
	for _, s := range l.now.spans(0, maxPages, 0) {
		if s.kind == store.Hole && s.version <= settled {
			l.fill(s.first, s.end, cell{})
		}
	}
}

// info describes the layer.
func (l *layer) info() store.LayerInfo {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return store.LayerInfo{
		ID:      l.id,
		Parent:  l.parent,
		Bytes:   l.now.live * store.PageSize,
		Stable:  l.marks.stable,
		Settled: l.marks.settled,
	}
}
