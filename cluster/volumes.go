package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"torus/ring"
	"torus/store"
)

// VolumeSpec is what a new volume shall be.
type VolumeSpec struct {
	Name      string
	Size      int64 // bytes: 4 KiB to 1 PiB, a multiple of 4096
	Replicas  int   // 0: the cluster's default
	MinCopies int   // 0: one less than Replicas, at least 1
}

// VolumeInfo is a volume with its policy and its holder.
type VolumeInfo struct {
	Volume
	Lineage  Lineage   // hides Volume.Lineage, which is Lineage.ID
	Attached *Attached // nil: nobody holds it
	Report   *Report   // of the holder; nil: there is none, or not yet
	Stale    []Stale   // of the head layer
	Scrub    Scrub
	Loss     *Loss // the newest; nil: there was none
}

// CreateVolume makes a volume with its lineage and head layer. ErrExists if
// the name is taken, ErrTooFewNodes if there are fewer storage nodes than copies.
func (c *Cluster) CreateVolume(ctx context.Context, spec VolumeSpec) (Volume, error) {
	spec, err := c.checkSpec(spec)
	if err != nil {
		return Volume{}, about(volumeNamed(spec.Name), err)
	}
	lineage := Lineage{ID: ring.LineageID(c.draw()), Replicas: spec.Replicas, MinCopies: spec.MinCopies}
	v := Volume{
		Name: spec.Name, ID: store.VolumeID(c.draw()), Size: spec.Size, Lineage: lineage.ID,
		Head: store.LayerID(c.draw()), Clean: true, Created: c.wall(),
	}
	err = c.transact(ctx, func(ctx context.Context, t *tx) error {
		var have volumeRecord
		found, err := t.get(ctx, keyVolumes+v.Name, &have)
		if err != nil {
			return err
		}
		if found && store.VolumeID(have.ID) == v.ID {
			return nil // done by a run before, whose outcome was unknown
		}
		if found {
			return ErrExists
		}
		r, err := t.ringFor(ctx, Ring{}, spec.Replicas)
		if err != nil {
			return err
		}
		lineage.Ring = r.Number
		if err := t.absent(ctx, idKey(keyLineages, lineage.ID), idKey(keyLayers, v.Head)); err != nil {
			return err
		}
		t.put(idKey(keyLineages, lineage.ID), newLineageRecord(lineage))
		t.put(idKey(keyLayers, v.Head), newLayerRecord(Layer{ID: v.Head, Lineage: lineage.ID}))
		t.put(keyVolumes+v.Name, newVolumeRecord(v))
		return nil
	})
	if err != nil {
		return Volume{}, about(volumeNamed(spec.Name), err)
	}
	return v, nil
}

// checkSpec fills in the defaults.
func (c *Cluster) checkSpec(s VolumeSpec) (VolumeSpec, error) {
	if err := CheckName(s.Name); err != nil {
		return s, err
	}
	if err := checkSize(s.Size); err != nil {
		return s, err
	}
	if s.Replicas == 0 {
		s.Replicas = c.info.Replicas
	}
	if s.MinCopies == 0 {
		s.MinCopies = defaultMinCopies(s.Replicas)
	}
	return s, checkCopies(s.Replicas, s.MinCopies)
}

// absent makes it a condition that there are no records with these keys.
func (t *tx) absent(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		p, err := t.pair(ctx, key)
		if err != nil {
			return err
		}
		if p.Mod != 0 {
			return fmt.Errorf("record %s: %w", key, ErrExists)
		}
	}
	return nil
}

// ringFor returns a ring of so many copies over the present storage nodes, and
// writes it if there is none yet: from's, if from serves them, otherwise one that moves
// as little as can be from the newest of so many copies, or from from. from may be the
// zero Ring.
func (t *tx) ringFor(ctx context.Context, from Ring, copies int) (Ring, error) {
	nodes, err := t.nodesKept(ctx)
	if err != nil {
		return Ring{}, err
	}
	members, err := members(nodes, copies)
	if err != nil {
		return Ring{}, err
	}
	if from.Ring != nil && from.Copies() == copies && sameMembers(from.Members(), members) {
		return from, nil
	}
	pairs, err := t.list(ctx, keyRings)
	if err != nil {
		return Ring{}, err
	}
	last, newest := uint64(0), from.Ring
	for _, p := range pairs { // in the order of numbers
		number, r, err := decodeRing(p)
		if err != nil {
			return Ring{}, err
		}
		last = number
		if r.Copies() != copies {
			continue
		}
		if newest = r.Ring; sameMembers(r.Members(), members) {
			return r, nil
		}
	}
	made, err := ring.New(copies, members, newest)
	if err != nil {
		return Ring{}, err
	}
	r := Ring{last + 1, made}
	t.put(idKey(keyRings, r.Number), newRingRecord(r))
	return r, nil
}

