package cluster

import (
	"slices"
	"time"

	"torus/ring"
	"torus/store"
)

// ID names a cluster for ever: 16 hexadecimal digits, drawn at random.
type ID string

// Info is what holds for the whole cluster.
type Info struct {
	ID       ID
	Created  time.Time
	Replicas int // of volumes for which no number is given
	Recovery Recovery
}

// Role is what a node does.
type Role string

// The roles of a node.
const (
	RoleEtcd    Role = "etcd"    // may be a voter
	RoleStorage Role = "storage" // keeps replicas
	RoleNBD     Role = "nbd"     // exports volumes
)

// NodeState says what the ring makes of a node.
type NodeState string

// The states of a node.
const (
	NodeActive   NodeState = "active"
	NodeDraining NodeState = "draining" // no ring is built with it any more
	NodeOut      NodeState = "out"      // likewise: it was away too long; active again when it is back
)

// Addresses are where a node is reached, each HOST:PORT; empty where it does
// not listen.
type Addresses struct {
	API, Blocks, Client, Peer string
}

// Node is a member of the cluster.
type Node struct {
	ID        ring.NodeID
	Name      string
	Addresses Addresses
	Zone      ring.Zone
	Host      string // nodes with the same Host share a machine
	Roles     []Role
	Capacity  int64 // bytes for pages; 0 without storage
	Identity  store.Identity
	State     NodeState
	// Share is the node's weight in rings: its capacity as it was when it was last set,
	// times Weight. It follows the capacity only where that halves or doubles, as what
	// else lies on the disk changes it too, and each change moves data.
	Share int64
	// Weight is the node's part of the data, relative to its capacity: 1 is its share.
	Weight float64
	// Placed: an operator chose the zone, which counts before what the node says.
	Placed bool
}

// Has reports whether the node has a role.
func (n Node) Has(r Role) bool {
	for _, have := range n.Roles {
		if have == r {
			return true
		}
	}
	return false
}

// Usage is what a node says of itself while it lives. Sizes in bytes.
type Usage struct {
	Used, Live int64
	Corrupt    int64  // pages found corrupt
	NoSpace    bool   // writes are refused
	Failed     string // why it serves no blocks; empty while it does
}

// Ring says where the chunks of lineages lie. A number's ring never changes.
type Ring struct {
	Number uint64
	*ring.Ring
}

// Has reports whether a node is a member.
func (r Ring) Has(id ring.NodeID) bool { return slices.Contains(r.IDs(), id) }

// IDs returns the members, in order.
func (r Ring) IDs() []ring.NodeID {
	members := r.Members()
	ids := make([]ring.NodeID, len(members))
	for i, m := range members {
		ids[i] = m.ID
	}
	return ids
}

// Lineage is a volume with all its clones. Its record is never deleted, as it
// has the epoch counter.
type Lineage struct {
	ID        ring.LineageID
	Replicas  int
	MinCopies int
	Epoch     store.Epoch // the last one given out
	Ring      uint64      // its number
	Target    uint64      // of the ring that is to follow; 0: none
}

// Volume is a named block device.
type Volume struct {
	Name    string
	ID      store.VolumeID
	Size    int64 // bytes
	Lineage ring.LineageID
	Head    store.LayerID
	Clean   bool        // nothing has to be reconciled
	Epoch   store.Epoch // of its last attachment; 0: none yet
	Created time.Time
}

// Layer is the pages written to a volume between two snapshots. The record of
// a deleted one stays until every node that had it has confirmed the drop: it is
// the positive record that the pages are dead (I8).
type Layer struct {
	ID      store.LayerID
	Lineage ring.LineageID
	Parent  store.LayerID // 0: none
	Sealed  bool          // never changes again (I10)

	Deleted bool
	Forget  store.VolumeID // the volume that is gone with it; 0: none
	Pending []ring.NodeID  // nodes that have not confirmed, in order
}

// Incarnation is what a node had when the exporter of a volume last found it
// reconciled or resynced, and synced (N2, N3).
type Incarnation struct {
	Node        ring.NodeID
	Identity    store.Identity
	Incarnation store.Incarnation
	Target      uint64 // number of the target ring whose chunks it is about; 0: the lineage's ring
}

// Purpose says what a volume is attached for.
type Purpose string

// The purposes of an attachment.
const (
	ForExport      Purpose = "export"
	ForMaintenance Purpose = "maintenance" // given up at once when somebody wants it
)

// Attached is the record of an attachment, kept under a lease.
type Attached struct {
	Volume  store.VolumeID
	Epoch   store.Epoch
	Holder  Holder
	Purpose Purpose
	Since   time.Time
}
