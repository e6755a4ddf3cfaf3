package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"torus/store"
)

// ErrRecovered: the records were founded anew since, or are those from before that.
var ErrRecovered = errors.New("the cluster's records are of another recovery")

// Recovery names a founding anew of a cluster's records, after they were lost; the
// zero Recovery is the first founding. Nodes keep to one until an operator has them
// follow another, so that two sets of records never serve the same cluster.
type Recovery struct {
	Number uint32 // counts from 1
	ID     uint64 // drawn at random, as two operators may recover at the same time
}

// String returns NUMBER-ID, the ID in hexadecimal; empty for the zero Recovery.
func (r Recovery) String() string {
	if r == (Recovery{}) {
		return ""
	}
	return fmt.Sprintf("%d-%v", r.Number, hexID(r.ID))
}

// MarshalText implements encoding.TextMarshaler.
func (r Recovery) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Only what String returns is taken.
func (r *Recovery) UnmarshalText(text []byte) error {
	*r = Recovery{}
	if len(text) == 0 {
		return nil
	}
	number, id, _ := strings.Cut(string(text), "-")
	n, err := strconv.ParseUint(number, 10, 32)
	var h hexID
	if err == nil {
		err = h.UnmarshalText([]byte(id))
	}
	if *r = (Recovery{uint32(n), uint64(h)}); err != nil || r.String() != string(text) {
		return fmt.Errorf("%q is not a recovery, NUMBER-ID", text)
	}
	return nil
}

// Recovered is what is known of the recovery that the records stem from.
type Recovered struct {
	Recovery
	At        time.Time
	Node      string // on which the records were founded anew
	From      string // where they were taken from
	Confirmed bool   // by an operator: data that is recorded as dead may be collected (I8)
}

// Recovered returns of which recovery the records are; zero if they were never lost.
func (c *Cluster) Recovered(ctx context.Context) (Recovered, error) {
	var r recoveryRecord
	_, err := c.read(ctx, keyRecovery, 0, &r)
	return r.recovered(), err
}

// CheckRecovery returns ErrRecovered if the records are no longer those that c was
// opened on: etcd has been founded anew, and clients find it at the same addresses.
func (c *Cluster) CheckRecovery(ctx context.Context) error {
	now, err := c.Recovered(ctx)
	if err == nil {
		err = sameRecovery(now.Recovery, c.info.Recovery)
	}
	return err
}

func sameRecovery(is, was Recovery) error {
	if is == was {
		return nil
	}
	name := func(r Recovery) string {
		if r == (Recovery{}) {
			return "the first founding"
		}
		return "recovery " + r.String()
	}
	return fmt.Errorf("%w: they are of %s, and not of %s", ErrRecovered, name(is), name(was))
}

// sameRecords is CheckRecovery as a condition of a transaction.
func (t *tx) sameRecords(ctx context.Context) error {
	var r recoveryRecord
	if _, err := t.get(ctx, keyRecovery, &r); err != nil {
		return err
	}
	return sameRecovery(r.Recovery, t.c.info.Recovery)
}

// ErrUnconfirmed: nothing may be collected before an operator has confirmed the
// recovery of the records.
var ErrUnconfirmed = errors.New("the recovery of the cluster's records is not confirmed")

// MayCollect returns nil if data that the records say is dead may be dropped (I8):
// not before the operator has confirmed a recovery, as the records may have been those
// of another time, or place, than was meant.
func (c *Cluster) MayCollect(ctx context.Context) error {
	is, err := c.Recovered(ctx)
	if err == nil {
		err = sameRecovery(is.Recovery, c.info.Recovery)
	}
	if err == nil && is.Recovery != (Recovery{}) && !is.Confirmed {
		err = ErrUnconfirmed
	}
	return err
}

// confirmed makes it a condition that MayCollect would return nil.
func (t *tx) confirmed(ctx context.Context) error {
	var r recoveryRecord
	if found, err := t.get(ctx, keyRecovery, &r); err != nil || !found || r.Confirmed {
		return err
	}
	return ErrUnconfirmed
}

// ConfirmRecovery records that the operator is content with what was recovered:
// what is recorded as dead is collected again (I8).
func (c *Cluster) ConfirmRecovery(ctx context.Context) error {
	return c.transact(ctx, func(ctx context.Context, t *tx) error {
		var r recoveryRecord
		found, err := t.get(ctx, keyRecovery, &r)
		if err != nil || r.Confirmed {
			return err
		}
		if !found {
			return fmt.Errorf("recovery: %w: the records were never lost", ErrNotFound)
		}
		r.Confirmed = true
		t.put(keyRecovery, &r)
		return nil
	})
}

