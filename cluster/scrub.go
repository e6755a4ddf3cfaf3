package cluster

import (
	"context"
	"iter"
	"time"

	"torus/store"
)

// Scrub is what is known of the scrubs of a volume. The zero value: there was none.
type Scrub struct {
	Asked    uint64 // how many were asked for
	Answered uint64 // Asked when the newest began: it answers all of those, once it has ended

	// Of the newest:
	Began, Ended time.Time // Ended is zero while it goes on, or where it was left off
	Idle         bool      // nobody asked for it: clients go first
	Done, Total  int64     // bytes that were gone through, of all there are
	Bytes        int64     // read, of all copies
	Corrupt      int64     // pages that failed their checksum
	Unlike       int64     // pages of which a copy lacked what it should have had
	Lost         int64     // pages of which no copy is whole
}

// Answers reports whether a scrub has ended that began behind the so-many-th that
// was asked for.
func (s Scrub) Answers(asked uint64) bool { return s.Answered >= asked && !s.Ended.IsZero() }

// DefaultScrubEvery is how often volumes are scrubbed where nobody has said.
const DefaultScrubEvery = 30 * 24 * time.Hour

// AskScrub asks whoever attaches a volume to scrub it, now. It returns what that
// has to answer. ErrNotFound.
func (c *Cluster) AskScrub(ctx context.Context, volume string) (v Volume, asked uint64, err error) {
	err = c.transact(ctx, func(ctx context.Context, t *tx) error {
		now, err := t.volume(ctx, volume)
		if err != nil {
			return err
		}
		if now.ID != v.ID { // the first run, or the name was given anew
			v, asked = now, 0
		}
		var r scrubRecord
		key := idKey(keyScrubs, v.ID)
		if _, err := t.get(ctx, key, &r); err != nil {
			return err
		}
		if asked != 0 && r.Asked >= asked {
			return nil // done by a run before, whose outcome was unknown, or as good as that
		}
		r.Asked++
		asked = r.Asked
		t.put(key, &r)
		return nil
	})
	return v, asked, about(volumeNamed(volume), err)
}

// Scrubs returns what is known of scrubs, of volumes of which anything is.
func (c *Cluster) Scrubs(ctx context.Context) (map[store.VolumeID]Scrub, error) {
	pairs, _, err := c.readAll(ctx, keyScrubs, 0)
	if err != nil {
		return nil, err
	}
	return decodeAll(pairs, decodeScrub)
}

// WatchScrubs yields what Scrubs returns, as WatchVolumes does volumes.
func (c *Cluster) WatchScrubs(ctx context.Context) iter.Seq2[Update[store.VolumeID, Scrub], error] {
	return watch(ctx, c, keyScrubs, idOf[store.VolumeID](keyScrubs), decodeScrub)
}

// TellScrub records how the newest scrub of the volume is. What was asked for stays
// as it is recorded. ErrLost if somebody else has the volume.
func (a *Attachment) TellScrub(ctx context.Context, s Scrub) error {
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		var have scrubRecord
		key := idKey(keyScrubs, v.ID)
		if _, err := t.get(ctx, key, &have); err != nil {
			return err
		}
		s.Asked = have.Asked
		if r := newScrubRecord(s); !equalRecords(&have, r) {
			t.put(key, r)
		}
		return nil
	}))
}

// ScrubEvery returns how often volumes are scrubbed without being asked; 0: never.
func (c *Cluster) ScrubEvery(ctx context.Context) (time.Duration, error) {
	var r scrubEveryRecord
	found, err := c.read(ctx, keyScrubEvery, 0, &r)
	if err != nil || !found {
		return DefaultScrubEvery, err
	}
	return time.Duration(r.Seconds) * time.Second, nil
}

// SetScrubEvery sets that, in whole seconds; it counts from each volume's last scrub.
func (c *Cluster) SetScrubEvery(ctx context.Context, d time.Duration) error {
	want := &scrubEveryRecord{Seconds: int64(d / time.Second)}
	if err := want.check(); err != nil {
		return err
	}
	return c.transact(ctx, func(ctx context.Context, t *tx) error {
		var have scrubEveryRecord
		found, err := t.get(ctx, keyScrubEvery, &have)
		if err == nil && !(found && equalRecords(&have, want)) {
			t.put(keyScrubEvery, want)
		}
		return err
	})
}

func decodeScrub(p Pair) (store.VolumeID, Scrub, error) {
	var r scrubRecord
	id, err := keyID[store.VolumeID](p.Key, keyScrubs)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.scrub(), err
}
