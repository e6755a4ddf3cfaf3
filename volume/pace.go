package volume

import (
	"context"
	"sync"
	"time"
)

// A pace says how fast resyncs go: while clients are at work one piece at a time,
// and after it a rest for as long as it took, so that half of what they leave
// stays free; else as fast as the workers can. A rate bounds it beyond that.
type pace struct {
	requests func() int64 // of clients, so far
	rate     func() int64 // bytes/s, 0: no bound; nil: never one

	one chan struct{} // holds one element while a piece is under way beside clients

	mu    sync.Mutex // guards what follows
	seen  int64      // requests, when last asked
	busy  time.Time  // when they had last changed
	spent time.Time  // when the bytes let through so far are paid for
}

const (
	// busyFor is how long after a request clients count as being at work.
	busyFor = 100 * time.Millisecond
	// resyncWorkers is how many pieces are under way when nobody is.
	resyncWorkers = 4
)

func newPace(requests func() int64, rate func() int64) *pace {
	return &pace{requests: requests, rate: rate, one: make(chan struct{}, 1)}
}

// do does one piece of n bytes when its time has come. The error is do's, or ctx's.
func (p *pace) do(ctx context.Context, n int64, do func() error) error {
	if err := sleep(ctx, p.due(n, time.Now())); err != nil {
		return err
	}
	if !p.clients(time.Now()) {
		return do()
	}
	select {
	case p.one <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.one }()
	began := time.Now()
	if err := do(); err != nil {
		return err
	}
	return sleep(ctx, rest(time.Since(began), p.clients(time.Now())))
}

// rest returns how long to rest after a piece that took so long.
func rest(took time.Duration, clients bool) time.Duration {
	if clients {
		return took
	}
	return 0
}

// clients reports whether clients are at work.
func (p *pace) clients(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.requests(); n != p.seen {
		p.seen, p.busy = n, now
	}
	return now.Sub(p.busy) < busyFor
}

// due returns how long n bytes have to wait for those before them.
func (p *pace) due(n int64, now time.Time) time.Duration {
	if p.rate == nil {
		return 0
	}
	rate := p.rate()
	if rate <= 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.spent.Before(now) {
		p.spent = now
	}
	wait := p.spent.Sub(now)
	p.spent = p.spent.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return wait
}

// sleep waits for d, or for the end of ctx, whose error it returns then.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
