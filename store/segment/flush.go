package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"torus/store"
)

// The index is flushed when that many buckets changed, when the log has grown
// by that much (so that a start has little to replay), and at rest. Beyond
// mostDirty, writers wait: a flush has to fit into one transaction of Badger,
// 15 % of its memtable. Flushing late makes hot buckets cost little: at 6,000 it
// was one value in Badger for each random 4 KiB write to 1 GiB.
const (
	flushDirty = 20000
	mostDirty  = 32000
	flushBytes = 512 << 20
	flushEvery = 5 * time.Second
)

// makeRoom flushes while too much waits for that, unless another does. The
// caller holds its layer, and the background work may be waiting for that: so it
// is not waited for. Nothing is flushed any more once the store has failed, and
// not before requests have left it where the index has to be rebuilt.
func (st *Store) makeRoom() {
	for st.index.dirtyCount.Load() >= mostDirty && st.failure.Load() == nil && st.doubt.Load() == nil {
		st.flushMu.Lock()
		if st.index.dirtyCount.Load() >= mostDirty && st.failure.Load() == nil && st.doubt.Load() == nil {
			_ = st.flushLocked() // a failure of it has ended the store
		}
		st.flushMu.Unlock()
	}
}

// A frozen flush is the index as it was between two batches of the log.
type frozen struct {
	buckets []*bucket
	point   logPoint
	segs    map[*seg]segCounts
	layers  map[*layer]int64
	tables  []record
}

type segCounts struct{ live, tombs, used uint32 }

func (g *seg) counts() segCounts {
	return segCounts{uint32(g.live.Load()), uint32(g.tombs.Load()), g.used.Load()}
}

// freeze takes the changed buckets and the counts that belong to them. Writes
// go on meanwhile, and after it: a bucket changed again before it was written
// is set aside as it was.
func (st *Store) freeze() frozen {
	ix := st.index
	st.log.turnMu.Lock()
	defer st.log.turnMu.Unlock()
	ix.mu.Lock()
	defer ix.mu.Unlock()
	f := frozen{buckets: ix.dirty, point: st.log.point, segs: map[*seg]segCounts{}, layers: map[*layer]int64{},
		tables: st.tables.snapshot(nil)}
	ix.dirty = nil
	ix.flushing = ix.generation
	ix.generation++
	for _, g := range st.segments.all() {
		if c := g.counts(); c != g.flushed || g.sum == 0 {
			f.segs[g] = c
		}
	}
	for _, l := range st.tables.allLayers() {
		if n := l.live.Load(); n != l.flushedLive || l.sum == 0 {
			f.layers[l] = n
		}
	}
	return f
}

// flush brings Badger up to what the log said when it was called. The log is
// synced before: Badger never knows more than is on stable storage.
func (st *Store) flush() error {
	st.flushMu.Lock()
	defer st.flushMu.Unlock()
	if st.doubt.Load() != nil {
		return nil // what is in memory may be wrong: the rebuild begins from the segments
	}
	return st.flushLocked()
}

func (st *Store) flushLocked() error {
	f := st.freeze()
	if f.point == st.persisted.logPoint && len(f.buckets) == 0 && len(f.segs) == 0 && len(f.layers) == 0 {
		return nil
	}
	err := st.log.sync()
	var gens []uint8
	if err == nil {
		gens, err = st.writeFrozen(&f)
	}
	if err != nil {
		st.fail(fmt.Errorf("flushing the index: %w", err))
		return err
	}
	st.index.thaw(f.buckets, gens)
	return nil
}

// flushTxn collects what one flush writes.
type flushTxn struct {
	txn  *badger.Txn
	meta meta
	sums []func() // what to remember once it is committed
	err  error
}

func (t *flushTxn) set(key, value []byte) {
	if t.err == nil {
		t.err = t.txn.Set(key, value)
	}
}

func (t *flushTxn) del(key []byte) {
	if t.err == nil {
		t.err = t.txn.Delete(key)
	}
}

// counted writes a record of a counted table; a nil value deletes it. sum is
// where the record's sum is remembered.
func (t *flushTxn) counted(tb *table, key, value []byte, sum *uint64) {
	var next uint64
	if value != nil {
		seal(key, value)
		next = recordSum(key, value)
		tb.count++
		t.set(key, value)
	}
	if *sum != 0 {
		tb.count--
	}
	if value == nil && *sum != 0 {
		t.del(key)
	}
	tb.sum += next - *sum
	t.sums = append(t.sums, func() { *sum = next })
}

// writeFrozen writes f in one transaction, the log's position included, and
// returns the generations of its buckets.
func (st *Store) writeFrozen(f *frozen) ([]uint8, error) {
	t := &flushTxn{txn: st.index.db.db.NewTransaction(true), meta: st.persisted}
	defer t.txn.Discard()
	gens := st.writeBuckets(t, f.buckets)
	for g, c := range f.segs {
		t.counted(&t.meta.segs, segmentDBKey(g.num), g.encodeCounts(c), &g.sum)
		t.sums = append(t.sums, func() { g.flushed = c })
	}
	for _, g := range st.freedSegments {
		t.counted(&t.meta.segs, segmentDBKey(g.num), nil, &g.sum)
	}
	for l, n := range f.layers {
		v := binary.LittleEndian.AppendUint64(make([]byte, 4), uint64(n))
		if n == 0 {
			v = nil
		}
		t.counted(&t.meta.layers, layerDBKey(l.id), v, &l.sum)
		t.sums = append(t.sums, func() { l.flushedLive = n })
	}
	st.writeTables(t, f.tables)
	t.meta.logPoint = f.point
	t.set([]byte{keyMeta}, t.meta.encode())
	if t.err != nil {
		return nil, t.err
	}
	if err := st.index.db.commit(t.txn); err != nil {
		return nil, err
	}
	for _, remember := range t.sums {
		remember()
	}
	st.freedSegments = st.freedSegments[:0]
	st.persisted = t.meta
	return gens, nil
}

