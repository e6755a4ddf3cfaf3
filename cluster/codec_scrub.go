package cluster

import "time"

type scrubRecord struct {
	format
	Asked    uint64    `json:"asked"`
	Answered uint64    `json:"answered"`
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended"`
	Idle     bool      `json:"idle"`
	Done     int64     `json:"done"`
	Total    int64     `json:"total"`
	Bytes    int64     `json:"bytes"`
	Corrupt  int64     `json:"corrupt"`
	Unlike   int64     `json:"unlike"`
	Lost     int64     `json:"lost"`
}

func (r *scrubRecord) check() error {
	if err := inRange("done", r.Done, 0, max(0, r.Total)); err != nil {
		return err
	}
	return inRange("answered", r.Answered, 0, r.Asked)
}

func (r *scrubRecord) scrub() Scrub {
	return Scrub{Asked: r.Asked, Answered: r.Answered, Began: r.Began, Ended: r.Ended, Idle: r.Idle, Done: r.Done, Total: r.Total,
		Bytes: r.Bytes, Corrupt: r.Corrupt, Unlike: r.Unlike, Lost: r.Lost}
}

func newScrubRecord(s Scrub) *scrubRecord {
	return &scrubRecord{Asked: s.Asked, Answered: s.Answered, Began: s.Began, Ended: s.Ended, Idle: s.Idle, Done: s.Done, Total: s.Total,
		Bytes: s.Bytes, Corrupt: s.Corrupt, Unlike: s.Unlike, Lost: s.Lost}
}

// maxScrubEvery is ten years.
const maxScrubEvery = 10 * 365 * 24 * 60 * 60

type scrubEveryRecord struct {
	format
	Seconds int64 `json:"seconds"` // 0: never
}

func (r *scrubEveryRecord) check() error { return inRange("seconds", r.Seconds, 0, maxScrubEvery) }
