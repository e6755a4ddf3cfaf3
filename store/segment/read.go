package segment

import (
	"errors"
	"fmt"
	"sync"

	"torus/store"
)

// A run is pages of a request that lie one behind the other in a segment.
type run struct {
	seg   *seg
	block uint32
	first int // page of the request
	n     int
}

// A readPlan says where the pages of one request lie. Its segments are pinned,
// so that none is freed before it was read.
type readPlan struct {
	chain []*layer
	runs  []run
	pages []planned // one a page
}

type planned struct {
	layer *layer
	desc  desc
}

var plans = sync.Pool{New: func() any { return new(readPlan) }}

// reset gives up what was found.
func (pl *readPlan) reset() {
	for i := range pl.runs {
		pl.runs[i].seg.unpin()
	}
	clear(pl.runs)
	clear(pl.pages)
	pl.runs, pl.pages = pl.runs[:0], pl.pages[:0]
}

func (pl *readPlan) release() {
	pl.reset()
	pl.chain = pl.chain[:0]
	plans.Put(pl)
}

// read fills p from the first layer of the chain that has the page.
func (st *Store) read(chain []store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	if err := checkRead(chain, off, int64(len(p)), info); err != nil {
		return err
	}
	st.stats.reads.Add(1)
	st.stats.bytesRead.Add(int64(len(p)))
	pl := plans.Get().(*readPlan)
	defer pl.release()
	for _, id := range chain {
		l, err := st.tables.layer(id)
		if err != nil {
			return fmt.Errorf("layer %v: %w", id, err)
		}
		pl.chain = append(pl.chain, l)
	}
	err := st.planAndRead(pl, off, p, info)
	if errors.Is(err, store.ErrCorrupt) {
		// A page that was overwritten after it was found may have been given back
		// to the file system since: look where it lies now.
		if err = st.planAndRead(pl, off, p, info); errors.Is(err, store.ErrCorrupt) {
			st.stats.corrupt.Add(1)
		}
	}
	return err
}

func (st *Store) planAndRead(pl *readPlan, off int64, p []byte, info []store.PageInfo) error {
	pl.reset()
	if err := st.plan(pl, off/store.PageSize, len(p)/store.PageSize); err != nil {
		return st.doubted(err)
	}
	pl.fillRest(p, info)
	return st.readRuns(pl, off, p)
}

func checkRead(chain []store.LayerID, off, n int64, info []store.PageInfo) error {
	if err := store.CheckRange(off, n); err != nil {
		return err
	}
	switch {
	case n > store.MaxIO:
		return invalid("%d bytes in one request, at most %d", n, store.MaxIO)
	case len(chain) == 0:
		return invalid("empty chain")
	case info != nil && int64(len(info)) < n/store.PageSize:
		return invalid("room for %d pages of info, %d are read", len(info), n/store.PageSize)
	}
	return nil
}

// plan finds the pages [first, first+n), bucket by bucket.
func (st *Store) plan(pl *readPlan, first int64, n int) error {
	if cap(pl.pages) < n {
		pl.pages = make([]planned, n)
	}
	pl.pages = pl.pages[:n]
	for at := 0; at < n; {
		page := first + int64(at)
		count := min(int(bucketPages-page%bucketPages), n-at)
		if err := st.planBucket(pl, page, at, count); err != nil {
			return err
		}
		at += count
	}
	return nil
}

// planBucket finds count pages of one bucket, layer by layer.
func (st *Store) planBucket(pl *readPlan, page int64, at, count int) error {
	missing := uint16(1)<<count - 1
	for _, l := range pl.chain {
		ch, w := l.chunk(uint32(page / store.PagesPerChunk))
		var err error
		if missing, err = st.planLayer(pl, l, ch, w, page, at, missing); err != nil || missing == 0 {
			return err
		}
	}
	return nil
}

func (st *Store) planLayer(pl *readPlan, l *layer, ch *chunk, w *wide, page int64, at int, missing uint16) (uint16, error) {
	none := desc{}
	if ch == nil {
		return pl.take(st, l, nil, w, int(page%bucketPages), at, missing, &none)
	}
	k := bucketKey{l.id, uint64(page / bucketPages)}
	s := st.index.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := st.index.holdLocked(s, ch, k, false)
	if err != nil {
		return missing, err
	}
	w = ch.wide.Load()
	if b != nil {
		b.pins--
	}
	return pl.take(st, l, b, w, int(page%bucketPages), at, missing, &none)
}

