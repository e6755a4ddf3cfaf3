package segment

import (
	"sync"
	"sync/atomic"

	"torus/store"
)

const shardCount = 64

// bucketKey names 16 pages of a layer.
type bucketKey struct {
	layer store.LayerID
	n     uint64 // page / bucketPages
}

func (c *chunk) bucket(i int) bucketKey {
	return bucketKey{c.layer.id, uint64(c.index)*bucketsPerChunk + uint64(i)}
}

func (k bucketKey) inChunk() int { return int(k.n % bucketsPerChunk) }

// A bucket has the descriptors of 16 pages in memory. Its fields are guarded
// by its shard's mutex; pages change only with the index's mutex held too.
//
//	loading -> ready <-> dirty
//	    \-> removed again (the error goes to all that wait)
type bucket struct {
	key    bucketKey
	chunk  *chunk
	pages  [bucketPages]desc
	loaded bool
	err    error
	pins   int32
	// inflight has a bit for each page that a logged or queued write holds.
	inflight uint16
	used     bool // since the clock's hand passed
	// dirty is the generation in which the bucket was changed; 0: as in Badger.
	dirty uint64
	// frozen is what the flush under way has to write, where pages went on.
	frozen *[bucketPages]desc
}

// A touch is the pages of one bucket that a request changes.
type touch struct {
	b    *bucket
	mask uint16
}

type shard struct {
	mu      sync.Mutex
	changed sync.Cond // a bucket was loaded, or pages are in flight no more
	waiters int
	buckets map[bucketKey]*bucket
	ring    []*bucket
	hand    int
}

// index says where each page lies. What was changed since the last flush, and
// what is used often, is in memory; the rest in Badger.
type index struct {
	db       *indexDB
	perShard int
	shards   [shardCount]shard

	// mu orders all changes: what the log applies, what the collector moves and
	// what the sweeper clears. It comes before a shard's mutex; no I/O under it.
	mu         sync.Mutex
	generation uint64
	dirty      []*bucket
	dirtyCount atomic.Int64
	flushing   uint64 // generation that the flush under way writes; 0: none
}

func newIndex(db *indexDB, cacheBytes int64) *index {
	const bucketBytes = 700 // with its share of map and ring
	ix := &index{db: db, generation: 1, perShard: max(int(cacheBytes/bucketBytes/shardCount), 16)}
	for i := range ix.shards {
		s := &ix.shards[i]
		s.buckets = map[bucketKey]*bucket{}
		s.changed.L = &s.mu
	}
	return ix
}

func (ix *index) shard(k bucketKey) *shard {
	h := (uint64(k.layer) ^ k.n) * 0x9e3779b97f4a7c15
	return &ix.shards[h>>58]
}

// hold returns a bucket of c, loaded, with a pin that keeps it in memory. Nil:
// the index has nothing of it, and make is false.
func (ix *index) hold(c *chunk, k bucketKey, make bool) (*bucket, error) {
	s := ix.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return ix.holdLocked(s, c, k, make)
}

func (ix *index) holdLocked(s *shard, c *chunk, k bucketKey, make bool) (*bucket, error) {
	if b := s.buckets[k]; b != nil {
		b.pins++
		b.used = true
		for !b.loaded && b.err == nil {
			s.wait()
		}
		if b.err != nil {
			b.pins--
			return nil, b.err
		}
		return b, nil
	}
	gen := c.gens[k.inChunk()]
	if gen == 0 && !make {
		return nil, nil
	}
	b := &bucket{key: k, chunk: c, pins: 1, used: true}
	s.insert(b, ix.perShard)
	if gen == 0 {
		b.loaded = true
		return b, nil
	}
	s.mu.Unlock()
	err := ix.db.bucket(k, gen, &b.pages)
	s.mu.Lock()
	b.loaded, b.err = err == nil, err
	s.changed.Broadcast()
	if err != nil {
		s.remove(b)
		return nil, err
	}
	return b, nil
}

func (ix *index) release(b *bucket) {
	s := ix.shard(b.key)
	s.mu.Lock()
	b.pins--
	s.mu.Unlock()
}

func (s *shard) wait() {
	s.waiters++
	s.changed.Wait()
	s.waiters--
}

func (s *shard) insert(b *bucket, most int) {
	s.buckets[b.key] = b
	for tries := 0; len(s.ring) >= most && tries < 2*len(s.ring); tries++ {
		s.hand = (s.hand + 1) % len(s.ring)
		old := s.ring[s.hand]
		switch {
		case old.pins != 0 || old.dirty != 0 || old.inflight != 0:
		case old.used:
			old.used = false
		default:
			delete(s.buckets, old.key)
			s.ring[s.hand] = b
			return
		}
	}
	s.ring = append(s.ring, b)
}

func (s *shard) remove(b *bucket) {
	delete(s.buckets, b.key)
	for i, o := range s.ring {
		if o == b {
			s.ring[i] = s.ring[len(s.ring)-1]
			s.ring[len(s.ring)-1] = nil
			s.ring = s.ring[:len(s.ring)-1]
			return
		}
	}
}

// claim marks those pages of b in want that are to change as in flight and
// returns them: those that c applies to. It waits while another
// request has any of want in flight: so a choice stands until it is applied.
// Requests claim in the order of pages, so that none waits for another in a circle.
func (ix *index) claim(b *bucket, want uint16, c *pageChange) uint16 {
	s := ix.shard(b.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	for b.inflight&want != 0 {
		s.wait()
	}
	w := b.chunk.wide.Load()
	var mask uint16
	for i := range bucketPages {
		if want&(1<<i) == 0 {
			continue
		}
		if d := resolve(&b.pages[i], w); c.applies(&d) {
			mask |= 1 << i
		}
	}
	b.inflight |= mask
	return mask
}

// unclaim gives up pages in flight and the pin.
func (ix *index) unclaim(t touch) {
	s := ix.shard(t.b.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(t)
}

func (s *shard) settle(t touch) {
	t.b.inflight &^= t.mask
	t.b.pins--
	if s.waiters > 0 {
		s.changed.Broadcast()
	}
}

// touchLocked makes b dirty in the present generation; what a flush under way
// has not written yet is set aside for it.
func (ix *index) touchLocked(b *bucket) {
	if b.dirty == ix.generation {
		return
	}
	if b.dirty != 0 && b.dirty == ix.flushing && b.frozen == nil {
		pages := b.pages
		b.frozen = &pages
	}
	if b.dirty == 0 || b.dirty == ix.flushing {
		ix.dirty = append(ix.dirty, b)
		ix.dirtyCount.Add(1)
	}
	b.dirty = ix.generation
}
