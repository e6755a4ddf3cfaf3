package volume

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"torus/store"
)

// Scrubbed is what a scrub found, and how far it is.
type Scrubbed struct {
	Done, Total int64 // bytes of the volume's layers that were gone through, and that there are; all layers count as much as the volume
	Bytes       int64 // read, on all copies together
	Corrupt     int64 // pages that failed their checksum on some copy
	Unlike      int64 // pages of which copies had different versions that all should have had
	Lost        int64 // pages that are corrupt on every copy in sync: nothing is left to rewrite them from
}

// ScrubOptions says how to scrub. The zero value is a whole scrub.
type ScrubOptions struct {
	// Begun goes on where an earlier scrub of the volume, that told this, ended.
	Begun Scrubbed
	// Idle is asked before each piece whether to rest while clients are at work; nil:
	// no. What is not for idle time takes at most half of what clients leave.
	Idle func() bool
	// Tell is called now and then with what was found so far. It may be nil.
	Tell func(Scrubbed)
}

// scrubWorkers is how many pieces are scrubbed at a time while no client is at work.
const scrubWorkers = 2

// Scrub reads every page of every copy in sync, so that what a disk has lost is found
// while others have it, and compares versions: what should be durable everywhere, by
// the stable mark, must be alike. What is bad is rewritten from the copy with the
// highest sound version, some of it after Scrub has returned.
//
// Copies of a target are left out: each page of theirs was just compared, or will be.
//
// An error is that of ctx, or why the volume ended. Pages that are lost are no error
// here: they are logged, and are one to who reads them.
func (v *Volume) Scrub(ctx context.Context, o ScrubOptions) (Scrubbed, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(v.ctx, cancel)()
	s := &scrub{v: v, idle: o.Idle, mark: v.durable(), found: Scrubbed{Total: v.size * int64(len(v.chain))}}
	if o.Begun.Total == s.found.Total {
		s.found = o.Begun
	}
	for s.found.Done < s.found.Total {
		// From the base up: a layer that is added meanwhile is the last.
		i, off := s.found.Done/v.size, s.found.Done%v.size
		next, err := s.batch(ctx, v.chain[int64(len(v.chain))-1-i], off)
		if err != nil {
			return s.found, v.wrap("scrub", 0, -1, err)
		}
		s.found.Done = i*v.size + next
		if o.Tell != nil {
			o.Tell(s.found)
		}
	}
	return s.found, nil
}

// scrub is one under way.
type scrub struct {
	v    *Volume
	idle func() bool   // nil: never
	mark store.Version // up to it all copies in sync have the same, durably

	mu    sync.Mutex // guards found while pieces are under way
	found Scrubbed
}

