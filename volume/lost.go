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

// rewriteLost sees to the writes that ended in an error and that a node may have
// all the same, or may get late: their versions are of the present epoch, so no
// Adopt would take them back. Where no copy in sync has a higher version, what
// the copies have is written again, in a version that beats the late one
// everywhere. That waits for nothing that may be waiting for the node.
func (v *Volume) rewriteLost(n *node) error {
	v.copies.mu.Lock()
	lost := slices.Clone(n.lost)
	v.copies.mu.Unlock()
	for _, s := range lost {
		for off := s.off; off < s.end; {
			stop, err := v.rewrite(off, min(s.end, off+pieceBytes), s.version)
			if err != nil {
				return fmt.Errorf("%v, which was refused, can't be undone: %w", s.version, err)
			}
			off = stop
		}
	}
	v.copies.mu.Lock()
	n.lost = slices.Delete(n.lost, 0, len(lost))
	v.copies.mu.Unlock()
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
		if w.state != inSync {
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

// again writes the pages [off, end) as they are, in a new version.
func (v *Volume) again(off, end int64) error {
	gen := v.copies.gen.Load()
	version, err := v.flight.begin(off, end, gen)
	if err != nil {
		return err
	}
	defer v.flight.finish(off, end, version)
	if v.flight.touches(off, end, version-1) {
		return errHeld
	}
	p := alignedPages(int((end - off) / store.PageSize))
	if err := v.readPages(off, p); err != nil {
		return err
	}
	s := newSender(v, span{off, end, version, gen}, 0)
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

// touches reports whether a write up to version last that touches [off, end) is
// in flight.
func (f *flight) touches(off, end int64, last store.Version) bool {
	first, regions := off/regionSize, (end-1)/regionSize-off/regionSize+1
	shards := []*shard{&f.wide}
	for i := range min(regions, flightShards) {
		shards = append(shards, &f.shards[(first+i)%flightShards])
	}
	return slices.ContainsFunc(shards, func(s *shard) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.touches(off, end, last)
	})
}