// Uncompared returns the volumes that nobody has attached since the records were
// founded anew, by name: their copies have not been compared yet.
func (c *Cluster) Uncompared(ctx context.Context) ([]string, error) {
	pairs, rev, err := c.readAll(ctx, keyUncompared, 0)
	if err != nil || len(pairs) == 0 {
		return nil, err
	}
	volumes, _, err := c.readAll(ctx, keyVolumes, rev)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range volumes {
		name, v, err := decodeVolume(p)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(pairs, func(p Pair) bool { return p.Key == idKey(keyUncompared, v.ID) }) {
			names = append(names, name)
		}
	}
	return names, nil
}

// GiveUpCopies records that a node's copies of all volumes that are still to be
// compared have nothing: the first attachment goes on without them, and what only
// they had is gone. The names of the volumes are returned.
func (c *Cluster) GiveUpCopies(ctx context.Context, node string) (names []string, err error) {
	err = c.transact(ctx, func(ctx context.Context, t *tx) error {
		names, err = t.giveUp(ctx, node)
		return err
	})
	return names, about(nodeNamed(node), err)
}

func (t *tx) giveUp(ctx context.Context, node string) ([]string, error) {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == node })
	if i < 0 {
		return nil, ErrNotFound
	}
	volumes, err := listed(ctx, t, keyVolumes, decodeVolume)
	if err != nil {
		return nil, err
	}
	var names []string
	for name, v := range volumes {
		var r uncomparedRecord
		if found, err := t.get(ctx, idKey(keyUncompared, v.ID), &r); err != nil || !found {
			if err != nil {
				return nil, err
			}
			continue
		}
		l, err := t.lineage(ctx, v.Lineage)
		if err != nil {
			return nil, err
		}
		placed, err := t.ring(ctx, l)
		if err != nil {
			return nil, err
		}
		if !placed.Has(nodes[i].ID) {
			continue
		}
		names = append(names, name)
		for layer := v.Head; layer != 0; {
			var r layerRecord
			if _, err := t.get(ctx, idKey(keyLayers, layer), &r); err != nil {
				return nil, err
			}
			key := staleKey(StaleKey{Layer: layer, Node: nodes[i].ID})
			if _, err := t.get(ctx, key, &staleRecord{}); err != nil {
				return nil, err
			}
			t.put(key, newStaleRecord(Stale{Epoch: max(l.Epoch, 1), At: t.c.wall(), Why: "given up after the records were recovered"}))
			layer = store.LayerID(r.Parent)
		}
	}
	slices.Sort(names)
	return names, nil
}

// RaiseEpoch records that nodes know epochs of the volume up to known, which these
// records, being older, do not: the next attachment's is above.
func (a *Attachment) RaiseEpoch(ctx context.Context, known store.Epoch) error {
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		l, err := t.lineage(ctx, v.Lineage)
		if err != nil || l.Epoch >= known {
			return err
		}
		l.Epoch = known
		t.put(idKey(keyLineages, l.ID), newLineageRecord(l))
		return nil
	}))
}

// recoverPairs makes of records that are older than the nodes' data, by an unknown
// time, those of a recovery. What is under a lease has ended. Of the copies nothing is
// known any more: which have all, in which incarnation, up to where. So all of them
// are to be compared when a volume is attached first. What is recorded as deleted
// stays so: IDs are never used twice.
func recoverPairs(pairs []Pair, r Recovered) ([]Pair, error) {
	var out []Pair
	add := func(key string, r record) { out = append(out, Pair{Key: key, Value: encode(r)}) }
	for _, p := range pairs {
		if p.Lease != 0 || p.Key == keyRecovery || hasAnyPrefix(p.Key, keyIncarnations, keyStale, keyUncompared) {
			continue
		}
		if !strings.HasPrefix(p.Key, keyVolumes) {
			out = append(out, Pair{Key: p.Key, Value: p.Value})
			continue
		}
		_, v, err := decodeVolume(p)
		if err != nil {
			return nil, err
		}
		v.Clean = false
		add(p.Key, newVolumeRecord(v))
		add(idKey(keyUncompared, v.ID), &uncomparedRecord{Served: wasServed(pairs, v)})
	}
	add(keyRecovery, newRecoveryRecord(r))
	return out, nil
}

// wasServed reports whether a volume had been served. Where its copies were still to
// be compared after an earlier recovery, its epoch says only that this was tried.
func wasServed(pairs []Pair, v Volume) bool {
	key := idKey(keyUncompared, v.ID)
	for _, p := range pairs {
		var r uncomparedRecord
		if p.Key == key && decode(p.Key, p.Value, &r) == nil {
			return r.Served
		}
	}
	return v.Epoch > 0
}

func hasAnyPrefix(s string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// KnownLayers returns the IDs of all layers that records name, deleted ones too.
func (c *Cluster) KnownLayers(ctx context.Context) (map[store.LayerID]bool, error) {
	pairs, _, err := c.readAll(ctx, keyLayers, 0)
	if err != nil {
		return nil, err
	}
	known := make(map[store.LayerID]bool, len(pairs))
	for _, p := range pairs {
		id, _, err := decodeLayer(p)
		if err != nil {
			return nil, err
		}
		known[id] = true
	}
	return known, nil
}
