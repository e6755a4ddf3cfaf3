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
}

func (r *limitsRecord) check() error { return inRange("repair rate", r.RepairRate, 0, maxRepairRate) }
