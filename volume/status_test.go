package volume

import (
	"testing"
	"time"
)

// TestLeft: the rest takes as long as it did so far, byte for byte.
func TestLeft(t *testing.T) {
	for _, test := range []struct {
		done, total int64
		want        time.Duration
	}{{0, 10, 0}, {1, 10, 9 * time.Minute}, {8, 10, 15 * time.Second}, {10, 10, 0}, {11, 10, 0}, {0, 0, 0}} {
		if got := left(test.done, test.total, time.Minute); got != test.want {
			t.Errorf("%d of %d in a minute: %v left, want %v", test.done, test.total, got, test.want)
		}
	}
}