// sameMembers reports whether a ring of members a serves members b as well: the
// same nodes in the same places. Capacities differ a little at each start of a
// node, with what else lies on its disk.
func sameMembers(a, b []ring.Member) bool {
	return slices.EqualFunc(a, b, func(a, b ring.Member) bool {
		near := a.Weight/10*9 <= b.Weight && b.Weight/10*9 <= a.Weight
		return a.ID == b.ID && a.Zone == b.Zone && a.Host == b.Host && near
	})
}

// members returns the nodes that a ring of so many copies has, in order.
func members(nodes []Node, copies int) ([]ring.Member, error) {
	var members []ring.Member
	peer := "PEER"
	for _, n := range nodes {
		if n.Has(RoleStorage) && n.State == NodeActive {
			members = append(members, ring.Member{ID: n.ID, Weight: max(n.Share, 1), Zone: n.Zone, Host: n.Host})
		}
		if peer == "PEER" && n.Addresses.API != "" {
			peer = n.Addresses.API
		}
	}
	if len(members) >= copies {
		return members, nil
	}
	use := ""
	if len(members) > 0 {
		use = fmt.Sprintf(", or use --replicas %d", len(members))
	}
	need := fmt.Sprintf("%d replicas need %d storage nodes", copies, copies)
	if copies == 1 {
		need = "1 replica needs 1 storage node"
	}
	return nil, &tooFewNodesError{fmt.Sprintf("%s, the cluster has %d: add one with \"torus join %s\"%s", need, len(members), peer, use)}
}

// tooFewNodesError is ErrTooFewNodes in the words that help.
type tooFewNodesError struct{ text string }

func (e *tooFewNodesError) Error() string        { return e.text }
func (e *tooFewNodesError) Is(target error) bool { return target == ErrTooFewNodes }

// Rings returns all rings, in the order of their numbers.
func (c *Cluster) Rings(ctx context.Context) ([]Ring, error) {
	pairs, _, err := c.readAll(ctx, keyRings, 0)
	if err != nil {
		return nil, err
	}
	rings := make([]Ring, len(pairs))
	for i, p := range pairs {
		if _, rings[i], err = decodeRing(p); err != nil {
			return nil, err
		}
	}
	return rings, nil
}

func decodeRing(p Pair) (uint64, Ring, error) {
	var r ringRecord
	number, err := keyID[uint64](p.Key, keyRings)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return number, r.ring(number), err
}

