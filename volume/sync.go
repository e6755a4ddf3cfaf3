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
	*node
	covers uint64 // node.answered when the sync began
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
	return v.wrap("sync", 0, -1, v.sync())
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

// syncNodes syncs every node that has answered writes since its last sync. One
// that fails has another incarnation from now on and may have lost what it
// acknowledged (N2): the volume stops. Only one caller at a time.
func (v *Volume) syncNodes() error {
	nodes := v.flush.dirty[:0]
	for _, n := range v.place.nodes {
		if !n.view.Load().state.flushed() {
			continue
		}
		if a := n.view.Load().at.dirty.answered.Load(); a != n.view.Load().at.dirty.synced {
			nodes = append(nodes, dirty{n, a})
		}
	}
	v.flush.dirty = nodes
	if len(nodes) == 1 {
		return v.syncNode(nodes[0])
	}
	parallel(len(nodes), maxCalls, func(i int) { v.syncNode(v.flush.dirty[i]) })
	return v.stopped()
}

// syncNode makes durable what a node had answered, and stops the volume if it fails.
func (v *Volume) syncNode(n dirty) error {
	v.counts.syncs.Add(1)
	if err := n.view.Load().at.replica.Sync(v.ctx); err != nil {
		return v.stop(fmt.Errorf("node %v failed to sync: %w", n.id, err))
	}
	n.view.Load().at.dirty.synced = n.covers
	return nil
}
