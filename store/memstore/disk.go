// Package memstore keeps a page store in memory: the contract of package store
// at its plainest, and the disk of a machine for the tests of everything above.
//
// A Disk outlives the stores opened on it. A killed process loses nothing that
// was answered; a power cut takes any part of what was not synced, page by
// page, and gives the disk another incarnation. Fences, Create, Drop, Forget
// and FlagSync are durable when they return. Nothing is ever written to a real
// disk: the end of this process is the end of it all.
package memstore

import (
	"math/rand/v2"
	"sync"

	"torus/store"
)

// A Disk is what a machine's stores leave behind. Its methods may be called
// concurrently.
//
// Locks, outermost first: Store.life, fence.mu, Disk.mu, layer.mu. None of them
// is held while a caller's code runs.
type Disk struct {
	identity store.Identity

	mu          sync.RWMutex // guards all below, not what lies behind the pointers
	rng         *rand.Rand   // decides what a power cut takes; nil: nothing
	incarnation store.Incarnation
	layers      map[store.LayerID]*layer
	fences      map[store.VolumeID]*fence
	open        *Store // the process that has the disk, nil if none has
}

// NewDisk makes an empty disk. rng draws the identity, the incarnations and
// what a power cut takes; the disk uses it in NewDisk and PowerCut only, and
// the caller doesn't use it during these. With a nil rng the identity is
// random, every write is durable at once, and none of them allocates.
func NewDisk(rng *rand.Rand) *Disk {
	d := &Disk{
		rng:    rng,
		layers: make(map[store.LayerID]*layer),
		fences: make(map[store.VolumeID]*fence),
	}
	d.identity = store.Identity(d.draw())
	d.incarnation = store.Incarnation(d.draw())
	return d
}

// New makes an empty store on a disk of its own, for which every write is
// durable at once.
func New() *Store { return NewDisk(nil).Open() }

// Open starts a store on what the disk holds, as a new process would: what is
// there is synced before it is served (N5). A store that has the disk already
// is killed first.
func (d *Disk) Open() *Store {
	d.Kill()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.layers {
		l.sync()
	}
	d.open = &Store{disk: d, incarnation: d.incarnation}
	return d.open
}

// Kill ends the process that has the disk without warning: what it answered
// stays, its store and replicas return ErrClosed.
func (d *Disk) Kill() {
	d.mu.RLock()
	s := d.open
	d.mu.RUnlock()
	if s != nil {
		s.end()
	}
}

// PowerCut ends the process and takes any part of what was not synced, page by
// page. The disk then has another incarnation.
func (d *Disk) PowerCut() {
	d.Kill()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.incarnation = store.Incarnation(d.draw())
	if d.rng == nil {
		return
	}
	// In order of their IDs, so that one seed always takes the same pages.
	cut := newPowerCut(d.rng)
	for _, l := range d.layersInOrder() {
		l.powerCut(cut)
	}
}

// draw returns a random number that isn't zero. The caller holds mu, or is
// NewDisk.
func (d *Disk) draw() uint64 {
	for {
		n := rand.Uint64()
		if d.rng != nil {
			n = d.rng.Uint64()
		}
		if n != 0 {
			return n
		}
	}
}