// take enters what layer l has of the missing pages and returns those that it
// has not. The bucket's shard is locked, so a segment with a page has a live
// count that keeps it until it is pinned.
func (pl *readPlan) take(st *Store, l *layer, b *bucket, w *wide, inBucket, at int, missing uint16, none *desc) (uint16, error) {
	for i := 0; missing>>i != 0; i++ {
		if missing&(1<<i) == 0 {
			continue
		}
		d := none
		if b != nil {
			d = &b.pages[inBucket+i]
		}
		r := resolve(d, w)
		if r.kind == store.Absent {
			continue
		}
		missing &^= 1 << i
		pl.pages[at+i] = planned{l, r}
		if r.kind == store.Data {
			if err := pl.addRun(st, at+i, r.loc); err != nil {
				return missing, err
			}
		}
	}
	return missing, nil
}

func (pl *readPlan) addRun(st *Store, page int, loc location) error {
	if n := len(pl.runs); n > 0 {
		r := &pl.runs[n-1]
		if r.first+r.n == page && newLocation(r.seg.num, r.block+uint32(r.n)) == loc {
			r.n++
			return nil
		}
	}
	g := st.segments.get(loc.segment())
	if g == nil {
		return fmt.Errorf("%w: a page lies in segment %v, which is not there", errDoubt, loc.segment())
	}
	g.pins.Add(1)
	pl.runs = append(pl.runs, run{g, loc.block(), page, 1})
	return nil
}

// fillRest zeroes what has no bytes, and says where pages came from.
func (pl *readPlan) fillRest(p []byte, info []store.PageInfo) {
	for i := range pl.pages {
		q := &pl.pages[i]
		if q.desc.kind != store.Data {
			clear(p[i*store.PageSize : (i+1)*store.PageSize])
		}
		if info != nil {
			info[i] = store.PageInfo{Kind: q.desc.kind, Version: q.desc.version}
			if q.layer != nil {
				info[i].Layer = q.layer.id
			}
		}
	}
}

// parallelRuns is how many pieces of one scattered request are read at once.
const parallelRuns = 8

func (st *Store) readRuns(pl *readPlan, off int64, p []byte) error {
	if len(pl.runs) <= 2 {
		for i := range pl.runs {
			if err := st.readRun(pl, &pl.runs[i], off, p); err != nil {
				return err
			}
		}
		return nil
	}
	return st.readScattered(pl, off, p)
}

func (st *Store) readScattered(pl *readPlan, off int64, p []byte) error {
	workers := min(parallelRuns, len(pl.runs))
	errs := make(chan error, workers)
	for w := range workers {
		go func() {
			for i := w; i < len(pl.runs); i += workers {
				if err := st.readRun(pl, &pl.runs[i], off, p); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var first error
	for range workers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (st *Store) readRun(pl *readPlan, r *run, off int64, p []byte) error {
	p = p[r.first*store.PageSize : (r.first+r.n)*store.PageSize]
	if err := r.seg.f.readAt(p, int64(r.block)*blockSize, true); err != nil {
		return st.unreadable(pl, r, off, err.Error())
	}
	for i := range r.n {
		page := p[i*store.PageSize : (i+1)*store.PageSize]
		want := pl.pages[r.first+i].desc.crc
		if checksum(page) == want {
			continue
		}
		// The page cache may be what is wrong: ask the disk.
		block := r.block + uint32(i)
		if err := r.seg.f.readAt(page, int64(block)*blockSize, false); err != nil || checksum(page) != want {
			one := run{r.seg, block, r.first + i, 1}
			return st.unreadable(pl, &one, off, "checksum of the page")
		}
	}
	return nil
}

// unreadable makes the error for pages that the disk does not give back: never
// bytes, never absence (I5, N6).
func (st *Store) unreadable(pl *readPlan, r *run, off int64, detail string) error {
	return &store.CorruptError{Layer: pl.pages[r.first].layer.id, Off: off + int64(r.first)*store.PageSize,
		Detail: fmt.Sprintf("%s, segment %v block %d", detail, r.seg.num, r.block)}
}
