package cluster

import (
	"context"
	"time"

	"torus/store"
)

// Loss says that of what was written to a volume and acknowledged, but not flushed,
// some may be gone: no node had all of it any more.
type Loss struct {
	Epoch store.Epoch // of the attachment that found it
	At    time.Time
}

// TellLoss records that this attachment found a loss. It is for people; the next
// loss takes its place. ErrLost if somebody else has the volume.
func (a *Attachment) TellLoss(ctx context.Context) error {
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		var have lossRecord
		key := idKey(keyLosses, v.ID)
		found, err := t.get(ctx, key, &have)
		if err == nil && !(found && have.Epoch == a.Epoch) {
			t.put(key, &lossRecord{Epoch: a.Epoch, At: a.c.wall()})
		}
		return err
	}))
}

type lossRecord struct {
	format
	Epoch store.Epoch `json:"epoch"`
	At    time.Time   `json:"at"`
}

func (r *lossRecord) check() error { return inRange("epoch", r.Epoch, 1, store.MaxEpoch) }

func decodeLoss(p Pair) (store.VolumeID, Loss, error) {
	var r lossRecord
	id, err := keyID[store.VolumeID](p.Key, keyLosses)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, Loss{r.Epoch, r.At}, err
}
