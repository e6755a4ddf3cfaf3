package volume

import (
	"errors"
	"fmt"
	"slices"

	"torus/store"
)

// errHeld: a write that some copies lack still is in flight over one that is to
// be written anew.
var errHeld = errors.New("a write is in flight over one that was refused")

// errMore: another write was refused that the node may have.
var errMore = errors.New("it may have a write that was refused meanwhile")

// rewriteLost sees to the writes that ended in an error and that a node may have
// all the same, or may get late: their versions are of the present epoch, so no
// Adopt would take them back. Where no copy in sync has a higher version, what
// the copies have is written again, in a version that beats the late one
// everywhere. That waits for nothing that may be waiting for the node.
func (v *Volume) rewriteLost(n *node) error {
	v.copies.mu.Lock()
	lost := n.lost
	n.lost = nil
	v.copies.mu.Unlock()
	for len(lost) > 0 {
		s := &lost[0]
		stop, err := v.rewrite(s.off, min(s.end, s.off+pieceBytes), s.version)
		if err != nil {
			v.copies.mu.Lock()
			for _, s := range lost {
				n.mayHave(s)
			}
			v.copies.mu.Unlock()
			return fmt.Errorf("%v, which was refused, can't be undone: %w", s.version, err)
		}
		if s.off = stop; s.off == s.end {
			lost = lost[1:]
		}
	}
	return nil
}

// rewrite writes anew what of [off, end) has no higher version than lost, up to
// where the copies are others.
func (v *Volume) rewrite(off, end int64, lost store.Version) (stop int64, err error) {
	stop, copies, err := v.place.writeRun(off, end)
	if err != nil {
		return off, err
	}
	for _, id := range copies {
		n := v.place.node(id)
		w := n.view.Load()
		if n.target || w.state != inSync {
			continue
		}
		at := off
		for e, err := range w.at.replica.Extents(w.at.ctx, v.chain[0], off, stop-off, lost) {
			if err == nil && e.Off > at {
				err = v.again(at, e.Off)
			} else if err != nil {
				v.failed(n, w, err)
			}
			if err != nil {
				return off, err
			}
			at = e.End()
		}
		if at < stop {
			err = v.again(at, stop)
		}
		return stop, err
	}
	return off, errNoPeer
}

// again writes the pages [off, end) as they are, in a new version. What it reads
// must have all that is lower, and nothing that may be refused still.
func (v *Volume) again(off, end int64) error {
	version, err := v.flight.begin(off, end, unplanned)
	if err != nil {
		return err
	}
	defer v.flight.finish(off, end, version)
	// A merge may wait for a write that is held until the node is in sync. It gives way.
	if !v.flight.postpone(off, end, version) {
		return errHeld
	}
	p := alignedPages(int((end - off) / store.PageSize))
	from, err := v.readPages(off, p)
	if err != nil {
		return err
	}
	if v.flight.others(off, end, version) || !from.current() {
		return errHeld
	}
	s := newSender(v, span{off: off, end: end, version: version, gen: unplanned}, 0)
	s.min = 0
	defer s.release()
	for at := off; at < end; {
		next, f := sameKind(p[at-off:])
		if f == fillData {
			s.pages(at, at+next, p[at-off:][:next], f)
		} else {
			s.pages(at, at+next, nil, f)
		}
		at += next
	}
	err = s.flush()
	v.flush.answered.Add(1)
	return errors.Join(err, v.written(&change{n: end - off}))
}

// sameKind returns how many bytes of p are pages that are all zeroes, or all not,
// and how to write them: a page of zeroes need not be stored.
func sameKind(p []byte) (n int64, f fill) {
	empty := func(page []byte) bool { return !slices.ContainsFunc(page, func(b byte) bool { return b != 0 }) }
	first := empty(p[:store.PageSize])
	for n = store.PageSize; n < int64(len(p)) && empty(p[n:][:store.PageSize]) == first; n += store.PageSize {
	}
	if first {
		return n, fillHole
	}
	return n, fillData
}

// others reports whether a write that touches [off, end), and of which something may
// have been sent, is in flight, but for the one of version own.
func (f *flight) others(off, end int64, own store.Version) bool {
	return slices.ContainsFunc(f.touched(off, end), func(s *shard) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.ContainsFunc(s.writes, func(w span) bool {
			return w.off < end && off < w.end && w.version != own && !w.merging
		})
	})
}
