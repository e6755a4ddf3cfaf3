package volume

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"torus/ring"
	"torus/store"
)

const (
	// pieceBytes is the most that one read of a resync asks for.
	pieceBytes = 1 << 20
	// compareBatch is how many differences are collected before they are dealt
	// with: no store's list is open while others are asked for pages.
	compareBatch = 4096
	// nearBytes is the most that is read in vain between two pages, which costs
	// less than a read of its own for the second.
	nearBytes = 4 * store.PageSize
	// loadPieces is the most pieces that are paced as one.
	loadPieces = 64
	// adopters is how many Adopts of one load are under way. A store logs those
	// that come together with one write: one after the other, pages that were
	// written at random came in at 15 MiB/s.
	adopters = 32
)

// errNoPeer: no copy in sync is left that a resync could bring pages from.
var errNoPeer = errors.New("no copy in sync to bring pages from")

// resync makes one node's copy of the layers equal to those in sync, chunk by
// chunk. The node is sent all writes meanwhile, and each is waited for; so what
// the lists do not show any more is on its way, and versions decide who wins:
// Adopt leaves a higher version of the present epoch alone, and a write replaces
// what an Adopt brought.
//
// What a peer lists may be a write that nobody acknowledged yet. It is in flight
// then, so it is sent to the node as well.
type resync struct {
	v        *Volume
	n        *node
	at       *attempt
	progress *progress

	mu    sync.Mutex // guards peers
	peers []peer     // by ID; those that fail are taken out
}

// peer is one of the ring's copies in sync, as it was when the resync began to use it.
type peer struct {
	*node
	view *view
}

// current reports whether the peer has been in sync all the time.
func (p peer) current() bool { return p.node.view.Load() == p.view }

// run brings one layer above since to what the peers have: first it counts, so
// that progress is known, then it copies.
func (r *resync) run(ctx context.Context, layer store.LayerID, since store.Version) error {
	c := &comparison{resync: r, layer: layer, since: since}
	for off := int64(0); off < r.v.size; {
		pieces, next, err := c.batch(ctx, off)
		if err != nil {
			return err
		}
		for _, p := range pieces {
			r.progress.total.Add(p.lacking())
		}
		off = next
	}
	r.progress.brings()
	for off := int64(0); off < r.v.size; {
		pieces, next, err := c.batch(ctx, off)
		if err == nil {
			err = c.bring(ctx, pieces)
		}
		if err != nil {
			return err
		}
		off = next
	}
	return nil
}

// comparison is the resync of one layer.
type comparison struct {
	*resync
	layer store.LayerID
	since store.Version
}

// piece is a run of pages that the node has not as its peers have them. Kind and
// Version are what a peer listed where that is one hole, whatever its length;
// else the pages are read, and N is at most pieceBytes.
type piece struct {
	store.Extent
	by   peer          // with a hole: whose it is
	from []ring.NodeID // the copies of its chunk
	gaps []gap         // in order: what of it is read in vain
}

// gap is a run of pages between two that the node lacks.
type gap struct{ off, end int64 }

// lacking returns how many bytes the node lacks.
func (p piece) lacking() int64 {
	n := p.N
	for _, g := range p.gaps {
		n -= g.end - g.off
	}
	return n
}

// batch lists what differs from off on, in order, and up to where it looked. A
// peer that fails is done without; without any left of some chunk it is errNoPeer.
func (c *comparison) batch(ctx context.Context, off int64) (pieces []piece, next int64, err error) {
	for {
		peers := c.inSync()
		if !c.suffice(peers) {
			return nil, off, errNoPeer
		}
		pieces, next, err = c.compare(ctx, peers, off)
		if err == nil && len(c.inSync()) < len(peers) {
			continue // one of them may have listed a write that was refused since
		}
		var of *peerError
		if !errors.As(err, &of) {
			return pieces, next, err
		}
		if err := c.lost(of); err != nil {
			return nil, off, err
		}
	}
}

// suffice reports whether each chunk of the node has a copy among peers: where
// nobody lists anything, nothing would seem to be lacking (N6).
func (r *resync) suffice(peers []peer) bool {
	has := func(id ring.NodeID) bool { return slices.ContainsFunc(peers, func(p peer) bool { return p.id == id }) }
	return !slices.ContainsFunc(r.v.copies.sets, func(set []ring.NodeID) bool {
		return slices.Contains(set, r.n.id) && !slices.ContainsFunc(set, has)
	})
}

// A peerError is what a copy in sync answered.
type peerError struct {
	peer peer
	err  error
}

// Error names the node before the cause.
func (e *peerError) Error() string { return fmt.Sprintf("node %s: %v", e.peer.name, e.err) }

// Unwrap returns the cause.
func (e *peerError) Unwrap() error { return e.err }

// lost goes on without a peer that failed, and has its own tender see to it. The
// error is that of the node itself, or of the volume, whose end is why.
func (r *resync) lost(e *peerError) error {
	if err := r.at.ctx.Err(); err != nil {
		return context.Cause(r.at.ctx)
	}
	r.v.failed(e.peer.node, e.peer.view, e.err)
	r.mu.Lock()
	r.peers = slices.DeleteFunc(slices.Clone(r.peers), func(p peer) bool { return p.node == e.peer.node })
	r.mu.Unlock()
	return r.v.stopped()
}

