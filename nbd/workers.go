package nbd

import "sync"

// workers are the goroutines that wait for devices, shared by all connections.
// As many run as there are requests under way, which the limiters bound; some
// are kept for reuse, and the one that was used last is used next, its stack
// being warm.
type workers struct {
	maxIdle int

	mu     sync.Mutex
	idle   []*worker
	closed bool
	wg     sync.WaitGroup
}

type worker struct{ next chan *request } // capacity 1

// run hands r to an idle worker or a new one.
func (p *workers) run(r *request) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		w.next <- r
		return
	}
	p.mu.Unlock()
	w := &worker{next: make(chan *request, 1)}
	w.next <- r
	p.wg.Go(func() { p.loop(w) })
}

func (p *workers) loop(w *worker) {
	for r := range w.next {
		r.c.serve(r)
		if !p.park(w) {
			return
		}
	}
}

// park makes w idle, unless there are enough idle ones.
func (p *workers) park(w *worker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= p.maxIdle {
		return false
	}
	p.idle = append(p.idle, w)
	return true
}

// close ends the idle workers and waits for all. Nobody may call run any more.
func (p *workers) close() {
	p.mu.Lock()
	p.closed = true
	for _, w := range p.idle {
		close(w.next)
	}
	p.idle = nil
	p.mu.Unlock()
	p.wg.Wait()
}
