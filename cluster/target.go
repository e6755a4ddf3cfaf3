package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"torus/ring"
	"torus/store"
)

// AdvanceRing does what is to be done next so that a lineage lies where the present
// storage nodes say: nothing, or one step of a change of its ring, which it returns.
//
//	ring ≠ wanted          ──SetTarget──►   nodes that gain chunks are caught up with
//	they have them         ──FinishTarget──► the target is the ring
//	the target is in vain  ──AbortTarget──►  as before
//
// A target is in vain when the ring is what is wanted after all, or it has a node
// that no ring is built with any more. Otherwise it is finished first, also where another
// one is wanted by now. ErrTooFewNodes; ErrBusy, with what is waited for.
func (c *Cluster) AdvanceRing(ctx context.Context, id ring.LineageID) (RingStep, error) {
	step := RingStays
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		l, err := t.lineage(ctx, id)
		if err != nil {
			return err
		}
		step, err = t.nextStep(ctx, l)
		t.txn = Txn{} // only a look
		return err
	})
	if err == nil {
		switch step {
		case RingSet:
			_, err = c.SetTarget(ctx, id)
		case RingFinish:
			_, err = c.FinishTarget(ctx, id)
		case RingAbort:
			_, err = c.AbortTarget(ctx, id)
		}
	}
	return step, about("lineage "+id.String(), err)
}

// RingStep is a step of a change of a lineage's ring.
type RingStep string

// The steps.
const (
	RingStays  RingStep = "nothing"
	RingSet    RingStep = "target set"
	RingFinish RingStep = "target is the ring"
	RingAbort  RingStep = "target given up"
)

// nextStep says what is to be done about a lineage's ring. Without enough nodes a
// target that was set is finished still.
func (t *tx) nextStep(ctx context.Context, l Lineage) (RingStep, error) {
	from, err := t.ring(ctx, l)
	if err != nil {
		return RingStays, err
	}
	wanted, err := t.ringFor(ctx, from, l.Replicas)
	few := errors.Is(err, ErrTooFewNodes)
	if err != nil && !(few && l.Target != 0) {
		return RingStays, err
	}
	switch {
	case l.Target == 0 && wanted.Number == l.Ring:
		return RingStays, nil
	case l.Target == 0:
		return RingSet, nil
	case !few && wanted.Number == l.Ring:
		return RingAbort, nil
	}
	target, err := t.ringOf(ctx, l, l.Target)
	if err != nil {
		return RingStays, err
	}
	nodes, err := t.nodes(ctx)
	if err != nil {
		return RingStays, err
	}
	for _, id := range target.IDs() {
		i := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == id })
		if !few && (i < 0 || nodes[i].State != NodeActive) {
			return RingAbort, nil
		}
	}
	return RingFinish, nil
}

// SetTarget begins to move a lineage to the ring that the present storage nodes make
// for it, unless that is its ring, or it is moving already. In the same transaction
// every node that gains chunks is recorded to lack them, of every layer of the lineage
// (PROTOCOL.md, Ring change). It returns the lineage as it is then. ErrBusy while
// somebody has a volume of the lineage attached and has not told by which ring; who
// still took an earlier target for one would take its nodes for in sync. ErrTooFewNodes.
// ErrUnconfirmed after a recovery from records that may be older than a ring change:
// who gains chunks drops what it has of them, and that may be the only copy.
func (c *Cluster) SetTarget(ctx context.Context, id ring.LineageID) (l Lineage, err error) {
	err = c.transact(ctx, func(ctx context.Context, t *tx) error {
		if l, err = t.lineage(ctx, id); err != nil {
			return err
		}
		if l.Target != 0 {
			return nil // also by a run before, whose outcome was unknown
		}
		if err := t.confirmed(ctx); err != nil {
			return err
		}
		from, err := t.ring(ctx, l)
		if err != nil {
			return err
		}
		to, err := t.ringFor(ctx, from, l.Replicas)
		if err != nil || to.Number == l.Ring {
			return err
		}
		if err := t.allPlaced(ctx, l, false); err != nil {
			return err
		}
		l.Target = to.Number
		t.put(idKey(keyLineages, id), newLineageRecord(l))
		return t.joining(ctx, l, gains(from.Ring, to.Ring))
	})
	return l, about("lineage "+id.String(), err)
}

