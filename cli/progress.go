package cli

import (
	"sync"
	"time"
)

// Progress is told when something has taken this long, and again after each
// further such time.
const progressEvery = time.Second

// A progress tells a person what takes so long. What ends within a second says
// nothing.
type progress struct {
	a     *app
	doing string // such as "starting"
	begun time.Time
	stop  chan struct{}
	ended sync.WaitGroup

	mu   sync.Mutex // guards what follows
	what string
}

// progress begins to tell, until end.
func (a *app) progress(doing string) *progress {
	p := &progress{a: a, doing: doing, begun: time.Now(), stop: make(chan struct{})}
	p.ended.Go(p.run)
	return p
}

func (p *progress) run() {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		what := p.what
		p.mu.Unlock()
		if what != "" {
			p.a.note("Still %s %s, %v so far.", p.doing, what, time.Since(p.begun).Round(time.Second))
		}
	}
}

// at says what is waited for from now on.
func (p *progress) at(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
}

// end returns when nothing will be told any more.
func (p *progress) end() {
	close(p.stop)
	p.ended.Wait()
}
