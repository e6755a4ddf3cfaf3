package volume

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// flusher makes answered writes durable. Callers that come while a sync is under
// way share the one that begins after it.
type flusher struct {
	answered atomic.Uint64 // writes answered that are not durable by themselves
	synced   atomic.Uint64 // how many of them, in order of answering, are durable

	mu      sync.Mutex // guards running; held for no I/O
	running bool
	ended   sync.Cond

	dirty []dirty // of the sync that is running; kept for its memory
}

// dirty is a node with writes that are not durable.
type dirty struct {
	node   *node
	of     *dirtiness
	covers uint64 // of.answered when the sync began
	view   *view  // under which it is synced now; nil: it is not
}

func (f *flusher) init() { f.ended.L = &f.mu }

// Sync returns nil when all writes answered before the call are on stable
// storage of every copy (I3). It costs nothing when they are already.
func (v *Volume) Sync() error {
	if err := v.enter(); err != nil {
		return v.wrap("sync", 0, -1, err)
	}
	defer v.gate.leave()
	v.counts.flushes.Add(1)
	err := v.sync()
	if err == nil {
		err = v.awaitEnough()
	}
	return v.wrap("sync", 0, -1, err)
}

// awaitEnough returns when every chunk has min-copies copies in sync. To look at
// all of them is needed once a change.
func (v *Volume) awaitEnough() error {
	c := &v.copies
	for {
		gen := c.gen.Load()
		if c.enoughAt.Load() == gen+1 {
			return nil
		}
		c.mu.Lock()
		enough := c.enough(v.place.minCopies)
		if gen = c.gen.Load(); enough {
			c.enoughAt.Store(gen + 1)
		}
		c.mu.Unlock()
		if enough {
			return nil
		}
		if err := v.await(gen); err != nil {
			return err
		}
	}
}

// sync is Sync, also for the volume's own goroutines.
func (v *Volume) sync() error {
	f := &v.flush
	want := f.answered.Load()
	if f.synced.Load() >= want {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.synced.Load() < want {
		if err := v.stopped(); err != nil {
			return err
		}
		if f.running {
			f.ended.Wait()
			continue
		}
		f.running = true
		f.mu.Unlock()
		covers := f.answered.Load() // before any node begins
		err := v.syncNodes()
		f.mu.Lock()
		f.running = false
		if err == nil {
			f.synced.Store(covers)
		}
		f.ended.Broadcast()
	}
	return nil
}

// syncNodes syncs every node that has answered writes since its last sync, and
// returns when none of them is left but those that are away. What came to one
// that was caught up with meanwhile is durable since it was. Only one caller at a
// time.
func (v *Volume) syncNodes() error {
	f := &v.flush
	f.dirty = f.dirty[:0]
	for _, n := range v.place.nodes {
		w := n.view.Load()
		if w.state != failing && !w.state.flushed() {
			continue
		}
		if a := w.at.dirty.answered.Load(); a != w.at.dirty.synced {
			f.dirty = append(f.dirty, dirty{node: n, of: w.at.dirty, covers: a})
		}
	}
	for {
		gen := v.copies.gen.Load()
		again, waits := 0, false
		for i := range f.dirty {
			d := &f.dirty[i]
			d.view = nil
			switch w := d.node.view.Load(); {
			case w.at == nil || w.at.dirty != d.of || d.of.synced >= d.covers || w.state == catching:
			case w.state == failing:
				waits = true
			default:
				d.view = w
				again++
			}
		}
		switch {
		case again == 1:
			for i := range f.dirty {
				v.syncNode(&f.dirty[i])
			}
		case again > 1:
			parallel(len(f.dirty), maxCalls, func(i int) { v.syncNode(&v.flush.dirty[i]) })
		case !waits:
			return v.stopped()
		default:
			if err := v.await(gen); err != nil {
				return err
			}
		}
		if err := v.stopped(); err != nil {
			return err
		}
	}
}

// syncNode makes durable what a node had answered.
func (v *Volume) syncNode(d *dirty) {
	if d.view == nil {
		return
	}
	v.counts.syncs.Add(1)
	if err := d.view.at.replica.Sync(d.view.at.ctx); err != nil {
		v.failed(d.node, d.view, fmt.Errorf("sync: %w", err))
		return
	}
	d.of.synced = d.covers
}
