package volume

import (
	"sync"
	"unsafe"

	"torus/store"
)

// WriteAt writes p at off, at any alignment; it implements io.WriterAt. Nil: p
// is on every copy and survives the end of any process; Sync makes it durable.
// p is the caller's again on return. A write that does not fit is ErrRange and
// writes nothing. store.ErrNoSpace: pages may have been written, each whole.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) { return v.write(p, off, 0) }

// WriteAtSync is WriteAt whose bytes are on stable storage of every copy when it
// returns nil (force unit access). Other writes are not covered.
func (v *Volume) WriteAtSync(p []byte, off int64) (int, error) {
	return v.write(p, off, store.FlagSync)
}

func (v *Volume) write(p []byte, off int64, flags store.Flags) (int, error) {
	err := v.change(change{off: off, n: int64(len(p)), p: p, fill: fillData, flags: flags})
	if err != nil {
		return 0, v.wrap("write", off, int64(len(p)), err)
	}
	v.counts.writes.Add(1)
	v.counts.bytesWritten.Add(int64(len(p)))
	return len(p), nil
}

// Trim makes n bytes at off read as zeroes and gives back their space: whole
// pages become holes, parts of pages at the edges are zeroed. fua: durable on
// return. Errors as of WriteAt.
func (v *Volume) Trim(off, n int64, fua bool) error {
	return v.zero("trim", change{off: off, n: n, fill: fillHole}, fua)
}

// Zero makes n bytes at off read as zeroes; with noHole by writing them, so that
// later writes there need no new space, else as Trim does. fua: durable on
// return. Errors as of WriteAt.
func (v *Volume) Zero(off, n int64, fua, noHole bool) error {
	fill := fillHole
	if noHole {
		fill = fillZeroes
	}
	return v.zero("zero", change{off: off, n: n, fill: fill}, fua)
}

func (v *Volume) zero(op string, c change, fua bool) error {
	if fua {
		c.flags |= store.FlagSync
	}
	if err := v.change(c); err != nil {
		return v.wrap(op, c.off, c.n, err)
	}
	v.counts.zeroes.Add(1)
	return nil
}

// fill says what a change puts into whole pages.
type fill uint8

const (
	fillData fill = iota
	fillHole
	fillZeroes
)

// change is a write of any kind: n bytes at off, at any alignment.
type change struct {
	off, n int64
	p      []byte // with fillData the n bytes, else nil
	fill   fill
	flags  store.Flags
}

// change carries out c: it has a version and is in flight from before the first
// copy is asked until it is settled.
func (v *Volume) change(c change) error {
	if err := v.enterWrite(c.off, c.n); err != nil {
		return err
	}
	defer v.gate.leave()
	if c.n == 0 {
		return nil
	}
	first, end := pageFloor(c.off), pageCeil(c.off+c.n)
	var id store.Version
	var err error
	if c.off == first && c.off+c.n == end {
		gen := v.copies.gen.Load()
		if id, err = v.flight.begin(first, end, gen); err != nil {
			return err
		}
		err = v.send(&c, span{off: first, end: end, version: id, gen: gen})
	} else {
		if id, err = v.flight.beginMerge(first, end); err != nil {
			return err
		}
		err = v.mergeAndSend(&c, first, end, id)
	}
	if c.flags&store.FlagSync == 0 {
		// Also after an error: some pages may have been applied, and a mark
		// that passes this version says that they are durable.
		v.flush.answered.Add(1)
	}
	v.flight.finish(first, end, id)
	if late := v.written(&c); err == nil {
		err = late
	}
	return err
}

// send brings c, which covers the pages of w, to all copies.
func (v *Volume) send(c *change, w span) error {
	s := newSender(v, w, c.flags)
	defer s.release()
	s.pages(w.off, w.end, c.p, c.fill)
	return s.flush()
}

// mergeAndSend is send for a change that covers some of the pages [first, end) in part.
func (v *Volume) mergeAndSend(c *change, first, end int64, id store.Version) error {
	e := newEdges()
	defer e.release()
	version, err := v.merge(c, first, end, id, e)
	if err != nil {
		return err
	}
	s := newSender(v, span{off: first, end: end, version: version, gen: unplanned}, c.flags)
	defer s.release()
	e.send(s, c, first, end)
	return s.flush()
}

// zeroes is what fillZeroes writes; never written to.
var zeroes = sync.OnceValue(func() []byte { return alignedPages(1 << 20 / store.PageSize) })

// alignedPages returns n zeroed pages at a page-aligned address.
func alignedPages(n int) []byte {
	b := make([]byte, (n+1)*store.PageSize)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (store.PageSize - 1)
	return b[skip : int(skip)+n*store.PageSize : int(skip)+n*store.PageSize]
}
