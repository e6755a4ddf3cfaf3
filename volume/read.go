package volume

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"torus/ring"
	"torus/store"
)

// ReadAt reads len(p) bytes at off, at any alignment; it implements io.ReaderAt.
// Fewer, with io.EOF, if the volume ends before; with any other error none. What
// was never written reads as zeroes. store.ErrCorrupt if no copy of a page is sound.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, v.wrap("read", off, int64(len(p)), fmt.Errorf("%w: negative offset %d", store.ErrInvalid, off))
	}
	n, short := int64(len(p)), false
	if rest := max(v.size-off, 0); n > rest {
		n, short = rest, true
	}
	if err := v.read(p[:n], off); err != nil {
		return 0, v.wrap("read", off, n, err)
	}
	v.counts.reads.Add(1)
	v.counts.bytesRead.Add(n)
	if short {
		return int(n), io.EOF
	}
	return int(n), nil
}

// read fills p from off on, all of it inside the volume.
func (v *Volume) read(p []byte, off int64) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.gate.leave()
	if len(p) == 0 {
		return nil
	}
	lapsed := v.held != nil && !v.held()
	end := off + int64(len(p))
	for {
		var from sources
		var err error
		if off%store.PageSize == 0 && end%store.PageSize == 0 {
			from, err = v.readPages(off, p)
		} else {
			from, err = v.readParts(off, p)
		}
		if err != nil {
			return err
		}
		if shown, err := v.confirm(pageFloor(off), pageCeil(end), from, lapsed); shown || err != nil {
			return err
		}
	}
}

// A source is the copy that answered a read, as it was when it was asked.
type source struct {
	node *node
	view *view
}

// current reports whether the copy has been what it was all the time.
func (s source) current() bool { return s.node.view.Load() == s.view }

// sources are where a read's pages come from; a read of one piece allocates none.
type sources struct {
	first source
	more  []source
}

// current is source.current of all.
func (s sources) current() bool {
	return s.first.current() && !slices.ContainsFunc(s.more, func(s source) bool { return !s.current() })
}

// confirm returns when what has just been read of [off, end) may be shown: when
// each write that may be in it is acknowledged (I6). One copy is no exception:
// that a page was read does not say that it is in the node's log yet, only the
// answer to its write does, and a crash between the two would take it back.
// Looking costs some 5 ns when nothing overlaps.
//
// It is not to be shown, but read again, where the state of a copy that it is from
// has changed: a write that was refused may be on a node that is away by now.
// lapsed: the lease had perhaps run out when the request arrived, so another holder
// may have fenced other copies than the one that answered (10/31251).
func (v *Volume) confirm(off, end int64, from sources, lapsed bool) (shown bool, err error) {
	if v.flight.await(off, end, v.flight.given()) {
		v.counts.readWaits.Add(1)
	}
	if lapsed {
		if err := v.askAll(off, end); err != nil {
			return false, err
		}
	}
	return from.current(), v.stopped()
}

// askAll returns when every copy of [off, end) that is not recorded stale has
// answered under our epoch.
func (v *Volume) askAll(off, end int64) error {
	for off < end {
		stop, copies, err := v.place.writeRun(off, end)
		if err != nil {
			return err
		}
		for {
			gen := v.copies.gen.Load()
			var failed atomic.Bool
			parallel(len(copies), maxCalls, func(i int) {
				n := v.place.node(copies[i])
				w := n.view.Load()
				switch w.state {
				case inSync, pending:
					var page [store.PageSize]byte
					err := w.at.replica.Read(w.at.ctx, v.chain[:1], off, page[:], nil)
					if err != nil && !errors.Is(err, store.ErrCorrupt) {
						v.failed(n, w, err)
						failed.Store(true)
					}
				case failing:
					failed.Store(true)
				}
			})
			if !failed.Load() {
				break
			}
			if err := v.await(gen); err != nil {
				return err
			}
		}
		off = stop
	}
	return nil
}