// inSync returns the peers that are so still, as they are now.
func (r *resync) inSync() []peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.peers), func(p peer) bool { return !p.current() })
}

// compare walks through what the node and its peers list, side by side.
func (c *comparison) compare(ctx context.Context, peers []peer, off int64) (pieces []piece, next int64, err error) {
	size := c.v.size
	list := func(at *attempt, wrap func(error) error) (cursor, func()) {
		next, stop := iter.Pull2(at.replica.Extents(ctx, c.layer, off, size-off, c.since))
		named := func() (store.Extent, error, bool) {
			e, err, ok := next()
			if err != nil {
				err = wrap(err)
			}
			return e, err, ok
		}
		return cursor{next: named, now: store.Extent{Off: off - 1, N: 1}}, stop
	}
	w := walk{at: off, end: size, cursors: make([]cursor, 1+len(peers))}
	own, stop := list(c.at, func(err error) error { return err })
	defer stop()
	w.cursors[0] = own
	for i, p := range peers {
		var stop func()
		w.cursors[1+i], stop = list(p.view.at, func(err error) error { return &peerError{p, err} })
		defer stop()
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
		for next = from; next < end; {
			stop, copies, err := c.v.place.writeRun(next, end)
			if err != nil {
				return nil, off, err
			}
			if p, err := c.differ(state, peers, copies); err != nil {
				return nil, off, err
			} else if p.N > 0 {
				p.Off, p.N = next, stop-next
				pieces = p.join(pieces)
			}
			next = stop
		}
	}
	return pieces, next, nil
}

// differ says what a run of pages lacks on the node, given what the lists say of
// it; N is 0 if nothing.
func (c *comparison) differ(state []store.Extent, peers []peer, copies []ring.NodeID) (piece, error) {
	if !slices.Contains(copies, c.n.id) {
		return piece{}, nil
	}
	for _, id := range copies {
		i := slices.IndexFunc(peers, func(p peer) bool { return p.id == id })
		if i < 0 {
			continue
		}
		n, p := state[0], state[1+i]
		switch wants(n, p, c.v.epoch) {
		case leave:
			return piece{}, nil
		case bring:
			if p.Kind == store.Hole {
				return piece{Extent: store.Extent{N: 1, Kind: store.Hole, Version: p.Version}, by: peers[i], from: copies}, nil
			}
		}
		return piece{Extent: store.Extent{N: 1, Kind: store.Data}, from: copies}, nil
	}
	return piece{}, errNoPeer
}

// join appends p to pieces, cut or joined so that one read can bring each.
func (p piece) join(pieces []piece) []piece {
	if p.Kind == store.Hole && p.N > store.PageSize {
		return append(pieces, p)
	}
	return p.asData(pieces, nearBytes)
}

// asData is join of what is to be read, whatever was listed, where up to near
// bytes between two pages are read in vain.
func (p piece) asData(pieces []piece, near int64) []piece {
	p.Kind, p.Version = store.Data, 0
	for p.N > 0 {
		if i := len(pieces) - 1; i >= 0 && pieces[i].takes(p, near) {
			last := &pieces[i]
			if last.End() < p.Off {
				last.gaps = append(last.gaps, gap{last.End(), p.Off})
			}
			n := min(p.N, last.Off+pieceBytes-p.Off)
			last.N = p.Off + n - last.Off
			p.Off, p.N = p.Off+n, p.N-n
			continue
		}
		cut := p
		cut.N = min(p.N, pieceBytes)
		pieces = append(pieces, cut)
		p.Off, p.N = p.Off+cut.N, p.N-cut.N
	}
	return pieces
}

// takes reports whether some of next, which is behind p, is to be read with it.
func (p *piece) takes(next piece, near int64) bool {
	return p.Kind == store.Data && next.Off-p.End() <= near && next.Off < p.Off+pieceBytes && slices.Equal(p.from, next.from)
}

// loads cuts pieces into what is brought, and paced, together: at most pieceBytes
// to be read, or one hole.
func loads(pieces []piece) [][]piece {
	var all [][]piece
	for len(pieces) > 0 {
		n, bytes := 1, pieces[0].N
		for n < min(len(pieces), loadPieces) && pieces[0].Kind == store.Data && pieces[n].Kind == store.Data && bytes+pieces[n].N <= pieceBytes {
			bytes += pieces[n].N
			n++
		}
		all, pieces = append(all, pieces[:n]), pieces[n:]
	}
	return all
}

// A load is what is brought to the node together.
type load struct {
	*comparison
	buffer *pieceBuffer
	slots  chan struct{} // holds one element for each call under way
}