// tableRecords bounds the value of one 't' record.
const tableRecords = 1000

// writeTables writes the tables beside the index, as records, where they
// changed. They are facts of the log (N5); with them here too, a start needs
// the log only from the index's position on.
func (st *Store) writeTables(t *flushTxn, recs []record) {
	for i := 0; len(recs) > 0 || i < len(st.tableSums); i++ {
		if i == len(st.tableSums) {
			st.tableSums = append(st.tableSums, new(uint64))
		}
		key := binary.BigEndian.AppendUint32([]byte{keyTables}, uint32(i))
		n := min(len(recs), tableRecords)
		var v []byte
		if n > 0 {
			v = make([]byte, 4+n*recordSize)
			for j := range recs[:n] {
				recs[j].encode(v[4+j*recordSize:])
			}
			recs = recs[n:]
			if recordSum(key, seal(key, v)) == *st.tableSums[i] {
				continue
			}
		}
		t.counted(&t.meta.tables, key, v, st.tableSums[i])
	}
}

// encodeCounts makes the value of a segment's record.
func (g *seg) encodeCounts(c segCounts) []byte {
	le := binary.LittleEndian
	v := make([]byte, 4, 64)
	for _, n := range []uint32{c.live, c.tombs, c.used, 0} {
		v = le.AppendUint32(v, n)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for l, pos := range g.oldest {
		v = le.AppendUint64(v, uint64(l))
		v = le.AppendUint64(v, uint64(pos))
	}
	return v
}

func (g *seg) decodeCounts(v []byte) error {
	if len(v) < 16 || len(v)%16 != 0 {
		return fmt.Errorf("%w: malformed record of segment %v", errDoubt, g.num)
	}
	le := binary.LittleEndian
	g.flushed = segCounts{le.Uint32(v), le.Uint32(v[4:]), le.Uint32(v[8:])}
	g.live.Store(int32(g.flushed.live))
	g.tombs.Store(int32(g.flushed.tombs))
	g.used.Store(g.flushed.used)
	for v = v[16:]; len(v) > 0; v = v[16:] {
		g.note(store.LayerID(le.Uint64(v)), position(le.Uint64(v[8:])))
	}
	return nil
}

// writeBuckets writes the buckets, and for each of their chunks its record.
func (st *Store) writeBuckets(t *flushTxn, buckets []*bucket) []uint8 {
	gens := make([]uint8, len(buckets))
	chunks := map[*chunk][]int{}
	for i, b := range buckets {
		key := bucketDBKey(b.key)
		value, old, some := st.index.encode(b, key)
		if some {
			gens[i] = value[4]
			t.set(key, value)
		} else if old != 0 {
			t.del(key)
		}
		chunks[b.chunk] = append(chunks[b.chunk], i)
	}
	for c, is := range chunks {
		g := c.gens // the flusher alone changes them
		for _, i := range is {
			g[buckets[i].key.inChunk()] = gens[i]
		}
		t.counted(&t.meta.chunks, chunkDBKey(c.layer.id, c.index), encodeChunk(&g, c.maxVersion.Load()), &c.sum)
	}
	return gens
}

// encode returns what the flush under way writes of b.
func (ix *index) encode(b *bucket, key []byte) (value []byte, old uint8, some bool) {
	s := ix.shard(b.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	old = b.chunk.gens[b.key.inChunk()]
	next := old + 1
	if next == 0 {
		next = 1
	}
	pages := &b.pages
	if b.frozen != nil {
		pages = b.frozen
	}
	value, some = encodeBucket(key, next, pages)
	return value, old, some
}

// encodeChunk returns nil where the chunk has no buckets.
func encodeChunk(gens *[bucketsPerChunk]uint8, maxVersion uint64) []byte {
	if *gens == [bucketsPerChunk]uint8{} {
		return nil
	}
	v := make([]byte, 4, 4+bucketsPerChunk+8)
	v = append(v, gens[:]...)
	return binary.LittleEndian.AppendUint64(v, maxVersion)
}

// thaw ends a flush: what was not changed again is as in Badger. The flush is
// under way until the last bucket is clean: one that is changed before its turn
// is still of the flushed generation, and has to get into the next flush's list.
func (ix *index) thaw(buckets []*bucket, gens []uint8) {
	flushed := ix.flushing // changes only with a flush
	for i, b := range buckets {
		s := ix.shard(b.key)
		s.mu.Lock()
		b.frozen = nil
		b.chunk.gens[b.key.inChunk()] = gens[i]
		if b.dirty == flushed {
			b.dirty = 0
		}
		s.mu.Unlock()
	}
	ix.mu.Lock()
	ix.flushing = 0
	ix.mu.Unlock()
	ix.dirtyCount.Add(-int64(len(buckets)))
}

// recordMarks logs the watermarks that were told since the last time. Those for
// which the log has no space wait until it has.
func (st *Store) recordMarks() error {
	var errs []error
	for _, l := range st.tables.allLayers() {
		if !l.marksChanged.CompareAndSwap(true, false) {
			continue
		}
		r := newRequest()
		r.need = forPages
		r.add(record{kind: recStable, layer: l.id, version: store.Version(l.stable.Load()), page: l.settled.Load()})
		err := st.commit(r)
		if errors.Is(err, store.ErrNoSpace) {
			l.marksChanged.Store(true)
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