// AbortTarget gives a lineage's target up: nothing was read from what only that had.
// Without a target nothing is done.
func (c *Cluster) AbortTarget(ctx context.Context, id ring.LineageID) (l Lineage, err error) {
	err = c.transact(ctx, func(ctx context.Context, t *tx) error {
		if l, err = t.lineage(ctx, id); err != nil || l.Target == 0 {
			return err
		}
		if err := t.compared(ctx, l); err != nil {
			return err
		}
		if err := t.forgetTarget(ctx, l); err != nil {
			return err
		}
		l.Target = 0
		t.put(idKey(keyLineages, id), newLineageRecord(l))
		return nil
	})
	return l, about("lineage "+id.String(), err)
}

// compared makes it a condition that no volume of a lineage awaits the comparison of all
// its copies, as after a recovery: records that are older than the data do not say which
// of ring and target has it. ErrBusy; ErrUnconfirmed.
func (t *tx) compared(ctx context.Context, l Lineage) error {
	if err := t.confirmed(ctx); err != nil {
		return err
	}
	volumes, err := t.volumesOf(ctx, l.ID)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		var r uncomparedRecord
		switch awaited, err := t.get(ctx, idKey(keyUncompared, v.ID), &r); {
		case err != nil:
			return err
		case awaited:
			return fmt.Errorf("%w: the copies of volume %s are not compared yet", ErrBusy, v.Name)
		}
	}
	return nil
}

// forgetTarget deletes what is recorded of the copies that only the target has.
func (t *tx) forgetTarget(ctx context.Context, l Lineage) error {
	layers, err := t.layersOf(ctx, l.ID)
	if err != nil {
		return err
	}
	stale, err := listed(ctx, t, keyStale, decodeStale)
	if err != nil {
		return err
	}
	for k := range stale {
		if k.Target == l.Target && slices.Contains(layers, k.Layer) {
			t.delete(staleKey(k))
		}
	}
	return t.eachIncarnation(ctx, l, func(vol Volume, i Incarnation) error {
		if i.Target == l.Target {
			t.delete(incarnationKey(vol.ID, i.Node, i.Target))
		}
		return nil
	})
}

