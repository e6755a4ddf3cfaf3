package cluster

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"strings"

	"torus/ring"
	"torus/store"
)

// Update is what a watcher is told: first everything there is, then what
// changes, each Update being the state at its revision.
type Update[K comparable, V any] struct {
	Revision Revision
	// Reset: Put is everything there is, and what was told before is void. It is
	// set in the first Update, and again when changes were missed.
	Reset bool
	Put   map[K]V
	Gone  []K
}

// WatchVolumes yields the volumes by name. It ends with an error: the
// context's, or a *RecordError for a record that can't be understood. While the
// records are unavailable it waits.
func (c *Cluster) WatchVolumes(ctx context.Context) iter.Seq2[Update[string, Volume], error] {
	key := func(key string) (string, error) { return strings.TrimPrefix(key, keyVolumes), nil }
	return watch(ctx, c, keyVolumes, key, decodeVolume)
}

// WatchLayers yields the layers' records, as WatchVolumes does volumes. A layer
// that is gone from the records is not deleted on that ground (I8): what is to be dropped says
// so in its record, Layer.Deleted.
func (c *Cluster) WatchLayers(ctx context.Context) iter.Seq2[Update[store.LayerID, Layer], error] {
	return watch(ctx, c, keyLayers, idOf[store.LayerID](keyLayers), decodeLayer)
}

// WatchAttachments yields who holds which volume, as WatchVolumes does volumes.
func (c *Cluster) WatchAttachments(ctx context.Context) iter.Seq2[Update[store.VolumeID, Attached], error] {
	return watch(ctx, c, keyAttachments, idOf[store.VolumeID](keyAttachments), decodeAttached)
}

// WatchNodes yields the nodes' records, as WatchVolumes does volumes.
func (c *Cluster) WatchNodes(ctx context.Context) iter.Seq2[Update[ring.NodeID, Node], error] {
	return watch(ctx, c, keyNodes, idOf[ring.NodeID](keyNodes), decodeNode)
}

// idOf returns the function that reads the ID in a key.
func idOf[T ~uint64](prefix string) func(string) (T, error) {
	return func(key string) (T, error) { return keyID[T](key, prefix) }
}

// watch yields the records below prefix: all, then the changes, and all again
// whenever the changes can't be had.
func watch[K comparable, V any](ctx context.Context, c *Cluster, prefix string,
	key func(string) (K, error), one func(Pair) (K, V, error)) iter.Seq2[Update[K, V], error] {
	return func(yield func(Update[K, V], error) bool) {
		for pause := firstPause; ; {
			more, err := watchOnce(ctx, c.kv, prefix, key, one, func(u Update[K, V], err error) bool {
				pause = firstPause
				return yield(u, err)
			})
			if !more {
				return
			}
			if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrCompacted) || !wait(ctx, &pause) {
				yield(Update[K, V]{}, cmp.Or(ctx.Err(), err))
				return
			}
			c.opts.Log.Debug("watch begins anew", "prefix", prefix, "err", err)
		}
	}
}

// watchOnce yields all records, then the changes, until that ends with an
// error; false if the consumer wants no more.
func watchOnce[K comparable, V any](ctx context.Context, kv KV, prefix string, key func(string) (K, error),
	one func(Pair) (K, V, error), yield func(Update[K, V], error) bool) (bool, error) {
	pairs, rev, err := kv.Range(ctx, prefix, 0)
	if err != nil {
		return true, err
	}
	put, err := decodeAll(pairs, one)
	if err != nil {
		return true, err
	}
	if !yield(Update[K, V]{Revision: rev, Reset: true, Put: put}, nil) {
		return false, nil
	}
	return changes(kv.Watch(ctx, prefix, rev+1), key, one, yield)
}

// changes yields what a KV's watch does until that ends with an error; false if
// the consumer wants no more.
func changes[K comparable, V any](batches iter.Seq2[Batch, error], key func(string) (K, error),
	one func(Pair) (K, V, error), yield func(Update[K, V], error) bool) (bool, error) {
	for b, err := range batches {
		if err != nil {
			return true, err
		}
		u, err := newUpdate(b, key, one)
		if err != nil {
			return true, err
		}
		if !yield(u, nil) {
			return false, nil
		}
	}
	return true, ErrUnavailable // not reached: a watch ends with an error
}

// newUpdate decodes a batch. Of several changes of a key the last counts.
func newUpdate[K comparable, V any](b Batch, key func(string) (K, error), one func(Pair) (K, V, error)) (Update[K, V], error) {
	last := map[string]int{}
	for i, e := range b.Events {
		last[e.Key] = i
	}
	u := Update[K, V]{Revision: b.Revision, Put: map[K]V{}}
	for i, e := range b.Events {
		if last[e.Key] != i {
			continue
		}
		if e.Deleted {
			k, err := key(e.Key)
			if err != nil {
				return u, err
			}
			u.Gone = append(u.Gone, k)
			continue
		}
		k, v, err := one(e.Pair)
		if err != nil {
			return u, err
		}
		u.Put[k] = v
	}
	return u, nil
}
