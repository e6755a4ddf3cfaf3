package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"torus/ring"
	"torus/store"
)

// Stale says that a node lacks writes of a layer that are above Since: of the chunks
// that the lineage's ring gives it, or of those that only its target does.
type Stale struct {
	Layer  store.LayerID
	Node   ring.NodeID
	Target uint64 // number of the target ring; 0: the lineage's ring
	// Fresh: the node has yet to drop what it may have of those chunks from an earlier
	// stay; nothing may be written to it before. Only with Target.
	Fresh bool
	Since store.Version
	Epoch store.Epoch // of the attachment that wrote it last
	At    time.Time   // when it did
	Why   string
}

// StaleKey is what a stale record is about.
type StaleKey struct {
	Layer  store.LayerID
	Node   ring.NodeID
	Target uint64
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
		key := staleKey(StaleKey{m.Layer, m.Node, m.Target})
		found, err := t.get(ctx, key, &have)
		if err != nil {
			return err
		}
		if found {
			m.Since, m.Fresh = min(m.Since, have.Since.version()), have.Fresh
		}
		m.Epoch, m.At = a.Epoch, a.c.wall()
		t.put(key, newStaleRecord(m))
	}
	return nil
}

// InSync records that a node has all that was written to the layers, of the chunks that
// the ring gives it (target 0), or that only the target does: it is equal to a copy in
// sync and synced, and was found in the incarnation now. The stale records go. Errors as
// for MarkStale, and ErrInvalid for one that is still Fresh.
func (a *Attachment) InSync(ctx context.Context, now Incarnation, target uint64, layers []store.LayerID) error {
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
			var r staleRecord
			key := staleKey(StaleKey{layer, now.Node, target})
			found, err := t.get(ctx, key, &r)
			if err != nil {
				return err
			}
			if found && r.Fresh {
				return fmt.Errorf("%w: node %v has not dropped what it had of layer %v", ErrInvalid, now.Node, layer)
			}
			if found {
				stale = true
				t.delete(key)
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
		return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Target, b.Target))
	})
	return all, nil
}

// staleLayer returns the prefix of a layer's stale records.
func staleLayer(layer store.LayerID) string { return idKey(keyStale, layer) + "/" }

func staleKey(k StaleKey) string {
	key := idKey(staleLayer(k.Layer), k.Node)
	if k.Target != 0 {
		key = idKey(key+"/", k.Target)
	}
	return key
}

func parseStaleKey(key string) (StaleKey, error) {
	layer, node, found := strings.Cut(strings.TrimPrefix(key, keyStale), "/")
	node, target, has := strings.Cut(node, "/")
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
	k := StaleKey{Layer: l, Node: n}
	if has {
		if k.Target, err = keyID[uint64](target, ""); err == nil && k.Target == 0 {
			err = errors.New("target 0")
		}
		if err != nil {
			return StaleKey{}, corrupt(key, "key: %v", err)
		}
	}
	return k, nil
}

func decodeStale(p Pair) (StaleKey, Stale, error) {
	var r staleRecord
	k, err := parseStaleKey(p.Key)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return k, r.stale(k), err
}
