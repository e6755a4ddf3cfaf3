package segment

import (
	"sync"

	"torus/store"
)

// sweepQueue has the chunks in which a statement about the whole may have
// killed pages that the index still has.
type sweepQueue struct {
	mu     sync.Mutex
	chunks map[*chunk]struct{}
}

func (q *sweepQueue) add(chunks []*chunk) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.chunks == nil {
		q.chunks = map[*chunk]struct{}{}
	}
	for _, c := range chunks {
		q.chunks[c] = struct{}{}
	}
}

func (q *sweepQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.chunks)
}

func (q *sweepQueue) next() *chunk {
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.chunks {
		delete(q.chunks, c)
		return c
	}
	return nil
}

// sweep clears killed pages out of the index, so that their space counts as
// dead, and returns whether nothing is left to sweep.
// It waits for another sweep, which may have taken chunks from the queue and
// not be through with them.
func (st *Store) sweep() (bool, error) {
	st.sweeping.Lock()
	defer st.sweeping.Unlock()
	return st.sweepQueued()
}

func (st *Store) sweepQueued() (bool, error) {
	for {
		c := st.sweeps.next()
		if c == nil {
			return true, nil
		}
		if err := st.sweepChunk(c); err != nil {
			st.sweeps.add([]*chunk{c})
			return false, err
		}
		if st.index.dirtyCount.Load() > flushDirty {
			return false, nil
		}
	}
}

// sweepNow is how many chunks the one who made a statement sweeps himself, so
// that small trims are accounted for when they are answered.
const sweepNow = 16

// sweepSoon sweeps at once if it is little, else leaves it to the background.
func (st *Store) sweepSoon() error {
	if n := st.sweeps.len(); n == 0 || n > sweepNow {
		return nil
	}
	if !st.sweeping.TryLock() {
		return nil // the one who sweeps comes to it
	}
	defer st.sweeping.Unlock()
	_, err := st.sweepQueued()
	return err
}

func (st *Store) sweepChunk(c *chunk) error {
	for i := range bucketsPerChunk {
		b, err := st.index.hold(c, c.bucket(i), false)
		if err != nil {
			return st.doubted(err)
		}
		if b != nil {
			st.sweepBucket(c, b)
		}
	}
	return nil
}

func (st *Store) sweepBucket(c *chunk, b *bucket) {
	st.index.mu.Lock()
	defer st.index.mu.Unlock()
	s := st.index.shard(b.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	b.pins--
	w := c.wide.Load()
	for i := range b.pages {
		if d := &b.pages[i]; d.pos != 0 && w.kills(d) {
			st.index.touchLocked(b)
			st.replace(c.layer, d, desc{})
		}
	}
}

// forget drops the statements about whole chunks that nothing needs any more:
// what they killed is out of the index, durably, and in no segment, so that a
// rebuild would not find it; and a hole is settled, with no lower layer to hide
// (I7, I8). It is called after a sweep that left nothing, and a flush.
func (st *Store) forget() {
	st.flushMu.Lock()
	applied := st.persisted.applied
	st.flushMu.Unlock()
	for _, l := range st.tables.allLayers() {
		l.exclusive.Lock()
		st.forgetSpans(l, applied)
		st.forgetLayer(l)
		l.exclusive.Unlock()
	}
}

func (st *Store) forgetSpans(l *layer, applied position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kept []span
	for _, s := range l.spans {
		if !st.forgettable(l, s.state, applied) {
			kept = append(kept, s)
		}
	}
	if len(kept) == len(l.spans) {
		return
	}
	l.spans = kept
	for i, c := range l.chunks {
		c.wide.Store(spanAt(kept, i))
	}
}

// forgettable is decided under the layer's mutex.
func (st *Store) forgettable(l *layer, w *wide, applied position) bool {
	newest := w.pos
	for _, k := range w.killers {
		newest = max(newest, k.pos)
	}
	if newest > applied || !st.segments.noOlder(l.id, newest, nil) {
		return false
	}
	return w.kind == store.Absent || !l.known || l.parent == 0 && uint64(w.version) <= l.settled.Load()
}

// forgetLayer removes what is left of a dropped layer once that is nothing.
func (st *Store) forgetLayer(l *layer) {
	l.mu.RLock()
	left := l.known || len(l.spans) > 0 || l.live.Load() != 0
	l.mu.RUnlock()
	if left || st.recorded(l) {
		return
	}
	st.index.purge(l.id)
	st.tables.mu.Lock()
	delete(st.tables.layers, l.id)
	st.tables.mu.Unlock()
}

// recorded reports whether Badger has anything of a layer. Writers flush too: one
// that is under way ends before the answer.
func (st *Store) recorded(l *layer) bool {
	st.flushMu.Lock()
	defer st.flushMu.Unlock()
	l.mu.RLock()
	defer l.mu.RUnlock()
	some := l.sum != 0
	for _, c := range l.chunks {
		some = some || c.sum != 0
	}
	return some
}

// purge takes the buckets of a layer, which are empty, out of memory.
func (ix *index) purge(id store.LayerID) {
	for i := range ix.shards {
		s := &ix.shards[i]
		s.mu.Lock()
		for k, b := range s.buckets {
			if k.layer == id {
				s.remove(b)
			}
		}
		s.mu.Unlock()
	}
}

// lockLayer returns the entry of a layer with its exclusive lock held.
func (st *Store) lockLayer(id store.LayerID) *layer {
	for {
		l := st.tables.entry(id)
		l.exclusive.Lock()
		if st.tables.entry(id) == l {
			return l
		}
		l.exclusive.Unlock() // it was forgotten in between
	}
}
