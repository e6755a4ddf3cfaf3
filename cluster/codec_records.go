package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"torus/ring"
	"torus/store"
)

// Each record as it is stored, with the two functions between it and the type
// that callers see. What the key says is not repeated in the value.

type infoRecord struct {
	format
	ID       ID        `json:"id"`
	Created  time.Time `json:"created"`
	Replicas int       `json:"replicas"`
}

func (r *infoRecord) check() error {
	if err := r.ID.check(); err != nil {
		return err
	}
	return inRange("replicas", r.Replicas, 1, MaxReplicas)
}

func (r *infoRecord) info() Info {
	return Info{ID: r.ID, Created: r.Created, Replicas: r.Replicas}
}

type addressesRecord struct {
	API    string `json:"api,omitempty"`
	Blocks string `json:"blocks,omitempty"`
	Client string `json:"client,omitempty"`
	Peer   string `json:"peer,omitempty"`
}

type nodeRecord struct {
	format
	Name      string          `json:"name"`
	Addresses addressesRecord `json:"addresses"`
	Zone      ring.Zone       `json:"zone"`
	Host      string          `json:"host"`
	Roles     []Role          `json:"roles"`
	Capacity  int64           `json:"capacity"`
	Identity  hexID           `json:"identity"`
	State     NodeState       `json:"state"`
	Share     int64           `json:"share,omitempty"`  // 0: capacity
	Weight    float64         `json:"weight,omitempty"` // 0: 1
	Placed    bool            `json:"placed,omitempty"`
}

func (r *nodeRecord) check() error { return r.node(0).check() }

func (r *nodeRecord) node(id ring.NodeID) Node {
	return Node{
		ID: id, Name: r.Name, Addresses: Addresses(r.Addresses), Zone: r.Zone, Host: r.Host,
		Roles: r.Roles, Capacity: r.Capacity, Identity: store.Identity(r.Identity), State: r.State,
		Share: cmp.Or(r.Share, r.Capacity), Weight: cmp.Or(r.Weight, 1), Placed: r.Placed,
	}
}

func newNodeRecord(n Node) *nodeRecord {
	if n.Weight == 1 {
		n.Weight = 0 // as in records that are older
	}
	return &nodeRecord{
		Name: n.Name, Addresses: addressesRecord(n.Addresses), Zone: n.Zone, Host: n.Host,
		Roles: n.Roles, Capacity: n.Capacity, Identity: hexID(n.Identity), State: n.State,
		Share: n.Share, Weight: n.Weight, Placed: n.Placed,
	}
}

type aliveRecord struct {
	format
	Used    int64  `json:"used"`
	Live    int64  `json:"live"`
	Corrupt int64  `json:"corrupt"`
	NoSpace bool   `json:"no_space"`
	Failed  string `json:"failed"`
}

func (r *aliveRecord) check() error { return nil }

func (r *aliveRecord) usage() Usage {
	return Usage{Used: r.Used, Live: r.Live, Corrupt: r.Corrupt, NoSpace: r.NoSpace, Failed: r.Failed}
}

func newAliveRecord(u Usage) *aliveRecord {
	return &aliveRecord{Used: u.Used, Live: u.Live, Corrupt: u.Corrupt, NoSpace: u.NoSpace, Failed: u.Failed}
}

type ringRecord struct {
	format
	Ring *ring.Ring `json:"ring"`
}

func (r *ringRecord) check() error {
	if r.Ring == nil {
		return fmt.Errorf("%w: no ring", ErrInvalid)
	}
	return nil // the rest was checked when it was decoded
}

func (r *ringRecord) ring(number uint64) Ring { return Ring{number, r.Ring} }

func newRingRecord(r Ring) *ringRecord { return &ringRecord{Ring: r.Ring} }

type lineageRecord struct {
	format
	Replicas  int         `json:"replicas"`
	MinCopies int         `json:"min_copies"`
	Epoch     store.Epoch `json:"epoch"`
	Ring      hexID       `json:"ring"`
	Target    hexID       `json:"target"`
}

func (r *lineageRecord) check() error {
	if r.Target != 0 && r.Target == r.Ring {
		return fmt.Errorf("ring and target are both %v", r.Ring)
	}
	if err := checkCopies(r.Replicas, r.MinCopies); err != nil {
		return err
	}
	return inRange("epoch", r.Epoch, 0, store.MaxEpoch)
}

func (r *lineageRecord) lineage(id ring.LineageID) Lineage {
	return Lineage{ID: id, Replicas: r.Replicas, MinCopies: r.MinCopies, Epoch: r.Epoch, Ring: uint64(r.Ring), Target: uint64(r.Target)}
}

func newLineageRecord(l Lineage) *lineageRecord {
	return &lineageRecord{Replicas: l.Replicas, MinCopies: l.MinCopies, Epoch: l.Epoch, Ring: hexID(l.Ring), Target: hexID(l.Target)}
}

type volumeRecord struct {
	format
	ID      hexID       `json:"id"`
	Size    int64       `json:"size"`
	Lineage hexID       `json:"lineage"`
	Head    hexID       `json:"head"`
	Clean   bool        `json:"clean"`
	Epoch   store.Epoch `json:"epoch"`
	Created time.Time   `json:"created"`
}

