package cluster

import (
	"context"
	"iter"
	"time"

	"torus/store"
)

// wantedTTL is how long it counts that somebody waits for a volume.
const wantedTTL = 10 * time.Second

// Want says that somebody waits for a volume that is attached for maintenance:
// who has it gives it up at once (WatchWanted). It is forgotten after 10 s.
func (c *Cluster) Want(ctx context.Context, v Volume, h Holder) error {
	r := &wantedRecord{Holder: newHolderRecord(h), At: c.wall()}
	return about(volumeNamed(v.Name), c.putFor(ctx, idKey(keyWanted, v.ID), r, wantedTTL))
}

// WatchWanted yields who waits for which volume, as WatchVolumes does volumes.
func (c *Cluster) WatchWanted(ctx context.Context) iter.Seq2[Update[store.VolumeID, Holder], error] {
	return watch(ctx, c, keyWanted, idOf[store.VolumeID](keyWanted), decodeWanted)
}

func decodeWanted(p Pair) (store.VolumeID, Holder, error) {
	var r wantedRecord
	id, err := keyID[store.VolumeID](p.Key, keyWanted)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.Holder.holder(), err
}