// readParts is readPages for any alignment: pages of which only a part is asked
// for go through a buffer.
func (v *Volume) readParts(off int64, p []byte) (sources, error) {
	end := off + int64(len(p))
	first, last := pageFloor(off), pageCeil(end)
	e := newEdges()
	defer e.release()
	if span := last - first; span <= int64(len(e.buf)) {
		from, err := v.readPages(first, e.buf[:span])
		copy(p, e.buf[off-first:])
		return from, err
	}
	middle, rest := pageCeil(off), pageFloor(end)
	var parts []part
	if middle > off {
		parts = append(parts, part{off: first, p: e.head()})
	}
	parts = append(parts, part{off: middle, p: p[middle-off : rest-off]})
	if rest < end {
		parts = append(parts, part{off: rest, p: e.tail()})
	}
	parallel(len(parts), maxCalls, func(i int) { parts[i].from, parts[i].err = v.readPages(parts[i].off, parts[i].p) })
	copy(p[:middle-off], e.head()[off-first:])
	copy(p[rest-off:], e.tail())
	return together(parts)
}

// part is a piece of a read.
type part struct {
	off    int64
	p      []byte
	copies []ring.NodeID
	from   sources
	err    error
}

// together returns where all parts come from, or the first error among them.
func together(parts []part) (sources, error) {
	from := parts[0].from
	for i := range parts {
		if parts[i].err != nil {
			return sources{}, parts[i].err
		}
		if i > 0 {
			from.more = append(append(from.more, parts[i].from.first), parts[i].from.more...)
		}
	}
	return from, nil
}

// readPages fills p from the page boundary off on, whole pages.
func (v *Volume) readPages(off int64, p []byte) (sources, error) {
	end := off + int64(len(p))
	stop, copies, err := v.place.readRun(off, min(end, off+store.MaxIO))
	if err != nil {
		return sources{}, err
	}
	if stop == end {
		return v.readRun(off, p, copies)
	}
	parts := []part{{off: off, p: p[:stop-off], copies: copies}}
	for at := stop; at < end; at = stop {
		if stop, copies, err = v.place.readRun(at, min(end, at+store.MaxIO)); err != nil {
			return sources{}, err
		}
		parts = append(parts, part{off: at, p: p[at-off : stop-off], copies: copies})
	}
	parallel(len(parts), maxCalls, func(i int) {
		parts[i].from, parts[i].err = v.readRun(parts[i].off, parts[i].p, parts[i].copies)
	})
	return together(parts)
}

// readRun reads pages that lie on the same copies from the first in sync that has
// them sound.
func (v *Volume) readRun(off int64, p []byte, copies []ring.NodeID) (sources, error) {
	from, err := v.fromCopies(off, copies, func(w *view) error {
		return w.at.replica.Read(w.at.ctx, v.chain, off, p, nil)
	})
	return sources{first: from}, err
}

// fromCopies asks the ring's copies in sync in turn, and waits while none is; it returns
// which one answered. Its error is that of a page corrupt on all of them, or why
// the volume has ended.
func (v *Volume) fromCopies(off int64, copies []ring.NodeID, ask func(w *view) error) (source, error) {
	for {
		gen := v.copies.gen.Load()
		var corrupt error
		waits := false
		for _, id := range copies {
			n := v.place.node(id)
			if n.target {
				break // so are all that follow
			}
			w := n.view.Load()
			if w.state != inSync {
				waits = waits || w.state == failing || w.state == pending
				continue
			}
			err := ask(w)
			if err == nil {
				return source{n, w}, nil
			}
			if err := v.stopped(); err != nil {
				return source{}, err // which is also why a call that was under way has ended
			}
			v.counts.failovers.Add(1)
			if errors.Is(err, store.ErrCorrupt) {
				v.corrupt(n, err)
				v.log.Warn("corrupt page, reading another copy", "volume", v.id, "node", n.name, "off", off, "err", err)
				corrupt = fmt.Errorf("node %s: %w", n.name, err)
				continue
			}
			v.failed(n, w, err)
			waits = true
		}
		if corrupt != nil && !waits {
			return source{}, corrupt
		}
		if err := v.await(gen); err != nil {
			return source{}, err
		}
	}
}