func (r *volumeRecord) check() error {
	if r.ID == 0 || r.Lineage == 0 || r.Head == 0 {
		return fmt.Errorf("id %v, lineage %v, head %v: none may be 0", r.ID, r.Lineage, r.Head)
	}
	if err := inRange("epoch", r.Epoch, 0, store.MaxEpoch); err != nil {
		return err
	}
	return checkSize(r.Size)
}

func (r *volumeRecord) volume(name string) Volume {
	return Volume{
		Name: name, ID: store.VolumeID(r.ID), Size: r.Size, Lineage: ring.LineageID(r.Lineage),
		Head: store.LayerID(r.Head), Clean: r.Clean, Epoch: r.Epoch, Created: r.Created,
	}
}

func newVolumeRecord(v Volume) *volumeRecord {
	return &volumeRecord{
		ID: hexID(v.ID), Size: v.Size, Lineage: hexID(v.Lineage), Head: hexID(v.Head),
		Clean: v.Clean, Epoch: v.Epoch, Created: v.Created,
	}
}

type layerRecord struct {
	format
	Lineage hexID   `json:"lineage"`
	Parent  hexID   `json:"parent"`
	Sealed  bool    `json:"sealed"`
	Deleted bool    `json:"deleted"`
	Forget  hexID   `json:"forget"`
	Pending []hexID `json:"pending,omitempty"`
}

func (r *layerRecord) check() error {
	if !r.Deleted && (r.Forget != 0 || len(r.Pending) != 0) {
		return fmt.Errorf("not deleted, but to be dropped by %v and with volume %v", r.Pending, r.Forget)
	}
	return checkIDs("pending", r.Pending)
}

func (r *layerRecord) layer(id store.LayerID) Layer {
	return Layer{
		ID: id, Lineage: ring.LineageID(r.Lineage), Parent: store.LayerID(r.Parent), Sealed: r.Sealed,
		Deleted: r.Deleted, Forget: store.VolumeID(r.Forget), Pending: convertIDs[ring.NodeID](r.Pending),
	}
}

func newLayerRecord(l Layer) *layerRecord {
	return &layerRecord{
		Lineage: hexID(l.Lineage), Parent: hexID(l.Parent), Sealed: l.Sealed,
		Deleted: l.Deleted, Forget: hexID(l.Forget), Pending: convertIDs[hexID](l.Pending),
	}
}

type holderRecord struct {
	Node         hexID  `json:"node"`
	Name         string `json:"name"`
	BootID       string `json:"boot_id"`
	PIDNamespace string `json:"pid_namespace"`
	PID          int    `json:"pid"`
	StartTime    uint64 `json:"start_time"`
}

func (h holderRecord) holder() Holder {
	return Holder{Node: ring.NodeID(h.Node), Name: h.Name, Process: Process{
		BootID: h.BootID, PIDNamespace: h.PIDNamespace, PID: h.PID, StartTime: h.StartTime,
	}}
}

func newHolderRecord(h Holder) holderRecord {
	return holderRecord{
		Node: hexID(h.Node), Name: h.Name, BootID: h.BootID,
		PIDNamespace: h.PIDNamespace, PID: h.PID, StartTime: h.StartTime,
	}
}

type attachedRecord struct {
	format
	Epoch   store.Epoch  `json:"epoch"`
	Holder  holderRecord `json:"holder"`
	Purpose Purpose      `json:"purpose"`
	Since   time.Time    `json:"since"`
}

func (r *attachedRecord) check() error {
	if r.Purpose != ForExport && r.Purpose != ForMaintenance {
		return fmt.Errorf("purpose %q", r.Purpose)
	}
	return inRange("epoch", r.Epoch, 1, store.MaxEpoch)
}

func (r *attachedRecord) attached(id store.VolumeID) Attached {
	return Attached{Volume: id, Epoch: r.Epoch, Purpose: r.Purpose, Since: r.Since, Holder: r.Holder.holder()}
}

func newAttachedRecord(a Attached) *attachedRecord {
	return &attachedRecord{Epoch: a.Epoch, Purpose: a.Purpose, Since: a.Since, Holder: newHolderRecord(a.Holder)}
}

type incarnationRecord struct {
	format
	Identity    hexID `json:"identity"`
	Incarnation hexID `json:"incarnation"`
}

func (r *incarnationRecord) check() error { return nil }

func (r *incarnationRecord) incarnation(node ring.NodeID, target uint64) Incarnation {
	return Incarnation{
		Node: node, Identity: store.Identity(r.Identity), Incarnation: store.Incarnation(r.Incarnation), Target: target,
	}
}

func newIncarnationRecord(i Incarnation) *incarnationRecord {
	return &incarnationRecord{Identity: hexID(i.Identity), Incarnation: hexID(i.Incarnation)}
}

// convertIDs turns IDs of one type into another.
func convertIDs[To, From ~uint64](ids []From) []To {
	if len(ids) == 0 {
		return nil
	}
	out := make([]To, len(ids))
	for i, id := range ids {
		out[i] = To(id)
	}
	return out
}

// checkIDs returns an error unless ids are in order, none twice.
func checkIDs(what string, ids []hexID) error {
	for i := 1; i < len(ids); i++ {
		if ids[i-1] >= ids[i] {
			return fmt.Errorf("%s %v: not in order", what, ids)
		}
	}
	return nil
}

// without returns ids without one of them.
func without(ids []ring.NodeID, id ring.NodeID) []ring.NodeID {
	return slices.DeleteFunc(slices.Clone(ids), func(have ring.NodeID) bool { return have == id })
}
