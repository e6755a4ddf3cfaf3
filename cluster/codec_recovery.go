package cluster

import (
	"fmt"
	"time"
)

type recoveryRecord struct {
	format
	Recovery  Recovery  `json:"recovery"`
	At        time.Time `json:"at"`
	Node      string    `json:"node"`
	From      string    `json:"from"`
	Confirmed bool      `json:"confirmed"`
}

func (r *recoveryRecord) check() error {
	if r.Recovery.Number == 0 || r.Recovery.ID == 0 {
		return fmt.Errorf("recovery %q: number and ID may not be 0", r.Recovery)
	}
	return nil
}

func (r *recoveryRecord) recovered() Recovered {
	return Recovered{Recovery: r.Recovery, At: r.At, Node: r.Node, From: r.From, Confirmed: r.Confirmed}
}

func newRecoveryRecord(r Recovered) *recoveryRecord {
	return &recoveryRecord{Recovery: r.Recovery, At: r.At, Node: r.Node, From: r.From, Confirmed: r.Confirmed}
}

// uncomparedRecord says that the copies of a volume are still to be compared after a
// recovery, by its first attachment.
type uncomparedRecord struct {
	format
	Served bool `json:"served"` // so the copies have something
}

func (r *uncomparedRecord) check() error { return nil }
