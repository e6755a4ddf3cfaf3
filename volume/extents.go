package volume

import (
	"fmt"
	"iter"

	"torus/store"
)

// Extent is a run of bytes of a volume: Data where a layer of the chain has
// pages, Hole where all reads as zeroes without being stored.
type Extent struct {
	Off, N int64 // bytes
	Kind   store.Kind
}

// String shows the extent as [off,end) kind.
func (e Extent) String() string { return fmt.Sprintf("[%d,%d) %v", e.Off, e.Off+e.N, e.Kind) }

// extentBatch bounds what Extents collects before it yields: no store's iterator
// is open while it waits for writes or its caller works.
const extentBatch = 1024

// Extents yields what [off, off+n) is made of, in order, without gaps or
// neighbours of one kind, in one piece for each moment it looked: writes that go
// on meanwhile are shown or not, but as a read would show them (I6). An error is
// yielded last, with an empty extent.
func (v *Volume) Extents(off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if off < 0 || n < 0 || n > v.size || off > v.size-n {
			err := fmt.Errorf("%w: %d+%d of %d", ErrRange, off, n, v.size)
			yield(Extent{}, v.wrap("extents", off, n, err))
			return
		}
		// One extent is kept back, since the next batch may go on with its kind.
		var last Extent
		for at := off; at < off+n; {
			batch, err := v.extentBatch(at, off+n)
			if err != nil {
				if last.N == 0 || yield(last, nil) {
					yield(Extent{}, v.wrap("extents", off, n, err))
				}
				return
			}
			for _, e := range batch {
				at += e.N
				if last.N > 0 && last.Kind == e.Kind {
					last.N += e.N
					continue
				}
				if last.N > 0 && !yield(last, nil) {
					return
				}
				last = e
			}
		}
		if last.N > 0 {
			yield(last, nil)
		}
	}
}

// extentBatch returns the extents from off on, some or all up to end, at least one.
func (v *Volume) extentBatch(off, end int64) ([]Extent, error) {
	if err := v.enter(); err != nil {
		return nil, err
	}
	defer v.gate.leave()
	// Chunks with the same copies are one run; a bound on it keeps looking for
	// its end cheap on a volume of many chunks.
	stop, copies, err := v.place.readRun(off, min(end, off+1<<36))
	if err != nil {
		return nil, err
	}
	lapsed := v.held != nil && !v.held()
	for {
		var batch []Extent
		from, err := v.fromCopies(off, copies, func(w *view) (err error) {
			batch, err = v.overlay(w.at, off, stop)
			return err
		})
		if err != nil {
			return nil, err
		}
		last := batch[len(batch)-1]
		if shown, err := v.confirm(pageFloor(off), pageCeil(last.Off+last.N), sources{first: from}, lapsed); shown || err != nil {
			return batch, err
		}
	}
}

// cursor walks through one layer's extents.
type cursor struct {
	next func() (store.Extent, error, bool)
	now  store.Extent // the first that ends behind the sweep; N 0 behind the last
}

// seek moves to the first extent that ends behind off.
func (c *cursor) seek(off int64) error {
	for c.now.N > 0 && c.now.End() <= off {
		e, err, ok := c.next()
		switch {
		case err != nil:
			return err
		case !ok:
			c.now = store.Extent{}
		default:
			c.now = e
		}
	}
	return nil
}

// overlay lays the layers of the chain over each other, as one copy has them,
// from off until end or extentBatch extents.
func (v *Volume) overlay(at *attempt, off, end int64) ([]Extent, error) {
	first, last := pageFloor(off), pageCeil(end)
	cursors := make([]cursor, len(v.chain))
	for i, layer := range v.chain {
		next, stop := iter.Pull2(at.replica.Extents(at.ctx, layer, first, last-first, 0))
		defer stop()
		cursors[i] = cursor{next: next, now: store.Extent{Off: first - 1, N: 1}}
	}
	var batch []Extent
	for at := off; at < end; {
		kind, until := store.Hole, end
		for i := range cursors {
			c := &cursors[i]
			if err := c.seek(at); err != nil {
				return nil, err
			}
			if c.now.N == 0 {
				continue
			}
			if c.now.Off <= at {
				kind, until = c.now.Kind, min(until, c.now.End())
				break // it hides what lies below
			}
			until = min(until, c.now.Off)
		}
		if n := len(batch); n > 0 && batch[n-1].Kind == kind {
			batch[n-1].N += until - at
		} else if n == extentBatch {
			break
		} else {
			batch = append(batch, Extent{Off: at, N: until - at, Kind: kind})
		}
		at = until
	}
	return batch, nil
}
