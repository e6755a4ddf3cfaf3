package volume_test

import (
	"math/rand/v2"
	"sync"
	"time"

	"torus/ring"
	"torus/store"
	"torus/store/faultstore"
	"torus/store/memstore"
)

// A simNode is a machine with a disk, and a process that serves it while it is
// up. It keeps the replicas that were attached, as a server of store/remote
// does, and attaches those anew that its last process had.
type simNode struct {
	w  *world
	id ring.NodeID
	fs *faultstore.Store

	mu       sync.Mutex // guards all below
	disk     simDisk
	up       bool
	life     int // counts processes
	replicas map[store.Epoch]store.Replica
	lastCut  time.Duration // when it last lost power, or its disk; -1: never
}

// A simDisk is a disk and the identity of the store on it.
type simDisk struct {
	*memstore.Disk
	identity store.Identity
}

func newSimDisk(w *world, node ring.NodeID, n uint64) (simDisk, store.Store) {
	d := memstore.NewDisk(rand.New(rand.NewPCG(w.seed, uint64(node)+n<<32)))
	s := d.Open()
	st, err := s.Stat(w.t.Context())
	if err != nil {
		w.fail("node %d: %v", node, err)
	}
	return simDisk{d, st.Identity}, s
}

func newSimNode(w *world, id ring.NodeID) *simNode {
	n := &simNode{w: w, id: id, up: true, replicas: map[store.Epoch]store.Replica{}, lastCut: -1}
	var s store.Store
	n.disk, s = newSimDisk(w, id, 0)
	n.fs = faultstore.New(s, faultstore.Options{})
	return n
}

func (n *simNode) diskNow() simDisk {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.disk
}

// serve answers a message, with errDown if the process isn't there, or no
// longer when the request is done.
func (n *simNode) serve(m message) result {
	n.mu.Lock()
	up, life := n.up, n.life
	n.mu.Unlock()
	if !up {
		return result{err: errDown}
	}
	v, err := n.do(m)
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.up || n.life != life {
		return result{err: errDown}
	}
	return result{v, err}
}

func (n *simNode) do(m message) (any, error) {
	if m.ask != nil {
		return m.ask(n.fs)
	}
	r, err := n.replica(m)
	if err != nil {
		return nil, err
	}
	if r.Incarnation() != m.inc { // N2
		return nil, store.ErrIncarnation
	}
	return m.do(r)
}

// replica returns the attachment that a request names.
func (n *simNode) replica(m message) (store.Replica, error) {
	n.mu.Lock()
	r := n.replicas[m.epoch]
	n.mu.Unlock()
	if r != nil {
		return r, nil
	}
	if _, err := n.attach(n.fs, n.w.volume.ID, m.epoch); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.replicas[m.epoch], nil
}

func (n *simNode) attach(s store.Store, vol store.VolumeID, e store.Epoch) (any, error) {
	r, err := s.Attach(n.w.t.Context(), vol, e)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replicas[e] = r
	return r.Incarnation(), nil
}

// end ends the node's process, with power or without.
func (n *simNode) end(power bool) {
	n.mu.Lock()
	n.up, n.replicas = false, map[store.Epoch]store.Replica{}
	n.life++
	n.mu.Unlock()
	n.fs.Crash()
	disk := n.diskNow()
	disk.Kill()
	if power {
		return
	}
	n.mu.Lock()
	n.lastCut = n.w.now()
	n.mu.Unlock()
	disk.PowerCut()
	n.w.model.powerCut(n)
}

// swap puts an empty disk into a node that is down.
func (n *simNode) swap() {
	n.w.swaps++
	disk, s := newSimDisk(n.w, n.id, uint64(n.w.swaps))
	n.mu.Lock()
	n.disk, n.lastCut = disk, n.w.now()
	n.mu.Unlock()
	if err := s.Close(); err != nil {
		n.w.fail("node %d: %v", n.id, err)
	}
	n.w.model.powerCut(n)
}

// begin starts the node's process again.
func (n *simNode) begin() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.up {
		n.fs.Reopen(n.disk.Open())
		n.up = true
	}
}

// cutSince reports whether the node lost power at or after a time.
func (n *simNode) cutSince(t time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lastCut >= t
}

// fence returns the highest epoch that the disk knows.
func (n *simNode) fence() store.Epoch {
	for _, f := range n.diskNow().Fenced() {
		if f.Volume == n.w.volume.ID {
			return f.Epoch
		}
	}
	return 0
}
