package cluster

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"strings"
	"time"

	"torus/ring"
	"torus/store"
)

// Stale says that a node lacks writes of a layer that are above Since.
type Stale struct {
	Layer store.LayerID
	Node  ring.NodeID
	Since store.Version
	Epoch store.Epoch // of the attachment that wrote it last
	At    time.Time   // when it did
	Why   string
}

// StaleKey is what a stale record is about.
type StaleKey struct {
	Layer store.LayerID
	Node  ring.NodeID
}

// MarkStale records that nodes lack writes, of the layers and above the versions
// that marks say; Epoch and At are filled in. What is recorded with a lower
// version keeps that: the node lacks all of it (PROTOCOL.md, stale record).
// ErrLost if somebody else has the volume; ErrUnknown if the records may stand or
// may come to stand yet; ErrUnavailable if they surely don't.
func (a *Attachment) MarkStale(ctx context.Context, marks []Stale) error {
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		return a.putStale(ctx, t, v.ID, marks)
	}))
}

// putStale writes stale records, also those that are there already: a commit of
// InSync that is still under way, from before the node failed again, must find
// them changed. A commit of ours that is still under way when InSync has deleted
// the record would find it missing, as before: it fails by the node's
// incarnation, which InSync writes each time.
func (a *Attachment) putStale(ctx context.Context, t *tx, vol store.VolumeID, marks []Stale) error {
	for _, m := range marks {
		if _, err := t.pair(ctx, incarnationKey(vol, m.Node)); err != nil {
			return err
		}
		var have staleRecord
		key := staleKey(m.Layer, m.Node)
		found, err := t.get(ctx, key, &have)
		if err != nil {
			return err
		}
		if found {
			m.Since = min(m.Since, have.Since.version())
		}
		m.Epoch, m.At = a.Epoch, a.c.wall()
		t.put(key, newStaleRecord(m))
	}
	return nil
}

// InSync records that a node has all that was written to the layers: it is equal
// to a copy in sync and synced, and was found in the incarnation now. The stale
// records go. Errors as for MarkStale.
func (a *Attachment) InSync(ctx context.Context, now Incarnation, layers []store.LayerID) error {
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		var have incarnationRecord
		key := incarnationKey(v.ID, now.Node)
		known, err := t.get(ctx, key, &have)
		if err != nil {
			return err
		}
		stale := false
		for _, layer := range layers {
			p, err := t.pair(ctx, staleKey(layer, now.Node))
			if err != nil {
				return err
			}
			if p.Mod != 0 {
				stale = true
				t.delete(p.Key)
			}
		}
		want := newIncarnationRecord(now)
		if !stale && known && equalRecords(&have, want) {
			return nil // done by a run before, whose outcome was unknown
		}
		t.put(key, want)
		return nil
	}))
}

// StaleCopies returns all stale records, in the order of layers and nodes.
func (c *Cluster) StaleCopies(ctx context.Context) ([]Stale, error) {
	return c.staleBelow(ctx, keyStale, 0)
}

// WatchStale yields the stale records, as WatchVolumes does volumes.
func (c *Cluster) WatchStale(ctx context.Context) iter.Seq2[Update[StaleKey, Stale], error] {
	return watch(ctx, c, keyStale, parseStaleKey, decodeStale)
}

// staleBelow reads the stale records below a prefix.
func (c *Cluster) staleBelow(ctx context.Context, prefix string, at Revision) ([]Stale, error) {
	pairs, _, err := c.readAll(ctx, prefix, at)
	if err != nil {
		return nil, err
	}
	all := make([]Stale, len(pairs))
	for i, p := range pairs {
		if _, all[i], err = decodeStale(p); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b Stale) int {
		return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Node, b.Node))
	})
	return all, nil
}

// staleLayer returns the prefix of a layer's stale records.
func staleLayer(layer store.LayerID) string { return idKey(keyStale, layer) + "/" }

func staleKey(layer store.LayerID, node ring.NodeID) string { return idKey(staleLayer(layer), node) }

func parseStaleKey(key string) (StaleKey, error) {
	layer, node, found := strings.Cut(strings.TrimPrefix(key, keyStale), "/")
	if !found {
		return StaleKey{}, corrupt(key, "key: no node")
	}
	l, err := keyID[store.LayerID](layer, "")
	if err != nil {
		return StaleKey{}, corrupt(key, "key: %v", err)
	}
	n, err := keyID[ring.NodeID](node, "")
	if err != nil {
		return StaleKey{}, corrupt(key, "key: %v", err)
	}
	return StaleKey{l, n}, nil
}

func decodeStale(p Pair) (StaleKey, Stale, error) {
	var r staleRecord
	k, err := parseStaleKey(p.Key)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return k, r.stale(k), err
}
