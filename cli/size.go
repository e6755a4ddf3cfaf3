package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"torus/store"
)

// units of sizes, the largest first.
var units = []struct {
	letter string
	bytes  int64
}{{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}}

// parseSize reads a size in bytes: a whole number with K, M, G or T behind it,
// in powers of 1024, with or without iB.
func parseSize(s string) (int64, error) {
	number, unit := s, int64(1)
	for _, u := range units {
		for _, suffix := range []string{u.letter + "iB", u.letter, strings.ToLower(u.letter)} {
			if n, ok := strings.CutSuffix(s, suffix); ok && unit == 1 {
				number, unit = n, u.bytes
			}
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || number[0] == '+' {
		return 0, fmt.Errorf("size %q: use a whole number of bytes, or one with K, M, G or T (with or without iB), such as 10G", s)
	}
	if n < 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("size %q is not from 0 to 8191 PiB", s)
	}
	return n * unit, nil
}

// formatSize shows a number of bytes with three or four digits, exactly where
// that is possible.
func formatSize(n int64) string {
	if n == 1<<50 {
		return "1 PiB"
	}
	for _, u := range units {
		switch {
		case n < u.bytes:
		case n%u.bytes == 0:
			return fmt.Sprintf("%d %siB", n/u.bytes, u.letter)
		default:
			return fmt.Sprintf("%.1f %siB", float64(n)/float64(u.bytes), u.letter)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// volumeSize is the size of a volume; 0 is none given.
type volumeSize int64

// UnmarshalText refuses what no volume can have.
func (v *volumeSize) UnmarshalText(b []byte) error {
	n, err := parseSize(string(b))
	switch {
	case err != nil:
		return err
	case n < store.PageSize:
		return fmt.Errorf("size %q is below the smallest, 4KiB", b)
	case n > store.MaxVolumeSize:
		return fmt.Errorf("size %q is above the largest, 1 PiB (1024T)", b)
	case n%store.PageSize != 0:
		return fmt.Errorf("size %q is not a multiple of 4096 bytes", b)
	}
	*v = volumeSize(n)
	return nil
}

// byteSize is any amount of bytes; 0 is none given.
type byteSize int64

// UnmarshalText reads a size.
func (v *byteSize) UnmarshalText(b []byte) error {
	n, err := parseSize(string(b))
	*v = byteSize(n)
	return err
}