// batch scrubs a layer from off on and returns up to where.
func (s *scrub) batch(ctx context.Context, layer store.LayerID, off int64) (next int64, err error) {
	pieces, next, err := s.list(ctx, layer, off)
	if err != nil {
		return off, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	buffers := sync.Pool{New: func() any { return new(pieceBuffer) }}
	parallel(len(pieces), scrubWorkers, func(i int) {
		b := buffers.Get().(*pieceBuffer)
		defer buffers.Put(b)
		if err := s.piece(ctx, layer, pieces[i], b); err != nil {
			cancel(err)
		}
	})
	return next, context.Cause(ctx)
}

// awaitIdle waits for as long as clients are at work, where that is asked for.
func (s *scrub) awaitIdle(ctx context.Context) error {
	for s.idle != nil && s.idle() && s.v.pace.clients(time.Now()) {
		if err := sleep(ctx, busyFor); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// errUnsettled: a copy has failed, and it is not known yet whether it is away.
var errUnsettled = errors.New("a copy does not answer")

// list returns the pieces of a layer from off on of which some copy in sync has data,
// and up to where it looked. As piece does it waits for copies that fail, or nothing
// would be listed where none is in sync.
func (s *scrub) list(ctx context.Context, layer store.LayerID, off int64) (pieces []piece, next int64, err error) {
	for {
		gen := s.v.copies.gen.Load()
		pieces, next, err := s.union(ctx, layer, off)
		var of *peerError
		switch {
		case errors.As(err, &of):
			s.v.failed(of.peer.node, of.peer.view, of.err)
		case !errors.Is(err, errUnsettled):
			return pieces, next, err
		}
		if err := s.await(ctx, gen); err != nil {
			return nil, off, err
		}
	}
}

// await is Volume.await that ends with ctx too.
func (s *scrub) await(ctx context.Context, gen uint64) error {
	c := &s.v.copies
	c.mu.Lock()
	changed, moved := c.changed, c.gen.Load() != gen
	c.mu.Unlock()
	if !moved {
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	if err := s.v.stopped(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (s *scrub) union(ctx context.Context, layer store.LayerID, off int64) (pieces []piece, next int64, err error) {
	size := s.v.size
	w := walk{at: off, end: size}
	for _, n := range s.v.place.nodes {
		if n.target {
			continue
		}
		p := peer{n, n.view.Load()}
		switch p.view.state {
		case inSync:
		case failing, pending:
			return nil, off, errUnsettled
		default:
			continue
		}
		pull, stop := iter.Pull2(p.view.at.replica.Extents(ctx, layer, off, size-off, 0))
		defer stop()
		named := func() (store.Extent, error, bool) {
			e, err, ok := pull()
			if err != nil && ctx.Err() == nil {
				err = &peerError{p, err}
			}
			return e, err, ok
		}
		w.cursors = append(w.cursors, cursor{next: named, now: store.Extent{Off: off - 1, N: 1}})
	}
	state := make([]store.Extent, len(w.cursors))
	for len(pieces) < compareBatch {
		from, end, err := w.next(state)
		if err != nil {
			return nil, off, err
		}
		if from == end {
			return pieces, size, nil
		}
		data := slices.ContainsFunc(state, func(e store.Extent) bool { return e.Kind == store.Data })
		for next = from; next < end; {
			stop, copies, err := s.v.place.writeRun(next, end)
			if err != nil {
				return nil, off, err
			}
			if data {
				pieces = piece{Extent: store.Extent{Off: next, N: stop - next}, from: copies}.asData(pieces, 0)
			}
			next = stop
		}
	}
	return pieces, next, nil
}

// copyRead is what one copy said of the pages of a piece.
type copyRead struct {
	node *node
	info []store.PageInfo
	bad  []bool // the page is corrupt
}

// piece has one piece read from each copy in sync, and compared. A copy that fails is
// waited for: while it is not known to be away it may have whole what no other has. Not
// with the pace's turn, which its resync needs.
func (s *scrub) piece(ctx context.Context, layer store.LayerID, p piece, b *pieceBuffer) error {
	var copies []copyRead
	for {
		if err := s.awaitIdle(ctx); err != nil {
			return err
		}
		gen, all := s.v.copies.gen.Load(), false
		err := s.v.pace.do(ctx, p.N, func() (err error) {
			copies, all, err = s.more(layer, p, copies, b)
			return err
		})
		if err != nil || all {
			return err
		}
		if err := s.await(ctx, gen); err != nil {
			return err
		}
	}
}

// more reads a piece from the copies in sync that are not among copies, and compares
// what is all.
func (s *scrub) more(layer store.LayerID, p piece, copies []copyRead, b *pieceBuffer) (now []copyRead, all bool, err error) {
	if err := s.v.enter(); err != nil {
		return copies, false, err
	}
	defer s.v.gate.leave()
	all = true
	for _, id := range p.from {
		n := s.v.place.node(id)
		if n.target || slices.ContainsFunc(copies, func(c copyRead) bool { return c.node == n }) {
			continue
		}
		switch w := n.view.Load(); w.state {
		case inSync:
			c := copyRead{n, make([]store.PageInfo, p.N/store.PageSize), make([]bool, p.N/store.PageSize)}
			if s.read(&c, w, layer, p, b) {
				copies = append(copies, c)
			} else {
				all = false
			}
		case failing, pending:
			all = false
		}
	}
	if all {
		s.compare(layer, p, copies, b)
	}
	return copies, all, s.v.stopped()
}

// read reads a piece from one copy, page by page where some page of it is corrupt. False
// if the node fails: then its tender sees to it.
func (s *scrub) read(c *copyRead, w *view, layer store.LayerID, p piece, b *pieceBuffer) bool {
	data, _ := b.of(p.N)
	err := s.v.readLayer(c.node, w, layer, p.Off, data, c.info)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return false
	}
	for i := range c.info {
		if err == nil {
			break
		}
		off := p.Off + int64(i)*store.PageSize
		err := s.v.readLayer(c.node, w, layer, off, data[:store.PageSize], c.info[i:i+1])
		if err != nil && !errors.Is(err, store.ErrCorrupt) {
			return false
		}
		if err != nil {
			s.v.log.Warn("scrub: corrupt page", "volume", s.v.id, "node", c.node.name, "off", off, "err", err)
			c.bad[i] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found.Bytes += p.N
	for _, bad := range c.bad {
		if bad {
			s.found.Corrupt++
		}
	}
	return true
}

// lost counts a page of which no sound copy is left.
func (s *scrub) lost(layer store.LayerID, off int64) {
	s.v.log.Error("scrub: no copy in sync has a page whole", "volume", s.v.id, "layer", layer, "off", off)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found.Lost++
}

// compare looks for pages that copies have in different versions, none of which is above
// the mark. A hole may have been forgotten.
func (s *scrub) compare(layer store.LayerID, p piece, copies []copyRead, b *pieceBuffer) {
	for i := range p.N / store.PageSize {
		var highest store.Version
		bad := 0
		for _, c := range copies {
			if c.bad[i] {
				bad++
			} else {
				highest = max(highest, c.info[i].Version)
			}
		}
		off := p.Off + i*store.PageSize
		if bad > 0 && bad == len(copies) {
			s.lost(layer, off)
			continue
		}
		for _, c := range copies {
			if c.bad[i] {
				s.v.heal(badPage{c.node, layer, off})
			}
		}
		if highest > s.mark {
			continue // perhaps in flight; another time
		}
		holes := !slices.ContainsFunc(copies, func(c copyRead) bool { return !c.bad[i] && c.info[i].Kind == store.Data })
		lacks := func(c copyRead) bool { return !c.bad[i] && !holes && c.info[i].Version != highest }
		if !slices.ContainsFunc(copies, lacks) || !s.still(layer, off, copies, i, b) {
			continue
		}
		for _, c := range copies {
			if !lacks(c) {
				continue
			}
			s.v.log.Error("scrub: a copy lacks what it should have", "volume", s.v.id, "node", c.node.name, "layer", layer,
				"off", off, "has", c.info[i].Version, "others", highest)
			s.v.heal(badPage{c.node, layer, off})
			s.mu.Lock()
			s.found.Unlike++
			s.mu.Unlock()
		}
	}
}

// still reports whether each copy says of a page what it said before. Then there was a
// moment when all did; otherwise one may have been read before, another after a write
// of which nothing shows, as it left a hole that is forgotten.
func (s *scrub) still(layer store.LayerID, off int64, copies []copyRead, i int64, b *pieceBuffer) bool {
	for _, c := range copies {
		if c.bad[i] {
			continue
		}
		w := c.node.view.Load()
		data, info := b.of(store.PageSize)
		if w.state != inSync || s.v.readLayer(c.node, w, layer, off, data, info) != nil || info[0] != c.info[i] {
			return false
		}
	}
	return true
}
