package volume

import (
	"errors"
	"fmt"
	"io"

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
	end := off + int64(len(p))
	var err error
	if off%store.PageSize == 0 && end%store.PageSize == 0 {
		err = v.readPages(off, p)
	} else {
		err = v.readParts(off, p)
	}
	if err != nil {
		return err
	}
	return v.confirm(pageFloor(off), pageCeil(end))
}

// confirm returns when what has just been read of [off, end) may be shown: when
// each write that may be in it is acknowledged (I6). One copy is no exception:
// that a page was read does not say that it is in the node's log yet, only the
// answer to its write does, and a crash between the two would take it back.
// Looking costs some 5 ns when nothing overlaps.
func (v *Volume) confirm(off, end int64) error {
	if v.flight.await(off, end, v.flight.given()) {
		v.counts.readWaits.Add(1)
	}
	// One of those writes may have stopped the volume, its pages being mixed.
	return v.stopped()
}

// readParts is readPages for any alignment: pages of which only a part is asked
// for go through a buffer.
func (v *Volume) readParts(off int64, p []byte) error {
	end := off + int64(len(p))
	first, last := pageFloor(off), pageCeil(end)
	e := newEdges()
	defer e.release()
	if span := last - first; span <= int64(len(e.buf)) {
		if err := v.readPages(first, e.buf[:span]); err != nil {
			return err
		}
		copy(p, e.buf[off-first:])
		return nil
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
	parallel(len(parts), maxCalls, func(i int) { parts[i].err = v.readPages(parts[i].off, parts[i].p) })
	copy(p[:middle-off], e.head()[off-first:])
	copy(p[rest-off:], e.tail())
	return firstError(parts)
}

// part is a piece of a read.
type part struct {
	off    int64
	p      []byte
	copies []ring.NodeID
	err    error
}

// firstError returns the first error among parts.
func firstError(parts []part) error {
	for i := range parts {
		if parts[i].err != nil {
			return parts[i].err
		}
	}
	return nil
}

// readPages fills p from the page boundary off on, whole pages.
func (v *Volume) readPages(off int64, p []byte) error {
	end := off + int64(len(p))
	stop, copies, err := v.place.readRun(off, min(end, off+store.MaxIO))
	if err != nil {
		return err
	}
	if stop == end {
		return v.readRun(off, p, copies)
	}
	parts := []part{{off: off, p: p[:stop-off], copies: copies}}
	for at := stop; at < end; at = stop {
		if stop, copies, err = v.place.readRun(at, min(end, at+store.MaxIO)); err != nil {
			return err
		}
		parts = append(parts, part{off: at, p: p[at-off : stop-off], copies: copies})
	}
	parallel(len(parts), maxCalls, func(i int) {
		parts[i].err = v.readRun(parts[i].off, parts[i].p, parts[i].copies)
	})
	return firstError(parts)
}

// readRun reads pages that lie on the same copies from the first in sync that has
// them sound. Where none is in sync it waits for one.
func (v *Volume) readRun(off int64, p []byte, copies []ring.NodeID) error {
	return v.ask(off, copies, func(at *attempt) error { return at.replica.Read(at.ctx, v.chain, off, p, nil) })
}

// ask asks the copies in sync, nearest first, until one answers.
func (v *Volume) ask(off int64, copies []ring.NodeID, ask func(at *attempt) error) error {
	for {
		gen := v.copies.gen.Load()
		var asked *node
		var w *view
		var err error
		for i, id := range copies {
			n := v.place.node(id)
			if w = n.view.Load(); w.state != inSync {
				continue
			}
			asked = n
			if err = ask(w.at); err == nil {
				return nil
			}
			others := 0
			for _, id := range copies[i+1:] {
				if v.place.node(id).view.Load().state == inSync {
					others++
				}
			}
			if err := v.readFailed(n, off, err, others); err != nil {
				return err
			}
		}
		if asked == nil || err != nil {
			if err := v.await(gen); err != nil {
				return err
			}
		}
	}
}

// readFailed deals with a failed read of one copy: nil if another is to be asked.
func (v *Volume) readFailed(n *node, off int64, cause error, others int) error {
	if err := v.stopped(); err != nil {
		return err // which is also why a call that was under way has ended
	}
	err := fmt.Errorf("node %v: %w", n.id, cause)
	switch afterRead(cause, others) {
	case tryAnother:
		// A page found corrupt will be repaired from here, with what the other
		// copy answers.
		v.counts.failovers.Add(1)
		if errors.Is(cause, store.ErrCorrupt) {
			v.log.Warn("corrupt page, reading another copy", "volume", v.id, "node", n.id, "off", off, "err", cause)
		}
		return nil
	case stopServing:
		return v.stop(err)
	}
	return err
}
