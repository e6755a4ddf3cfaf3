package volume

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: beside clients one piece at a time and as much rest as work, without
// them as it comes, and never above the rate.
func TestPace(t *testing.T) {
	for _, test := range []struct {
		name    string
		clients bool
		rate    int64 // MiB/s
		want    time.Duration
	}{
		{"nobody", false, 0, 10 * time.Millisecond},
		{"clients", true, 0, 4 * 20 * time.Millisecond},
		{"a rate", false, 10, 300*time.Millisecond + 10*time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			var count int64
			p := newPace(func() int64 {
				if test.clients {
					count++
				}
				return count
			}, func() int64 { return test.rate << 20 })
			time.Sleep(time.Second)
			began := time.Now()
			parallel(4, 4, func(int) {
				must(t, p.do(t.Context(), 1<<20, func() error { time.Sleep(10 * time.Millisecond); return nil }))
			})
			if took := time.Since(began); took != test.want {
				t.Errorf("%s: 4 pieces took %v, want %v", test.name, took, test.want)
			}
		})
	}
}
