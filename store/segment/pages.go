package segment

import (
	"sync"

	"torus/store"
)

var requests = sync.Pool{New: func() any { return &request{ready: make(chan bool, 1)} }}

// newRequest returns an empty request. recycle takes it back, if its owner
// keeps nothing of it.
func newRequest() *request { return requests.Get().(*request) }

func (r *request) recycle() {
	clear(r.bufs)
	clear(r.touched)
	for i := range r.recs {
		r.recs[i].crcs = nil
	}
	*r = request{recs: r.recs[:0], bufs: r.bufs[:0], touched: r.touched[:0], crcs: r.crcs[:0], bounce: r.bounce, ready: r.ready}
	if cap(r.bounce) > 1<<20 || cap(r.touched) > 256 {
		return // a rare large one would stay for ever
	}
	requests.Put(r)
}

// A pageChange is a statement about pages, one by one.
type pageChange struct {
	layer   *layer
	kind    store.Kind
	off, n  int64
	version store.Version
	p       []byte // n bytes for Data
	// below is the version from which on a page stays as it is.
	below store.Version
	// sparse: where the store has nothing of a chunk, nothing is to be done.
	sparse bool
}

// applies decides by what holds of a page. A hole or an absence that is there
// already is not stated again.
func (c *pageChange) applies(d *desc) bool {
	return d.version < c.below && (c.kind == store.Data || d.kind != c.kind || d.version != c.version)
}

// changePages logs and applies c for the pages that it applies to. The caller
// holds the layer's exclusive lock for reading, or writing.
func (st *Store) changePages(c *pageChange) error {
	st.makeRoom()
	r := newRequest()
	defer r.recycle()
	if err := st.claimPages(r, c); err != nil || len(r.touched) == 0 {
		return err
	}
	if c.kind != store.Data {
		r.need = forPages
	}
	return st.commit(r)
}

// claimPages claims pages bucket by bucket, in order, and makes the records.
func (st *Store) claimPages(r *request, c *pageChange) error {
	first, end := c.off/store.PageSize, (c.off+c.n)/store.PageSize
	var ch *chunk
	for page := first; page < end; {
		next := min((page/bucketPages+1)*bucketPages, end)
		if i := uint32(page / store.PagesPerChunk); ch == nil || ch.index != i {
			var w *wide
			ch, w = c.layer.chunk(i)
			if ch == nil && c.sparse && !w.applies(c) {
				page = min(int64(i+1)*store.PagesPerChunk, end)
				continue
			}
			if ch == nil {
				ch = c.layer.makeChunk(i)
			}
		}
		b, err := st.index.hold(ch, bucketKey{c.layer.id, uint64(page / bucketPages)}, true)
		if err != nil {
			st.releaseTouched(r)
			return st.doubted(err)
		}
		want := uint16(1)<<(next-page) - 1
		want <<= page % bucketPages
		if mask := st.index.claim(b, want, c); mask != 0 {
			r.touched = append(r.touched, touch{b, mask})
			r.addPages(c, page-page%bucketPages, mask)
		} else {
			st.index.release(b)
		}
		page = next
	}
	r.fill(c, first)
	return nil
}

func (st *Store) releaseTouched(r *request) {
	for _, t := range r.touched {
		st.index.unclaim(t)
	}
	r.touched = r.touched[:0]
}

// addPages extends the last record by the pages of mask, or begins new ones.
func (r *request) addPages(c *pageChange, base int64, mask uint16) {
	for i := range int64(bucketPages) {
		if mask&(1<<i) == 0 {
			continue
		}
		page := base + i
		if n := len(r.recs); n > 0 && int64(r.recs[n-1].page)+int64(r.recs[n-1].count) == page {
			r.recs[n-1].count++
			continue
		}
		r.recs = append(r.recs, record{kind: pageRecord[c.kind], count: 1, layer: c.layer.id, page: uint64(page), version: c.version})
	}
}

