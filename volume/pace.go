package volume

import (
	"context"
	"sync"
	"time"
)

// A Pace says how fast the resyncs and scrubs of all volumes that share it go:
// while clients of any of them are at work one piece at a time, and after it a
// rest for as long as it took, so that half of what they leave stays free; else as
// fast as the workers can. A rate bounds it beyond that. The volumes of a process
// share one, as they share its processors and the nodes' disks.
type Pace struct {
	rate func() int64 // bytes/s, 0: no bound; nil: never one

	one   chan struct{} // holds one element while a piece is under way beside clients
	slots chan struct{} // holds one for each piece under way

	mu    sync.Mutex // guards what follows
	of    map[*Volume]struct{}
	seen  int64     // requests of them all, when last asked
	busy  time.Time // when they had last changed
	spent time.Time // when the bytes let through so far are paid for
}

const (
	// busyFor is how long after a request clients count as being at work.
	busyFor = 100 * time.Millisecond
	// resyncWorkers is how many pieces are under way when no client is at work.
	resyncWorkers = 4
)

// NewPace returns one whose rate, in bytes/s, is asked for each piece; nil or 0:
// the half that clients leave is the only bound.
func NewPace(rate func() int64) *Pace {
	return &Pace{rate: rate, one: make(chan struct{}, 1), slots: make(chan struct{}, resyncWorkers), of: make(map[*Volume]struct{})}
}

// join counts v's clients from now on, until leave.
func (p *Pace) join(v *Volume) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[v] = struct{}{}
	p.seen += v.requests()
}

func (p *Pace) leave(v *Volume) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, is := p.of[v]; is {
		delete(p.of, v)
		p.seen -= v.requests()
	}
}

// do does one piece of n bytes when its time has come. The error is do's, or ctx's.
func (p *Pace) do(ctx context.Context, n int64, do func() error) error {
	if err := sleep(ctx, p.due(n, time.Now())); err != nil {
		return err
	}
	turn := p.slots
	if p.clients(time.Now()) {
		turn = p.one
	}
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-turn }()
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
func (p *Pace) clients(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := int64(0)
	for v := range p.of {
		n += v.requests()
	}
	if n != p.seen {
		p.seen, p.busy = n, now
	}
	return now.Sub(p.busy) < busyFor
}

// due returns how long n bytes have to wait for those before them.
func (p *Pace) due(n int64, now time.Time) time.Duration {
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
