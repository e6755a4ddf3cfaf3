package volume

import (
	"sync"

	"torus/store"
)

// edges holds the pages of a change that it covers only in part, merged with
// what was there: the first and the last page, or the one that is both.
type edges struct{ buf []byte }

var edgesPool = sync.Pool{New: func() any { return &edges{alignedPages(2)} }}

func newEdges() *edges        { return edgesPool.Get().(*edges) }
func (e *edges) release()     { edgesPool.Put(e) }
func (e *edges) head() []byte { return e.buf[:store.PageSize] }
func (e *edges) tail() []byte { return e.buf[store.PageSize:] }

// merge reads the pages that c covers in part and lays c over them. c is in
// flight as id already, so that every write of the page is either lower
// and in what is read, or higher and, being a whole page or a merge that waits
// for this one, keeps or replaces what is written here. It returns the version that
// c is to be sent with.
func (v *Volume) merge(c *change, first, end int64, id store.Version, e *edges) (store.Version, error) {
	head, tail := c.off > first, c.off+c.n < end
	v.counts.merges.Add(1)
	for version := id; ; {
		if head || end-first == store.PageSize {
			if err := v.mergePage(c, first, version, e.head()); err != nil {
				return 0, err
			}
		}
		if tail && end-first > store.PageSize {
			if err := v.mergePage(c, end-store.PageSize, version, e.tail()); err != nil {
				return 0, err
			}
		}
		now := v.flight.sends(first, end, id, version)
		if now == version {
			return version, nil
		}
		version = now
	}
}

// mergePage fills buf with the page at off and lays over it what c has for it.
func (v *Volume) mergePage(c *change, off int64, version store.Version, buf []byte) error {
	v.flight.await(off, off+store.PageSize, version-1)
	// A lower write that just stopped the volume may be on some copies only.
	if err := v.stopped(); err != nil {
		return err
	}
	for shown := false; !shown; {
		from, err := v.readPages(off, buf)
		if err != nil {
			return err
		}
		shown = from.current() // or who answered may not have been in sync any more
	}
	from, to := max(c.off, off), min(c.off+c.n, off+store.PageSize)
	if c.fill == fillData {
		copy(buf[from-off:to-off], c.p[from-c.off:])
	} else {
		clear(buf[from-off : to-off])
	}
	return nil
}

// send queues the merged pages and the whole pages between them.
func (e *edges) send(s *sender, c *change, first, end int64) {
	if end-first == store.PageSize {
		s.pages(first, end, e.head(), fillData)
		return
	}
	middle, rest := first, end
	if c.off > first {
		middle += store.PageSize
	}
	if c.off+c.n < end {
		rest -= store.PageSize
	}
	if middle > first && rest < end && middle == rest {
		s.pages(first, end, e.buf, fillData)
		return
	}
	if middle > first {
		s.pages(first, middle, e.head(), fillData)
	}
	if middle < rest {
		var p []byte
		if c.fill == fillData {
			p = c.p[middle-c.off:][:rest-middle]
		}
		s.pages(middle, rest, p, c.fill)
	}
	if rest < end {
		s.pages(rest, end, e.tail(), fillData)
	}
}
