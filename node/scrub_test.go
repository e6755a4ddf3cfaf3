package node

import (
	"testing"
	"time"

	"torus/cluster"
)

func TestScrubDue(t *testing.T) {
	at := func(day int) time.Time { return time.Date(2026, 1, day, 0, 0, 0, 0, time.UTC) }
	created, never := at(1), time.Time{}
	const every = 5 * 24 * time.Hour
	for name, c := range map[string]struct {
		s     cluster.Scrub
		every time.Duration
		want  time.Time
	}{
		"never scrubbed":             {cluster.Scrub{}, every, at(6)},
		"never scrubbed, nor to be":  {cluster.Scrub{}, 0, never},
		"asked for":                  {cluster.Scrub{Asked: 1}, 0, created},
		"asked for again":            {cluster.Scrub{Asked: 2, Answered: 1, Began: at(2), Ended: at(3)}, every, created},
		"asked for, and left off":    {cluster.Scrub{Asked: 1, Answered: 1, Began: at(2)}, 0, at(2)},
		"by itself, and left off":    {cluster.Scrub{Began: at(2), Idle: true}, every, at(2)},
		"ended":                      {cluster.Scrub{Began: at(2), Ended: at(3)}, every, at(8)},
		"ended, and not to be again": {cluster.Scrub{Began: at(2), Ended: at(3)}, 0, never},
	} {
		if got := due(c.s, c.every, created); !got.Equal(c.want) {
			t.Errorf("%s: due %v, want %v", name, got, c.want)
		}
	}
}
