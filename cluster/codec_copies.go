package cluster

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"torus/ring"
	"torus/store"
)

// versionText is a version as it stands in records: "EPOCH.SEQUENCE", both
// decimal.
type versionText store.Version

func (v versionText) version() store.Version { return store.Version(v) }

// MarshalText implements encoding.TextMarshaler.
func (v versionText) MarshalText() ([]byte, error) { return []byte(v.version().String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Only what String returns is
// taken.
func (v *versionText) UnmarshalText(text []byte) error {
	epoch, sequence, _ := strings.Cut(string(text), ".")
	e, err := strconv.ParseUint(epoch, 10, 24)
	if err != nil {
		return fmt.Errorf("%q is not a version", text)
	}
	s, err := strconv.ParseUint(sequence, 10, 40)
	if err != nil || store.NewVersion(store.Epoch(e), s).String() != string(text) {
		return fmt.Errorf("%q is not a version", text)
	}
	*v = versionText(store.NewVersion(store.Epoch(e), s))
	return nil
}

type staleRecord struct {
	format
	Fresh bool        `json:"fresh,omitempty"`
	Since versionText `json:"since"`
	Epoch store.Epoch `json:"epoch"`
	At    time.Time   `json:"at"`
	Why   string      `json:"why"`
}

func (r *staleRecord) check() error { return inRange("epoch", r.Epoch, 0, store.MaxEpoch) }

func (r *staleRecord) stale(k StaleKey) Stale {
	return Stale{Layer: k.Layer, Node: k.Node, Target: k.Target, Fresh: r.Fresh, Since: r.Since.version(), Epoch: r.Epoch, At: r.At, Why: r.Why}
}

func newStaleRecord(s Stale) *staleRecord {
	return &staleRecord{Fresh: s.Fresh, Since: versionText(s.Since), Epoch: s.Epoch, At: s.At, Why: s.Why}
}

type copyRecord struct {
	Node   hexID     `json:"node"`
	Target bool      `json:"target,omitempty"`
	State  string    `json:"state"`
	Why    string    `json:"why,omitempty"`
	Since  time.Time `json:"since"`
	Done   int64     `json:"done"`
	Total  int64     `json:"total"`
	Left   int64     `json:"left,omitempty"` // seconds
}

type reportRecord struct {
	format
	Waiting string       `json:"waiting"`
	Copies  []copyRecord `json:"copies"`
	At      time.Time    `json:"at"`
}

func (r *reportRecord) check() error { return nil }

func (r *reportRecord) report() Report {
	out := Report{Waiting: r.Waiting, At: r.At}
	for _, c := range r.Copies {
		out.Copies = append(out.Copies, CopyReport{ring.NodeID(c.Node), c.Target, c.State, c.Why, c.Since, c.Done, c.Total, time.Duration(c.Left) * time.Second})
	}
	return out
}

func newReportRecord(r Report) *reportRecord {
	out := &reportRecord{Waiting: r.Waiting, At: r.At}
	for _, c := range r.Copies {
		out.Copies = append(out.Copies, copyRecord{hexID(c.Node), c.Target, c.State, c.Why, c.Since, c.Done, c.Total, int64(c.Left / time.Second)})
	}
	return out
}
