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
	type dirty struct {
		*node
		answered uint64
	}
	var room [4]dirty
	nodes := room[:0]
	for _, n := range v.place.nodes {
		if a := n.answered.Load(); a != n.synced {
			nodes = append(nodes, dirty{n, a})
		}
	}
	if len(nodes) == 1 {
		return v.syncNode(nodes[0].node, nodes[0].answered)
	}
	parallel(len(nodes), maxCalls, func(i int) { v.syncNode(nodes[i].node, nodes[i].answered) })
	return v.stopped()
}

// syncNode makes durable what a node had answered, and stops the volume if it fails.
func (v *Volume) syncNode(n *node, answered uint64) error {
	v.counts.syncs.Add(1)
	if err := n.replica.Sync(v.ctx); err != nil {
		return v.stop(fmt.Errorf("node %v failed to sync: %w", n.id, err))
	}
	n.synced = answered
	return nil
}