// eachIncarnation calls do with each one recorded for a volume of a lineage, and makes
// it a condition that there are no others.
func (t *tx) eachIncarnation(ctx context.Context, l Lineage, do func(Volume, Incarnation) error) error {
	volumes, err := t.volumesOf(ctx, l.ID)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		prefix := incarnationsOf(v.ID)
		pairs, err := t.list(ctx, prefix)
		if err != nil {
			return err
		}
		for _, p := range pairs {
			i, err := decodeIncarnation(p, prefix)
			if err == nil {
				err = do(v, i)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// volumesOf returns the volumes of a lineage, in the order of names, and makes it a
// condition that none is added or changed.
func (t *tx) volumesOf(ctx context.Context, id ring.LineageID) ([]Volume, error) {
	pairs, err := t.list(ctx, keyVolumes)
	if err != nil {
		return nil, err
	}
	var volumes []Volume
	for _, p := range pairs {
		_, v, err := decodeVolume(p)
		if err != nil {
			return nil, err
		}
		if v.Lineage == id {
			volumes = append(volumes, v)
		}
	}
	return volumes, nil
}

// gains returns the nodes to which a ring gives chunks that another does not, in order.
func gains(from, to *ring.Ring) []ring.NodeID {
	var nodes []ring.NodeID
	for p := range ring.Partitions {
		had := from.Partition(p)
		for _, n := range to.Partition(p) {
			if !slices.Contains(had, n) && !slices.Contains(nodes, n) {
				nodes = append(nodes, n)
			}
		}
	}
	slices.Sort(nodes)
	return nodes
}

// joining records that nodes lack what the target adds.
func (t *tx) joining(ctx context.Context, l Lineage, nodes []ring.NodeID) error {
	layers, err := t.layersOf(ctx, l.ID)
	if err != nil {
		return err
	}
	for _, layer := range layers {
		for _, n := range nodes {
			t.put(staleKey(StaleKey{layer, n, l.Target}), newStaleRecord(Stale{
				Fresh: true, Epoch: l.Epoch, At: t.c.wall(), Why: "it is to have chunks that it had not",
			}))
		}
	}
	return nil
}

// layersOf returns the layers of a lineage that are not deleted, in order, and makes it
// a condition that there are no others.
func (t *tx) layersOf(ctx context.Context, id ring.LineageID) ([]store.LayerID, error) {
	all, err := listed(ctx, t, keyLayers, decodeLayer)
	if err != nil {
		return nil, err
	}
	var layers []store.LayerID
	for _, l := range all {
		if l.Lineage == id && !l.Deleted {
			layers = append(layers, l.ID)
		}
	}
	slices.Sort(layers)
	return layers, nil
}

// Dropped records that a node has dropped, durably, what it had of the chunks that a
// target adds, and may be written to.
func (c *Cluster) Dropped(ctx context.Context, k StaleKey) error {
	return c.transact(ctx, func(ctx context.Context, t *tx) error {
		var r staleRecord
		found, err := t.get(ctx, staleKey(k), &r)
		if err == nil && found && r.Fresh {
			r.Fresh = false
			t.put(staleKey(k), &r)
		}
		return err
	})
}

// MayJoin reports whether a node has dropped what it had of the chunks that the
// attachment's target adds, and may be written to. It stays so.
func (a *Attachment) MayJoin(ctx context.Context, node ring.NodeID) (bool, error) {
	for _, layer := range a.Chain {
		var r staleRecord
		if _, err := a.c.read(ctx, staleKey(StaleKey{layer, node, a.Target.Number}), 0, &r); err != nil || r.Fresh {
			return false, err
		}
	}
	return true, nil
}

// Gains returns the nodes to which the target gives chunks that the ring does not, in
// order; none without a target.
func (a *Attachment) Gains() []ring.NodeID {
	if a.Target.Number == 0 {
		return nil
	}
	return gains(a.Ring.Ring, a.Target.Ring)
}

// TellPlaced records by which ring and target the holder places and reads: that
// writes go to both, and reads to none but these. It goes when the lease does.
func (a *Attachment) TellPlaced(ctx context.Context) error {
	want := &placedRecord{Epoch: a.Epoch, Ring: hexID(a.Ring.Number), Target: hexID(a.Target.Number)}
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		key := idKey(keyPlaced, v.ID)
		p, err := t.pair(ctx, key)
		if err == nil && (p.Lease != a.leaseNow().ID || string(p.Value) != string(encode(want))) {
			t.putLeased(key, want, a.leaseNow().ID)
		}
		return err
	}))
}

// FinishTarget makes a lineage's target its ring: when every chunk is in sync on it, and
// each volume of the lineage is held by somebody who writes to both, or was detached
// cleanly: who is cut off must not read by the old ring later on. ErrBusy, with what is
// waited for, until then. Without a target nothing is done.
func (c *Cluster) FinishTarget(ctx context.Context, id ring.LineageID) (l Lineage, err error) {
	err = c.transact(ctx, func(ctx context.Context, t *tx) error {
		if l, err = t.lineage(ctx, id); err != nil || l.Target == 0 {
			return err
		}
		if err := t.compared(ctx, l); err != nil {
			return err
		}
		from, err := t.ring(ctx, l)
		if err != nil {
			return err
		}
		target, err := t.ringOf(ctx, l, l.Target)
		if err != nil {
			return err
		}
		if err := t.allInSync(ctx, l, target); err != nil {
			return err
		}
		if err := t.allPlaced(ctx, l, true); err != nil {
			return err
		}
		if err := t.oneIncarnation(ctx, l, from); err != nil {
			return err
		}
		l.Ring, l.Target = l.Target, 0
		t.put(idKey(keyLineages, id), newLineageRecord(l))
		return nil
	})
	return l, about("lineage "+id.String(), err)
}

