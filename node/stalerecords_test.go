package node

import (
	"errors"
	"fmt"
	"testing"

	"torus/cluster"
	"torus/volume"
)

// Only what surely was not done is ErrNotDone.
func TestOutcome(t *testing.T) {
	other := errors.New("other")
	for _, c := range []struct{ err, want error }{
		{nil, nil},
		{fmt.Errorf("%w: x", cluster.ErrLost), volume.ErrLost},
		{fmt.Errorf("%w: x", cluster.ErrUnavailable), volume.ErrNotDone},
		{fmt.Errorf("%w: %w", cluster.ErrUnknown, cluster.ErrUnavailable), cluster.ErrUnknown},
		{fmt.Errorf("%w: x", cluster.ErrUnknown), cluster.ErrUnknown},
		{other, other},
	} {
		got := outcome(c.err)
		if !errors.Is(got, c.want) || errors.Is(got, volume.ErrNotDone) != (c.want == volume.ErrNotDone) {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