// pageRecord maps what a page becomes to the record that says so.
var pageRecord = [...]recordKind{store.Absent: recAbsent, store.Data: recData, store.Hole: recHole}

// fill computes sizes and checksums, and points the request at the bytes.
func (r *request) fill(c *pageChange, first int64) {
	if c.kind == store.Data {
		if !aligned(c.p) {
			r.copyIn(c.p)
			c.p = r.bounce[:len(c.p)]
		}
		n := 0
		for i := range r.recs {
			n += int(r.recs[i].count)
		}
		if cap(r.crcs) < n {
			r.crcs = make([]uint32, 0, n)
		}
	}
	for i := range r.recs {
		rec := &r.recs[i]
		if c.kind == store.Data {
			from := (int64(rec.page) - first) * store.PageSize
			p := c.p[from : from+int64(rec.count)*store.PageSize]
			start := len(r.crcs)
			for o := 0; o < len(p); o += store.PageSize {
				r.crcs = append(r.crcs, checksum(p[o:o+store.PageSize]))
			}
			rec.crcs = r.crcs[start:]
			r.bufs = append(r.bufs, p)
			r.pages += rec.count
		}
		r.header += uint32(rec.size())
	}
}

// copyIn brings bytes to where O_DIRECT can take them.
func (r *request) copyIn(p []byte) {
	if cap(r.bounce) < len(p) {
		r.bounce = alignedBuffer(max(len(p), 64<<10))
	}
	copy(r.bounce[:cap(r.bounce)], p)
}

// commit logs r and returns when it is applied; every touch is released then.
func (st *Store) commit(r *request) error { return st.log.commit(r) }

// apply enters a logged request in index and tables. It is called in log
// order. first is the block of the request's first page, header that of its batch.
func (st *Store) apply(g *seg, r *request, header, first uint32, err error) {
	if err != nil {
		st.releaseTouched(r)
		return
	}
	ix := st.index
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if r.meta != nil {
		r.meta()
	}
	if len(r.touched) == 0 {
		return
	}
	rec, done := &r.recs[0], uint32(0)
	next := 1
	g.note(rec.layer, rec.pos)
	raiseVersions(r)
	for _, t := range r.touched {
		s := ix.shard(t.b.key)
		s.mu.Lock()
		ix.touchLocked(t.b)
		for i := range bucketPages {
			if t.mask&(1<<i) == 0 {
				continue
			}
			if done == rec.count {
				rec, done = &r.recs[next], 0
				next++
			}
			d := desc{loc: newLocation(g.num, header), pos: rec.pos, version: rec.version, kind: kindOf(rec.kind)}
			if d.kind == store.Data {
				d.loc, d.crc = newLocation(g.num, first), rec.crcs[done]
				first++
			}
			st.replace(t.b.chunk.layer, &t.b.pages[i], d)
			done++
		}
		s.settle(t)
		s.mu.Unlock()
	}
}

func raiseVersions(r *request) {
	for _, t := range r.touched {
		raise(&t.b.chunk.maxVersion, uint64(r.recs[0].version))
	}
}

func kindOf(k recordKind) store.Kind {
	switch k {
	case recData:
		return store.Data
	case recHole:
		return store.Hole
	}
	return store.Absent
}

// replace puts d where old was and keeps the counts.
func (st *Store) replace(l *layer, old *desc, d desc) {
	st.count(l, old, -1)
	*old = d
	st.count(l, old, 1)
}

// count adds n to the counts that d is part of.
func (st *Store) count(l *layer, d *desc, n int32) {
	if d.pos == 0 {
		return
	}
	g := st.segments.get(d.loc.segment())
	if g == nil {
		st.suspect("the index places a page in segment %v, which is not there", d.loc.segment())
		return
	}
	if d.kind == store.Data {
		g.live.Add(n)
		l.live.Add(int64(n))
	} else {
		g.tombs.Add(n)
	}
}