// oneIncarnation makes what is recorded of a node's copies by the target what is recorded
// of it by the ring. A node of both has all in one incarnation, or what it lost counts as
// there: ErrBusy until then.
func (t *tx) oneIncarnation(ctx context.Context, l Lineage, from Ring) error {
	byRing := map[store.VolumeID]map[ring.NodeID]Incarnation{}
	var byTarget []func() error
	err := t.eachIncarnation(ctx, l, func(v Volume, i Incarnation) error {
		switch {
		case i.Target == 0:
			if byRing[v.ID] == nil {
				byRing[v.ID] = map[ring.NodeID]Incarnation{}
			}
			byRing[v.ID][i.Node] = i
		case i.Target != l.Target:
		default:
			byTarget = append(byTarget, func() error {
				t.delete(incarnationKey(v.ID, i.Node, i.Target))
				i.Target = 0
				if have, is := byRing[v.ID][i.Node]; is && from.Has(i.Node) && have != i {
					return fmt.Errorf("%w: node %v was found in two incarnations", ErrBusy, i.Node)
				}
				t.put(incarnationKey(v.ID, i.Node, 0), newIncarnationRecord(i))
				return nil
			})
		}
		return nil
	})
	for _, move := range byTarget {
		if err == nil {
			err = move()
		}
	}
	return err
}

// allInSync makes it a condition that no node of the target lacks anything of a lineage.
// What others lack is forgotten with the ring.
func (t *tx) allInSync(ctx context.Context, l Lineage, target Ring) error {
	layers, err := t.layersOf(ctx, l.ID)
	if err != nil {
		return err
	}
	stale, err := listed(ctx, t, keyStale, decodeStale)
	if err != nil {
		return err
	}
	for k := range stale {
		switch {
		case !slices.Contains(layers, k.Layer):
		case target.Has(k.Node):
			return fmt.Errorf("%w: node %v lacks writes", ErrBusy, k.Node)
		default:
			t.delete(staleKey(k))
		}
	}
	return nil
}

// allPlaced makes it a condition that whoever has a volume of a lineage attached places
// by its ring and target; and, where clean is set, that those nobody has are clean.
func (t *tx) allPlaced(ctx context.Context, l Lineage, clean bool) error {
	volumes, err := t.volumesOf(ctx, l.ID)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := t.placed(ctx, l, v, clean); err != nil {
			return err
		}
	}
	return nil
}

// placed is allPlaced for one volume.
func (t *tx) placed(ctx context.Context, l Lineage, v Volume, clean bool) error {
	holder, err := t.attached(ctx, v.ID)
	if err != nil {
		return err
	}
	if holder == nil {
		if clean && !v.Clean {
			return fmt.Errorf("%w: volume %s was not detached cleanly", ErrBusy, v.Name)
		}
		return nil
	}
	var r placedRecord
	if _, err := t.get(ctx, idKey(keyPlaced, v.ID), &r); err != nil {
		return err
	}
	if r.Epoch != holder.Epoch || uint64(r.Ring) != l.Ring || uint64(r.Target) != l.Target {
		return fmt.Errorf("%w: %v has volume %s attached and does not write to both rings yet", ErrBusy, holder.Holder, v.Name)
	}
	return nil
}

type placedRecord struct {
	format
	Epoch  store.Epoch `json:"epoch"`
	Ring   hexID       `json:"ring"`
	Target hexID       `json:"target"`
}

func (r *placedRecord) check() error { return inRange("epoch", r.Epoch, 0, store.MaxEpoch) }