// bring makes the node equal in all pieces, several loads at a time, until the
// first error.
func (c *comparison) bring(ctx context.Context, pieces []piece) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	buffers := sync.Pool{New: func() any { return new(pieceBuffer) }}
	all := loads(pieces)
	parallel(len(all), resyncWorkers, func(i int) {
		b := buffers.Get().(*pieceBuffer)
		defer buffers.Put(b)
		l := &load{comparison: c, buffer: b, slots: make(chan struct{}, adopters)}
		bytes := int64(0)
		for _, p := range all[i] {
			bytes += p.lacking()
		}
		if err := c.v.pace.do(ctx, bytes, func() error { return l.bring(ctx, all[i]) }); err != nil {
			cancel(err)
			return
		}
		c.progress.done.Add(bytes)
	})
	return context.Cause(ctx)
}

// bring makes the node equal in the pieces of one load.
func (l *load) bring(ctx context.Context, pieces []piece) error {
	errs, at := make([]error, len(pieces)), make([]int64, len(pieces))
	for i := range pieces[1:] {
		at[i+1] = at[i] + pieces[i].N
	}
	data, info := l.buffer.of(pieceBytes)
	parallel(len(pieces), adopters, func(i int) {
		errs[i] = l.piece(ctx, pieces[i], data[at[i]:], info[at[i]/store.PageSize:])
	})
	return errors.Join(errs...)
}

// piece makes the node equal to a peer in one piece.
func (l *load) piece(ctx context.Context, p piece, data []byte, info []store.PageInfo) error {
	if p.Kind == store.Hole {
		if p.by.current() {
			// As it was listed: what is written over it is sent to the node too.
			return l.adopt(ctx, p.Extent, nil)
		}
		for _, part := range p.asData(nil, 0) {
			if err := l.piece(ctx, part, data, info); err != nil {
				return err
			}
		}
		return nil
	}
	var corrupt error
	for _, id := range p.from {
		peer, is := l.peer(id)
		if !is {
			continue
		}
		err := l.read(ctx, peer, p, data, info)
		switch {
		case err == nil && !peer.current():
			// What it answered may be a write that was refused since.
		case err == nil:
			return l.adoptRuns(ctx, p, data, info)
		case errors.Is(err, store.ErrCorrupt):
			corrupt = err
			l.v.corrupt(peer.node, err)
			if p.N > store.PageSize {
				return l.pages(ctx, p, data, info)
			}
		default:
			if err := l.lost(&peerError{peer, err}); err != nil {
				return err
			}
		}
	}
	if corrupt != nil {
		// Not absent, and nothing that may be made up (N6): the copy stays stale.
		return fmt.Errorf("no sound copy of a page: %w", corrupt)
	}
	return errNoPeer
}

// peer returns the peer with that ID, if it is in sync.
func (r *resync) peer(id ring.NodeID) (peer, bool) {
	peers := r.inSync()
	if i := slices.IndexFunc(peers, func(p peer) bool { return p.id == id }); i >= 0 {
		return peers[i], true
	}
	return peer{}, false
}

// pages brings a piece page by page, so that each may come from another copy.
func (l *load) pages(ctx context.Context, p piece, data []byte, info []store.PageInfo) error {
	gaps := p.gaps
	for off := p.Off; off < p.End(); off += store.PageSize {
		if len(gaps) > 0 && off == gaps[0].off {
			off, gaps = gaps[0].end, gaps[1:]
		}
		page := p
		page.Off, page.N, page.gaps = off, store.PageSize, nil
		if err := l.piece(ctx, page, data, info); err != nil {
			return err
		}
	}
	return nil
}

// read reads a piece from a peer.
func (l *load) read(ctx context.Context, from peer, p piece, data []byte, info []store.PageInfo) error {
	l.slots <- struct{}{}
	defer func() { <-l.slots }()
	return from.view.at.replica.Read(ctx, []store.LayerID{l.layer}, p.Off, data[:p.N], info[:p.N/store.PageSize])
}

// adoptRuns has the node adopt what it lacks of what a peer answered, in runs of
// one kind and version.
func (l *load) adoptRuns(ctx context.Context, p piece, data []byte, info []store.PageInfo) error {
	var runs []store.Extent
	gaps := p.gaps
	for off := p.Off; off < p.End(); off += store.PageSize {
		if len(gaps) > 0 && off == gaps[0].off {
			off, gaps = gaps[0].end, gaps[1:]
		}
		is := info[(off-p.Off)/store.PageSize]
		if n := len(runs) - 1; n >= 0 && runs[n].End() == off && runs[n].Kind == is.Kind && runs[n].Version == is.Version {
			runs[n].N += store.PageSize
			continue
		}
		runs = append(runs, store.Extent{Off: off, N: store.PageSize, Kind: is.Kind, Version: is.Version})
	}
	errs := make([]error, len(runs))
	var failed atomic.Bool
	parallel(len(runs), adopters, func(i int) {
		e := runs[i]
		if failed.Load() {
			return
		}
		var bytes []byte
		if e.Kind == store.Data {
			bytes = data[e.Off-p.Off:][:e.N]
		}
		if errs[i] = l.adopt(ctx, e, bytes); errs[i] != nil {
			failed.Store(true)
		}
	})
	return errors.Join(errs...)
}

func (l *load) adopt(ctx context.Context, e store.Extent, p []byte) error {
	l.slots <- struct{}{}
	defer func() { <-l.slots }()
	return l.at.replica.Adopt(ctx, l.layer, e, p)
}
