package volume

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: beside clients, be they of another volume, one piece at a time and as
// much rest as work, without them some at a time, and never above the rate.
func TestPace(t *testing.T) {
	for _, test := range []struct {
		name    string
		clients int   // volume that has them; 0: none
		rate    int64 // MiB/s
		want    time.Duration
	}{
		{"nobody", 0, 0, 20 * time.Millisecond},
		{"clients", 1, 0, 8 * 20 * time.Millisecond},
		{"clients of another volume", 2, 0, 8 * 20 * time.Millisecond},
		{"a rate", 0, 10, 700*time.Millisecond + 10*time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := NewPace(func() int64 { return test.rate << 20 })
			volumes := []*Volume{new(Volume), new(Volume), new(Volume)}
			for _, v := range volumes {
				v.counts.reads.Add(100) // before
				p.join(v)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				for test.clients > 0 && sleep(ctx, time.Millisecond) == nil {
					volumes[test.clients].counts.writes.Add(1)
				}
			}()
			time.Sleep(time.Second)
			synctest.Wait()
			began := time.Now()
			parallel(8, 8, func(int) {
				must(t, p.do(t.Context(), 1<<20, func() error { time.Sleep(10 * time.Millisecond); return nil }))
			})
			if took := time.Since(began); took != test.want {
				t.Errorf("%s: 8 pieces took %v, want %v", test.name, took, test.want)
			}
			p.leave(volumes[2])
			cancel()
			synctest.Wait()
			p.clients(time.Now()) // sees the last of them
			time.Sleep(busyFor)
			if p.clients(time.Now()) {
				t.Errorf("%s: clients are at work where there are none", test.name)
			}
		})
	}
}

// TestPaceShared: volumes that are opened with one pace wait for each other's clients.
func TestPaceShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPace(nil)
		var volumes []*Volume
		for range 2 {
			o := newNodes(1, 1, nil).options(1, 1<<20)
			o.Pace = p
			volumes = append(volumes, open(t, o))
		}
		time.Sleep(time.Second)
		write(t, volumes[0], []byte("x"), 0)
		if !volumes[1].pace.clients(time.Now()) {
			t.Error("a client of the one volume is none for the other")
		}
		must(t, volumes[0].Close())
		time.Sleep(busyFor)
		if p.clients(time.Now()) {
			t.Error("a closed volume has clients")
		}
	})
}
