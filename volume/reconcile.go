package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"torus/ring"
	"torus/store"
)

const (
	// reconcilers is how many pieces are brought to copies at a time.
	reconcilers = 8
	// reconcileBytes is the most data of one piece: it lies in memory.
	reconcileBytes = 1 << 20
)

// reconcile brings the copies of the head, which an attachment that did not end
// cleanly may have left unequal, to one value: for each page the highest version
// that any of its copies has, be it data or a hole (I6, I7). What was
// acknowledged is on some copy, so it stays; what was not may stay or go, but
// alike everywhere. Nothing of it is durable yet.
//
// The sealed layers are equal: they were flushed on all copies before they were
// sealed, and have not changed since (I10).
//
// Stale copies are left out, and with them those that can't be reached, once each
// chunk has a whole one or all (Attach 4).
type reconcile struct {
	a       *attaching
	v       *Volume
	layer   store.LayerID
	members []*member
	byID    map[ring.NodeID]int // in members

	repaired atomic.Int64 // bytes brought to copies
	gone     atomic.Bool  // Found.UnflushedGone, for a corrupt page

	mu   sync.Mutex      // guards late
	late [][]ring.NodeID // who has what an Adopt brings that was not answered: it may arrive yet
}

// difference is a run of pages that not all copies have alike.
type difference struct {
	store.Extent           // as all copies are to have it
	have, lack   []*member // the copies that do and that don't, nearest first
}

func newReconcile(a *attaching, members []*member) *reconcile {
	r := &reconcile{a: a, v: a.v, layer: a.v.chain[0], members: members, byID: make(map[ring.NodeID]int, len(members))}
	for i, m := range members {
		r.byID[m.id] = i
	}
	return r
}

