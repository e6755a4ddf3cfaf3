package remote

import "sync"

// workers are the goroutines that wait for the store, shared by all
// connections: as many as there are requests under way, which the connections'
// limits bound; some are kept, and the last one used is used next, its stack
// being warm.
type workers struct {
	maxIdle int

	mu     sync.Mutex // guards what follows
	idle   []*worker
	closed bool
	wg     sync.WaitGroup
}

type worker struct{ next chan *job } // capacity 1

// run hands j to a worker.
func (p *workers) run(j *job) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		w.next <- j
		return
	}
	p.mu.Unlock()
	w := &worker{next: make(chan *job, 1)}
	w.next <- j
	p.wg.Go(func() { p.loop(w) })
}

func (p *workers) loop(w *worker) {
	for j := range w.next {
		j.c.serve(j)
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
