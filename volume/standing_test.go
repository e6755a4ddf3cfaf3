package volume

import (
	"errors"
	"slices"
	"testing"

	"torus/ring"
)

func TestJudge(t *testing.T) {
	recorded := map[ring.NodeID]Copy{1: {10, 20}}
	for _, test := range []struct {
		recorded map[ring.NodeID]Copy
		now      Copy
		clean    bool
		want     standing
		err      error
	}{
		{nil, Copy{10, 20}, false, whole, nil},
		{recorded, Copy{10, 20}, false, whole, nil},
		{recorded, Copy{10, 21}, false, reborn, nil},
		{recorded, Copy{10, 21}, true, whole, nil},
		{recorded, Copy{11, 20}, true, stale, ErrOtherStore},
		{recorded, Copy{11, 20}, false, stale, ErrOtherStore},
		{map[ring.NodeID]Copy{2: {10, 20}}, Copy{10, 20}, true, stale, ErrOtherStore},
	} {
		got, err := judge(test.recorded, 1, test.now, test.clean)
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%v, %v, clean %v: %v, %v", test.recorded, test.now, test.clean, got, err)
		}
	}
}

// TestMayServe: each chunk needs a whole copy, or all that are in sync.
func TestMayServe(t *testing.T) {
	pair, three := [][]ring.NodeID{{1, 2}}, [][]ring.NodeID{{1, 2}, {2, 3}, {3, 1}}
	for _, test := range []struct {
		name      string
		groups    [][]ring.NodeID
		standings []standing // of the nodes 1, 2, ...
		wait      []ring.NodeID
		err       error
	}{
		{"all whole", pair, []standing{whole, whole}, nil, nil},
		{"one absent", pair, []standing{whole, absent}, nil, nil},
		{"one stale", pair, []standing{whole, stale}, nil, nil},
		{"only the stale one is there", pair, []standing{absent, stale}, []ring.NodeID{1}, nil},
		{"none is there", pair, []standing{absent, absent}, []ring.NodeID{1, 2}, nil},
		{"power cut everywhere", pair, []standing{reborn, reborn}, nil, nil},
		{"reborn and absent", pair, []standing{reborn, absent}, []ring.NodeID{2}, nil},
		{"reborn and stale", pair, []standing{reborn, stale}, nil, nil},
		{"all stale", pair, []standing{stale, stale}, nil, ErrNoCopy},
		{"two of three whole", three, []standing{whole, absent, whole}, nil, nil},
		{"one of three whole", three, []standing{whole, absent, absent}, []ring.NodeID{2, 3}, nil},
		{"one whole, one reborn", three, []standing{whole, reborn, absent}, []ring.NodeID{3}, nil},
		{"one chunk has none", three, []standing{whole, stale, stale}, nil, ErrNoCopy},
		{"one stale, one absent", three, []standing{whole, stale, absent}, []ring.NodeID{3}, nil},
	} {
		standings := map[ring.NodeID]standing{}
		for i, s := range test.standings {
			standings[ring.NodeID(i+1)] = s
		}
		wait, err := mayServe(test.groups, standings)
		if !slices.Equal(wait, test.wait) || !errors.Is(err, test.err) {
			t.Errorf("%s: waits for %v, %v; want %v, %v", test.name, wait, err, test.wait, test.err)
		}
	}
}