// run repairs all differences, several at a time, until the first error. What is
// under way then is not cut off: an Adopt without an answer would be a late one.
func (r *reconcile) run(ctx context.Context) error {
	going, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan difference)
	var workers sync.WaitGroup
	for range reconcilers {
		workers.Go(func() {
			var b pieceBuffer
			for d := range work {
				if going.Err() != nil {
					continue
				}
				if err := r.repair(ctx, d, &b); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := r.differences(func(d difference) bool {
		work <- d
		return going.Err() == nil
	})
	close(work)
	workers.Wait()
	if going.Err() != nil {
		return context.Cause(going)
	}
	return err
}

// differences yields them in order, data in pieces of up to reconcileBytes.
func (r *reconcile) differences(yield func(difference) bool) error {
	s := sweep{lists: make([][]store.Extent, len(r.members))}
	for i, m := range r.members {
		s.lists[i] = m.unstable
	}
	state := make([]store.Extent, len(r.members))
	for {
		off, end, ok := s.next(state)
		if !ok {
			return nil
		}
		for off < end {
			stop, copies, err := r.v.place.writeRun(off, end)
			if err != nil {
				return err
			}
			d := r.compare(state, r.among(copies))
			for d.Off = off; len(d.lack) > 0 && d.Off < stop; d.Off += d.N {
				d.N = stop - d.Off
				if d.Kind == store.Data {
					d.N = min(d.N, reconcileBytes)
				}
				if !yield(d) {
					return nil
				}
			}
			off = stop
		}
	}
}

// among returns which members a chunk's copies are, at least one (mayServe).
func (r *reconcile) among(copies []ring.NodeID) []int {
	var among []int
	for _, id := range copies {
		if i, is := r.byID[id]; is {
			among = append(among, i)
		}
	}
	return among
}

// compare says which of the members named lack the highest version that one has.
func (r *reconcile) compare(state []store.Extent, among []int) difference {
	has := make([]store.Extent, len(among))
	for i, m := range among {
		has[i] = state[m]
	}
	d := difference{Extent: highest(has)}
	for i, m := range among {
		if same(has[i], d.Extent) {
			d.have = append(d.have, r.members[m])
		} else {
			d.lack = append(d.lack, r.members[m])
		}
	}
	return d
}

// pieceBuffer has room for the data of one piece; made when first used.
type pieceBuffer struct {
	p    []byte
	info []store.PageInfo
}

func (b *pieceBuffer) of(n int64) ([]byte, []store.PageInfo) {
	if b.p == nil {
		b.p = alignedPages(reconcileBytes / store.PageSize)
		b.info = make([]store.PageInfo, reconcileBytes/store.PageSize)
	}
	return b.p[:n], b.info[:n/store.PageSize]
}

// repair brings one difference to the copies that lack it, and with it to those
// that turn out to have it corrupt. A page that can't be read anywhere is left
// as it is: it is an error when it is read, and no other page's (I9).
func (r *reconcile) repair(ctx context.Context, d difference, b *pieceBuffer) error {
	if d.Kind != store.Data {
		return r.adopt(ctx, d.Extent, nil, d.have, d.lack)
	}
	p, _ := b.of(d.N)
	corrupt := 0
	for _, m := range d.have {
		err := r.read(ctx, m, d.Extent, b)
		switch {
		case err == nil:
			return r.adopt(ctx, d.Extent, p, []*member{m}, append(d.have[:corrupt:corrupt], d.lack...))
		case !errors.Is(err, store.ErrCorrupt):
			return err
		}
		r.v.log.Warn("corrupt page, reading another copy", "volume", r.v.id, "err", err)
		corrupt++
	}
	if d.N == store.PageSize {
		return r.salvage(ctx, d, b)
	}
	for off := d.Off; off < d.End(); off += store.PageSize {
		page := d
		page.Off, page.N = off, store.PageSize
		if err := r.repair(ctx, page, b); err != nil {
			return err
		}
	}
	return nil
}

// read reads e from a copy that listed it.
func (r *reconcile) read(ctx context.Context, m *member, e store.Extent, b *pieceBuffer) error {
	p, info := b.of(e.N)
	if err := m.replica.Read(ctx, []store.LayerID{r.layer}, e.Off, p, info); err != nil {
		return r.a.blame(m.id, err)
	}
	for i := range info {
		if info[i].Kind != e.Kind || info[i].Version != e.Version {
			return r.a.blame(m.id, fmt.Errorf("lists %v, but has %v %v at %d", e,
				info[i].Kind, info[i].Version, e.Off+int64(i)*store.PageSize))
		}
	}
	return nil
}

// adopt brings e, which the members from have, to others.
func (r *reconcile) adopt(ctx context.Context, e store.Extent, p []byte, from, to []*member) error {
	errs := make([]error, len(to))
	parallel(len(to), maxCalls, func(i int) {
		if err := to[i].replica.Adopt(ctx, r.layer, e, p); err != nil {
			if !answered(err) {
				r.mayCome(from)
			}
			errs[i] = r.a.blame(to[i].id, err)
		}
	})
	r.repaired.Add(e.N * int64(len(to)))
	return errors.Join(errs...)
}

// mayCome notes an Adopt that was not answered, of what the members from have.
func (r *reconcile) mayCome(from []*member) {
	ids := make([]ring.NodeID, len(from))
	for i, m := range from {
		ids[i] = m.id
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.late = append(r.late, ids)
}

// answered reports whether an error is a node's own answer: the request is over.
func answered(err error) bool {
	for _, is := range []error{store.ErrIncarnation, store.ErrFenced, store.ErrFailed, store.ErrNoSpace, store.ErrInvalid, store.ErrUnknownLayer} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// salvage brings to all copies of a page, whose highest version is corrupt
// wherever it is, the highest that is sound.
func (r *reconcile) salvage(ctx context.Context, d difference, b *pieceBuffer) error {
	copies := append(d.have[:len(d.have):len(d.have)], d.lack...)
	answers := make([]answer, len(copies))
	p, info := b.of(store.PageSize)
	read := func(i int) error {
		err := copies[i].replica.Read(ctx, []store.LayerID{r.layer}, d.Off, p, info)
		answers[i] = answer{info[0], errors.Is(err, store.ErrCorrupt), copies[i].standing}
		if err != nil && !answers[i].corrupt {
			return r.a.blame(copies[i].id, err)
		}
		return nil
	}
	for i := range copies {
		if err := read(i); err != nil {
			return err
		}
	}
	take, gone := salvage(answers)
	if take < 0 {
		r.v.log.Error("page corrupt on every copy", "volume", r.v.id, "off", d.Off, "version", d.Version)
		return nil
	}
	if gone {
		r.gone.Store(true)
	}
	r.v.log.Warn("page corrupt in its highest version, taking an older one", "volume", r.v.id, "off", d.Off,
		"version", d.Version, "taken", answers[take].info.Version, "acknowledged", gone)
	if err := read(take); err != nil || answers[take].corrupt {
		return err
	}
	e := store.Extent{Off: d.Off, N: store.PageSize, Kind: info[0].Kind, Version: info[0].Version}
	if e.Kind != store.Data {
		p = nil
	}
	return r.adopt(ctx, e, p, copies[take:take+1], copies)
}
