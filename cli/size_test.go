package cli

import (
	"errors"
	"fmt"
	"math"
	"syscall"
	"testing"

	"torus/cluster"
	"torus/node"
	"torus/store"
	"torus/store/segment"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "4K": 4096, "4k": 4096, "4KiB": 4096, "1M": 1 << 20, "1MiB": 1 << 20,
		"10G": 10 << 30, "10g": 10 << 30, "2T": 2 << 40, "1024TiB": 1 << 50, "8388607T": 8388607 << 40,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "K", "iB", "-1", "-1G", "+1", "1.5G", "1GB", "1Gib", "1 G", "1P", "1KK", "1KiBKiB", "0x10", "8388608T", "9223372036854775808", "٣",
	} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}

func TestVolumeSize(t *testing.T) {
	for text, ok := range map[string]bool{
		"4095": false, "4096": true, "4097": false, "1024T": true, "1025T": false, "0": false, "5K": false, "8K": true,
	} {
		var v volumeSize
		if err := v.UnmarshalText([]byte(text)); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 30: "1 GiB", 1<<40 + 1<<39: "1.5 TiB",
		1 << 50: "1 PiB", math.MaxInt64: "8388608.0 TiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"10G", "4KiB", "8388608T", "-1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseSize(text)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("%q is %d", text, n)
		}
		if again, err := parseSize(fmt.Sprint(n)); err != nil || again != n {
			t.Fatalf("%q is %d, which is %d, %v", text, n, again, err)
		}
	})
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{cluster.ErrUnavailable, 1},
		{cluster.ErrTooFewNodes, 1},
		{store.ErrCorrupt, 1},
		{&segment.FormatError{}, 1},
		{badUsage("x"), 2},
		{cluster.ErrInvalid, 2},
		{node.ErrSettings, 2},
		{cluster.ErrNotFound, 3},
		{node.ErrNoNode, 3},
		{cluster.ErrExists, 4},
		{&cluster.BusyError{}, 4},
		{node.ErrLocked, 4},
		{node.ErrFounded, 4},
		{segment.ErrLocked, 4},
		{syscall.EADDRINUSE, 4},
	} {
		wrapped := c.err
		if wrapped != nil {
			wrapped = fmt.Errorf("volume v: %w", wrapped)
		}
		if got := exitCode(wrapped); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
	}
}
