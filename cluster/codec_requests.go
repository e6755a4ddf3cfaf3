package cluster

import "time"

// What nodes and holders ask of each other, each under a short lease, and what
// an operator sets of a node while it runs.

type stoppingRecord struct {
	format
	At time.Time `json:"at"`
}

func (r *stoppingRecord) check() error { return nil }

type stopRecord struct {
	format
	By string    `json:"by"`
	At time.Time `json:"at"`
}

func (r *stopRecord) check() error { return nil }

type wantedRecord struct {
	format
	Holder holderRecord `json:"holder"`
	At     time.Time    `json:"at"`
}

func (r *wantedRecord) check() error { return nil }

type limitsRecord struct {
	format
	RepairRate int64 `json:"repair_rate"`
	AwayAfter  int64 `json:"away_after,omitempty"` // seconds
}

func (r *limitsRecord) check() error {
	if err := inRange("repair rate", r.RepairRate, 0, maxRepairRate); err != nil {
		return err
	}
	return inRange("away after", r.AwayAfter, -1, maxAwayAfter)
}

// maxAwayAfter is a hundred years, in seconds.
const maxAwayAfter = 100 * 365 * 24 * 3600

func (r *limitsRecord) limits() Limits {
	return Limits{RepairRate: r.RepairRate, AwayAfter: time.Duration(r.AwayAfter) * time.Second}
}

func newLimitsRecord(l Limits) *limitsRecord {
	return &limitsRecord{RepairRate: l.RepairRate, AwayAfter: int64(l.AwayAfter / time.Second)}
}
