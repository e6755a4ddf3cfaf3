package segment

import (
	"torus/store"
)

// coldPages bounds a batch of the cold log.
const coldPages = 1 << 20 / blockSize

// coldMoves bounds it too: holes of any number take one record, and each may
// change another bucket of the index.
const coldMoves = 4096

// A move is one page, hole or absence on its way to the cold log.
type move struct {
	chunk *chunk
	page  int64
	from  desc
	rec   int    // record in the batch
	index uint32 // page in the batch, for Data
}

// A coldLog is where the collector copies to. It has one writer, is not
// replayed, and is synced before the index points into it.
type coldLog struct {
	seg   *seg
	off   uint32
	chain uint32

	recs   []record
	header uint32
	pages  []byte
	n      uint32 // pages staged
	moves  []move
}

// stage copies the bytes of the page that is added next.
func (c *coldLog) stage(p []byte) {
	if c.pages == nil {
		c.pages = alignedBuffer(coldPages * blockSize)
	}
	copy(c.pages[c.n*blockSize:], p)
	c.n++
}

// add puts a page into the batch, and writes it when it is full.
func (c *coldLog) add(st *Store, m move) error {
	m.index = c.n - 1
	last := len(c.recs) - 1
	if last >= 0 && c.recs[last].follows(&m) {
		c.recs[last].count++
	} else {
		c.recs = append(c.recs, record{kind: pageRecord[m.from.kind], count: 1, pos: m.from.pos,
			layer: m.chunk.layer.id, page: uint64(m.page), version: m.from.version})
		c.header += recordSize
		last++
	}
	if m.from.kind == store.Data {
		c.recs[last].crcs = append(c.recs[last].crcs, m.from.crc)
		c.header += 4
	}
	m.rec = last
	c.moves = append(c.moves, m)
	if len(c.moves) >= coldMoves || c.n >= min(coldPages, st.segments.blocks/2) || c.header > min(batchRecords, st.segments.blocks/4*blockSize) {
		return c.write(st)
	}
	return nil
}

// follows reports whether m is the next page of what r states.
func (r *record) follows(m *move) bool {
	return r.kind == pageRecord[m.from.kind] && r.pos == m.from.pos && r.layer == m.chunk.layer.id &&
		int64(r.page)+int64(r.count) == m.page && r.version == m.from.version
}

// write writes the batch, syncs it, and lets the index point to it.
func (c *coldLog) write(st *Store) error {
	if len(c.recs) == 0 {
		return nil
	}
	// After an error too: what was not moved is found again by the next survey.
	defer c.reset()
	h := batchHeader{length: batchFixedSize + c.header, pages: c.n, count: uint32(len(c.recs))}
	if err := c.room(st, h.blocks()); err != nil {
		return err
	}
	h.nonce, h.block, h.prev = c.seg.nonce, c.off, c.chain
	p := alignedBuffer(int(h.headerBlocks()) * blockSize)
	at := batchFixedSize
	for i := range c.recs {
		at += c.recs[i].encode(p[at:])
	}
	sum := h.encode(p)
	if err := c.seg.f.writeAt([][]byte{p, c.pages[:c.n*blockSize]}, int64(c.off)*blockSize); err != nil {
		st.fail(err)
		return err
	}
	st.stats.collected.Add(int64(h.blocks()) * blockSize)
	if err := c.seg.f.datasync(); err != nil {
		st.fail(err)
		return err
	}
	c.seg.used.Store(c.off + h.blocks()) // a snapshot says that these are there
	c.seg.headers.Add(h.headerBlocks())
	first := c.off + h.headerBlocks()
	for i := range c.recs {
		c.seg.note(c.recs[i].layer, c.recs[i].pos)
	}
	for _, m := range c.moves {
		to := newLocation(c.seg.num, h.block)
		if m.from.kind == store.Data {
			to = newLocation(c.seg.num, first+m.index)
		}
		st.moveTo(m, to)
	}
	c.off, c.chain = c.off+h.blocks(), sum
	return nil
}

func (c *coldLog) reset() {
	clear(c.recs)
	clear(c.moves)
	c.recs, c.moves, c.header, c.n = c.recs[:0], c.moves[:0], 0, 0
}

// extent is the record that says how much of the open cold segment is durable,
// so that a rebuild notices if some of it is lost.
func (c *coldLog) extent() record {
	return record{kind: recSegment, layer: store.LayerID(c.seg.num), page: uint64(c.seg.used.Load()), flags: uint8(cold)}
}

// room opens a cold segment if the present one has less than n blocks left. The
// log says that it is in use before the index points there, so that a rebuild
// misses it if it is lost.
func (c *coldLog) room(st *Store, n uint32) error {
	if c.seg != nil && st.segments.blocks-c.off >= n {
		return nil
	}
	g, err := st.segments.take(cold, 0, 0)
	if err != nil {
		return err
	}
	r := newRequest()
	r.need = forSpace
	if c.seg != nil {
		r.add(c.extent())
		c.seg.sealed.Store(true)
		c.seg = nil
	}
	r.add(record{kind: recSegment, layer: store.LayerID(g.num), page: 1, flags: uint8(cold)})
	if err := st.commitDurable(r); err != nil {
		g.sealed.Store(true) // nothing is in it: it is freed
		return err
	}
	c.seg, c.off, c.chain = g, 1, 0
	return nil
}
