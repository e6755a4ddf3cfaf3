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
// may come to stand yet; ErrUnavailable or ErrMoved if they surely don't.
func (a *Attachment) MarkStale(ctx context.Context, marks []Stale) error {
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		if err := a.unmoved(ctx, t, rolesOf(nil, marks)); err != nil {
			return err
		}
		return a.putStale(ctx, t, v.ID, marks)
	}))
}

// rolesOf returns the target rings that records are about.
func rolesOf(found []Incarnation, stale []Stale) (targets []uint64) {
	for _, i := range found {
		targets = append(targets, i.Target)
	}
	for _, s := range stale {
		targets = append(targets, s.Target)
	}
	return targets
}

// unmoved makes it a condition that the lineage has the ring that the attachment has,
// and, where records are about a target, that one. Otherwise ErrMoved: whoever
// placed by a ring that was followed by another would judge by its copies which others
// may be recorded to lack writes.
func (a *Attachment) unmoved(ctx context.Context, t *tx, targets []uint64) error {
	l, err := t.lineage(ctx, a.Lineage.ID)
	if err != nil {
		return err
	}
	if l.Ring != a.Ring.Number {
		return fmt.Errorf("%w from ring %d to %d", ErrMoved, a.Ring.Number, l.Ring)
	}
	for _, n := range targets {
		if n != 0 && n != l.Target {
			return fmt.Errorf("%w: not to ring %d any more", ErrMoved, n)
		}
	}
	return nil
}

// putStale writes stale records, also those that are there already: a commit of
// InSync that is still under way, from before the node failed again, must find
// them changed. A commit of ours that is still under way when InSync has deleted
// the record would find it missing, as before: it fails by the node's
// incarnation, which InSync writes each time.
func (a *Attachment) putStale(ctx context.Context, t *tx, vol store.VolumeID, marks []Stale) error {
	for _, m := range marks {
		if _, err := t.pair(ctx, incarnationKey(vol, m.Node, m.Target)); err != nil {
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
// the ring gives it, or that only now.Target does: it is equal to a copy in
// sync and synced, and was found in the incarnation now. The stale records go. Errors as
// for MarkStale, and ErrInvalid for one that is still Fresh.
func (a *Attachment) InSync(ctx context.Context, now Incarnation, layers []store.LayerID) error {
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		if err := a.unmoved(ctx, t, []uint64{now.Target}); err != nil {
			return err
		}
		var have incarnationRecord
		key := incarnationKey(v.ID, now.Node, now.Target)
		known, err := t.get(ctx, key, &have)
		if err != nil {
			return err
		}
		stale := false
		for _, layer := range layers {
			var r staleRecord
			key := staleKey(StaleKey{layer, now.Node, now.Target})
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
		return compareStale(StaleKey{a.Layer, a.Node, a.Target}, StaleKey{b.Layer, b.Node, b.Target})
	})
	return all, nil
}

func compareStale(a, b StaleKey) int {
	return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Target, b.Target))
}

// staleLayer returns the prefix of a layer's stale records.
func staleLayer(layer store.LayerID) string { return idKey(keyStale, layer) + "/" }

func staleKey(k StaleKey) string { return roleKey(staleLayer(k.Layer), k.Node, k.Target) }

func parseStaleKey(key string) (StaleKey, error) {
	layer, role, found := strings.Cut(strings.TrimPrefix(key, keyStale), "/")
	if !found {
		return StaleKey{}, corrupt(key, "key: no node")
	}
	l, err := keyID[store.LayerID](layer, "")
	if err != nil {
		return StaleKey{}, corrupt(key, "key: %v", err)
	}
	node, target, err := parseRole(key, role)
	return StaleKey{l, node, target}, err
}

// roleKey returns the key of a record about what a lineage's ring gives a node, or
// what only target ring target does.
func roleKey(prefix string, node ring.NodeID, target uint64) string {
	key := idKey(prefix, node)
	if target != 0 {
		key = idKey(key+"/", target)
	}
	return key
}

// parseRole takes apart the end of a key that roleKey made.
func parseRole(key, role string) (node ring.NodeID, target uint64, err error) {
	n, of, has := strings.Cut(role, "/")
	if node, err = keyID[ring.NodeID](n, ""); err != nil {
		return 0, 0, corrupt(key, "key: %v", err)
	}
	if !has {
		return node, 0, nil
	}
	if target, err = keyID[uint64](of, ""); err == nil && target == 0 {
		err = errors.New("target 0")
	}
	if err != nil {
		return 0, 0, corrupt(key, "key: %v", err)
	}
	return node, target, nil
}

func decodeStale(p Pair) (StaleKey, Stale, error) {
	var r staleRecord
	k, err := parseStaleKey(p.Key)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return k, r.stale(k), err
}