// Volumes returns all volumes, in the order of their names.
func (c *Cluster) Volumes(ctx context.Context) ([]VolumeInfo, error) {
	pairs, rev, err := c.readAll(ctx, keyVolumes, 0)
	if err != nil {
		return nil, err
	}
	lineagePairs, _, err := c.readAll(ctx, keyLineages, rev)
	if err != nil {
		return nil, err
	}
	lineages, err := decodeAll(lineagePairs, decodeLineage)
	if err != nil {
		return nil, err
	}
	attachedPairs, _, err := c.readAll(ctx, keyAttachments, rev)
	if err != nil {
		return nil, err
	}
	attached, err := decodeAll(attachedPairs, decodeAttached)
	if err != nil {
		return nil, err
	}
	reportPairs, _, err := c.readAll(ctx, keyReports, rev)
	if err != nil {
		return nil, err
	}
	reports, err := decodeAll(reportPairs, decodeReport)
	if err != nil {
		return nil, err
	}
	stale, err := c.staleBelow(ctx, keyStale, rev)
	if err != nil {
		return nil, err
	}
	scrubPairs, _, err := c.readAll(ctx, keyScrubs, rev)
	if err != nil {
		return nil, err
	}
	scrubs, err := decodeAll(scrubPairs, decodeScrub)
	if err != nil {
		return nil, err
	}
	lossPairs, _, err := c.readAll(ctx, keyLosses, rev)
	if err != nil {
		return nil, err
	}
	losses, err := decodeAll(lossPairs, decodeLoss)
	if err != nil {
		return nil, err
	}
	infos := make([]VolumeInfo, 0, len(pairs))
	for _, p := range pairs {
		_, v, err := decodeVolume(p)
		if err != nil {
			return nil, err
		}
		info := VolumeInfo{Volume: v, Lineage: lineages[v.Lineage], Scrub: scrubs[v.ID]}
		if a, ok := attached[v.ID]; ok {
			info.Attached = &a
		}
		if r, ok := reports[v.ID]; ok {
			info.Report = &r
		}
		if l, ok := losses[v.ID]; ok {
			info.Loss = &l
		}
		for _, s := range stale {
			if s.Layer == v.Head {
				info.Stale = append(info.Stale, s)
			}
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Volume returns the volume with a name. ErrNotFound if there is none.
func (c *Cluster) Volume(ctx context.Context, name string) (VolumeInfo, error) {
	info, err := c.volume(ctx, name)
	return info, about(volumeNamed(name), err)
}

func (c *Cluster) volume(ctx context.Context, name string) (info VolumeInfo, err error) {
	if err := CheckName(name); err != nil {
		return info, err
	}
	var r volumeRecord
	found, err := c.read(ctx, keyVolumes+name, 0, &r)
	if err != nil {
		return info, err
	}
	if !found {
		return info, ErrNotFound
	}
	info.Volume = r.volume(name)
	var l lineageRecord
	if _, err := c.read(ctx, idKey(keyLineages, info.Volume.Lineage), 0, &l); err != nil {
		return info, err
	}
	info.Lineage = l.lineage(info.Volume.Lineage)
	var a attachedRecord
	found, err = c.read(ctx, idKey(keyAttachments, info.ID), 0, &a)
	if found {
		attached := a.attached(info.ID)
		info.Attached = &attached
	}
	if err != nil {
		return info, err
	}
	var told reportRecord
	found, err = c.read(ctx, idKey(keyReports, info.ID), 0, &told)
	if found {
		report := told.report()
		info.Report = &report
	}
	if err != nil {
		return info, err
	}
	if info.Stale, err = c.staleBelow(ctx, staleLayer(info.Head), 0); err != nil {
		return info, err
	}
	var scrub scrubRecord
	if _, err = c.read(ctx, idKey(keyScrubs, info.ID), 0, &scrub); err != nil {
		return info, err
	}
	info.Scrub = scrub.scrub()
	var loss lossRecord
	found, err = c.read(ctx, idKey(keyLosses, info.ID), 0, &loss)
	if found {
		info.Loss = &Loss{loss.Epoch, loss.At}
	}
	return info, err
}

func decodeVolume(p Pair) (string, Volume, error) {
	var r volumeRecord
	name := strings.TrimPrefix(p.Key, keyVolumes)
	err := decode(p.Key, p.Value, &r)
	return name, r.volume(name), err
}

func decodeLineage(p Pair) (ring.LineageID, Lineage, error) {
	var r lineageRecord
	id, err := keyID[ring.LineageID](p.Key, keyLineages)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.lineage(id), err
}

func decodeAttached(p Pair) (store.VolumeID, Attached, error) {
	var r attachedRecord
	id, err := keyID[store.VolumeID](p.Key, keyAttachments)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.attached(id), err
}

// volume reads a volume by name. ErrNotFound if there is none.
func (t *tx) volume(ctx context.Context, name string) (Volume, error) {
	var r volumeRecord
	found, err := t.get(ctx, keyVolumes+name, &r)
	if err == nil && !found {
		err = ErrNotFound
	}
	return r.volume(name), err
}

// attached reads who holds a volume; nil for nobody.
func (t *tx) attached(ctx context.Context, id store.VolumeID) (*Attached, error) {
	a, _, err := t.attachedUnder(ctx, id)
	return a, err
}

// attachedUnder reads who holds a volume, and under which lease.
func (t *tx) attachedUnder(ctx context.Context, id store.VolumeID) (*Attached, LeaseID, error) {
	var r attachedRecord
	p, err := t.pair(ctx, idKey(keyAttachments, id))
	if err != nil || p.Mod == 0 {
		return nil, 0, err
	}
	if err := decode(p.Key, p.Value, &r); err != nil {
		return nil, 0, err
	}
	a := r.attached(id)
	return &a, p.Lease, nil
}

// lineage reads a lineage, which must be there.
func (t *tx) lineage(ctx context.Context, id ring.LineageID) (Lineage, error) {
	var r lineageRecord
	key := idKey(keyLineages, id)
	found, err := t.get(ctx, key, &r)
	if err == nil && !found {
		err = corrupt(key, "missing, although a volume names it")
	}
	return r.lineage(id), err
}
