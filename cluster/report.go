package cluster

import (
	"context"
	"time"

	"torus/ring"
	"torus/store"
)

// Report is what the holder of a volume tells of it while it is attached. It
// informs people; nothing is decided by it.
type Report struct {
	Waiting string // what requests wait for; "" while they go on
	Copies  []CopyReport
	At      time.Time
}

// CopyInSync is the State, as package volume names it, of a copy that has all that
// was acknowledged.
const CopyInSync = "in sync"

// CopyReport is how one node's copy of a volume is.
type CopyReport struct {
	Node   ring.NodeID
	Target bool   // of the chunks that only the target ring gives it
	State  string // as package volume names it: CopyInSync, "away", …
	Why    string // of a copy that is not in sync
	Since  time.Time
	// Done and Total, in bytes, say how far a resync is; Total 0: none is under way.
	Done, Total int64
	Left        time.Duration // until it is done, in whole seconds; 0: not known
}

// Report writes what the holder tells, At filled in. It goes when the lease does.
func (a *Attachment) Report(ctx context.Context, r Report) error {
	r.At = a.c.wall()
	return a.failed(a.c.transact(ctx, func(ctx context.Context, t *tx) error {
		v, err := a.own(ctx, t)
		if err != nil {
			return err
		}
		key, want := idKey(keyReports, v.ID), newReportRecord(r)
		var have reportRecord
		found, err := t.get(ctx, key, &have)
		if err == nil && !(found && equalRecords(&have, want)) {
			t.putLeased(key, want, a.leaseNow().ID)
		}
		return err
	}))
}

func decodeReport(p Pair) (store.VolumeID, Report, error) {
	var r reportRecord
	id, err := keyID[store.VolumeID](p.Key, keyReports)
	if err == nil {
		err = decode(p.Key, p.Value, &r)
	}
	return id, r.report(), err
}
