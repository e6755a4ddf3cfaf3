package volume

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"torus/store"
)

// After the cluster's records were founded anew from older ones, nothing that they
// say of copies counts: the first attachment compares all copies of all pages
// (Options.CompareAll). What it goes by is on the nodes themselves:
//
//   - The fences. The records' epochs may be below those that nodes know, or equal to
//     one that a holder of the lost records still has. So each node is asked for its
//     fence before it gets ours: see notBelow.
//   - The marks. Only a copy in sync is told one. So of the copies of a chunk those with
//     the highest mark M have all that was acknowledged up to M, durably, and nothing
//     up to M is under way any more. What another copy has up to M, and they have not,
//     was never acknowledged, or was written over: it goes. Simply the highest version
//     of a page would bring back what a resync had taken back.
//   - Above M the highest version counts, as after any crash: what was acknowledged is
//     on every copy that was in sync then, whichever those are.
//
// Marks are made durable lazily, so M may be older than the last that was told: a
// write above it that was never acknowledged may come back where it had been taken
// back. A copy that is missing may be the only one that was in sync: so all are waited
// for, but those that an operator has given up, which are recorded stale.

// notBelow returns store.ErrFenced, with the epoch, if a node knows an epoch of the
// volume that is not below ours, from before. It is asked until it has answered once:
// what it knows afterwards may be ours.
func (a *attaching) notBelow(ctx context.Context, m *member) error {
	a.mu.Lock()
	asked := a.asked[m.on]
	a.mu.Unlock()
	if asked {
		return nil
	}
	s, err := a.v.dial(ctx, m.id)
	if err != nil {
		return err
	}
	for f, err := range s.Fences(ctx) {
		if err != nil {
			return err
		}
		if f.Volume == a.v.id && f.Epoch >= a.v.epoch {
			return &store.FencedError{Volume: a.v.id, Epoch: a.v.epoch, Recorded: f.Epoch}
		}
	}
	a.mu.Lock()
	a.asked[m.on] = true
	a.mu.Unlock()
	return nil
}

// survey asks a node what it has of the chain's layers.
func (a *attaching) survey(ctx context.Context, m *member) error {
	m.layers = make(map[store.LayerID]store.LayerInfo)
	for l, err := range m.attempt.store.Layers(ctx) {
		if err != nil {
			return err
		}
		if slices.Contains(a.v.chain, l.ID) {
			m.layers[l.ID] = l
		}
	}
	return nil
}

// haveAll returns ErrNoCopy if the volume was served, and some member does not know
// its head: what it had, maybe as the only one, is gone. A member that knows the head
// and has nothing may have been told of it by an attempt before this.
func (a *attaching) haveAll(members []*member) error {
	head := a.v.chain[0]
	served := a.o.Served || slices.ContainsFunc(members, func(m *member) bool {
		l := m.layers[head]
		return l.Stable > 0 || l.Bytes > 0
	})
	var errs []error
	for _, m := range members {
		if _, knows := m.layers[head]; served && !knows {
			errs = append(errs, fmt.Errorf("%w: node %s has nothing of the volume any more", ErrNoCopy, m.name))
		}
	}
	return errors.Join(errs...)
}

// compareAll brings all copies of all layers to one value.
func (a *attaching) compareAll(ctx context.Context, members []*member) error {
	for _, layer := range a.v.chain {
		c := &comparingAll{reconcile: newReconcile(a, members), marks: make([]store.Version, len(members))}
		c.layer = layer
		for i, m := range members {
			c.marks[i] = m.layers[layer].Stable
		}
		err := c.run(ctx)
		a.note(c.reconcile, members)
		if err != nil {
			return err
		}
	}
	return nil
}

// comparingAll is compareAll of one layer.
type comparingAll struct {
	*reconcile
	marks []store.Version // of members
}

// run repairs what differs, a batch at a time: no node's list is open while pages are
// brought.
func (c *comparingAll) run(ctx context.Context) error {
	for off := int64(0); off < c.v.size; {
		found, next, err := c.batch(ctx, off)
		if err != nil {
			return err
		}
		errs := make([]error, len(found))
		parallel(len(found), reconcilers, func(i int) {
			if ctx.Err() == nil {
				errs[i] = c.repair(ctx, found[i], new(pieceBuffer))
			} else {
				errs[i] = context.Cause(ctx)
			}
		})
		if err := errors.Join(errs...); err != nil {
			return err
		}
		off = next
	}
	return nil
}

// batch lists differences from off on, in order, and up to where it looked.
func (c *comparingAll) batch(ctx context.Context, off int64) (found []difference, next int64, err error) {
	size := c.v.size
	w := walk{at: off, end: size, cursors: make([]cursor, len(c.members))}
	for i, m := range c.members {
		next, stop := iter.Pull2(m.replica.Extents(ctx, c.layer, off, size-off, 0))
		defer stop()
		named := func() (store.Extent, error, bool) {
			e, err, ok := next()
			return e, c.a.blame(m.id, err), ok
		}
		w.cursors[i] = cursor{next: named, now: store.Extent{Off: off - 1, N: 1}}
	}
	state := make([]store.Extent, len(c.members))
	for len(found) < compareBatch {
		from, end, err := w.next(state)
		if err != nil || from == end {
			return found, size, err
		}
		for next = from; next < end; {
			stop, copies, err := c.v.place.writeRun(next, end)
			if err != nil {
				return nil, off, err
			}
			found = c.add(found, next, stop, state, c.among(copies))
			next = stop
		}
	}
	return found, next, nil
}

// add appends what differs in [off, end), data in pieces of up to reconcileBytes.
func (c *comparingAll) add(found []difference, off, end int64, state []store.Extent, among []int) []difference {
	copies, marks := make([]store.Extent, len(among)), make([]store.Version, len(among))
	for i, m := range among {
		copies[i], marks[i] = state[m], c.marks[m]
	}
	d := difference{Extent: rightful(copies, marks)}
	for i, m := range among {
		if same(copies[i], d.Extent) {
			d.have = append(d.have, c.members[m])
		} else {
			d.lack = append(d.lack, c.members[m])
		}
	}
	for d.Off = off; len(d.lack) > 0 && d.Off < end; d.Off += d.N {
		d.N = end - d.Off
		if d.Kind == store.Data {
			d.N = min(d.N, reconcileBytes)
		}
		found = append(found, d)
	}
	return found
}

// rightful returns which of the copies of a run of pages counts, or that none does:
// of those with the highest mark what they have, of the others only what is above it.
func rightful(copies []store.Extent, marks []store.Version) (e store.Extent) {
	mark := slices.Max(marks)
	for i, c := range copies {
		if (marks[i] == mark || c.Version > mark) && c.Version > e.Version {
			e = c
		}
	}
	return e
}
