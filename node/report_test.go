package node

import (
	"testing"
	"time"

	"torus/volume"
)

func TestWorthReporting(t *testing.T) {
	fine := volume.Status{Copies: []volume.CopyStatus{{Node: 1, State: "in sync"}, {Node: 2, State: "in sync"}}}
	away := volume.Status{Copies: []volume.CopyStatus{{Node: 1, State: "in sync"}, {Node: 2, State: "away", Why: "no answer"}}}
	catching := volume.Status{Copies: []volume.CopyStatus{{Node: 1, State: "in sync"}, {Node: 2, State: "catching", Done: 1, Total: 2}}}
	for _, c := range []struct {
		name      string
		told, now volume.Status
		ago       time.Duration
		want      bool
	}{
		{"nothing to tell", volume.Status{}, fine, time.Hour, false},
		{"the first thing", volume.Status{}, away, time.Hour, true},
		{"the same", away, away, 29 * time.Second, false},
		{"the same, long ago", away, away, 30 * time.Second, true},
		{"something else", away, catching, 0, true},
		{"all is well again", catching, fine, 0, true},
		{"all is well still", fine, fine, time.Hour, false},
	} {
		if got := worthReporting(c.told, c.now, c.ago); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
