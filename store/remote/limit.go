package remote

import "sync"

// A limit bounds the requests of one connection and their memory. The reader
// takes before it allocates, and waits where there is nothing left: so the
// client's socket fills, and the client waits.
type limit struct {
	mu      sync.Mutex
	freed   sync.Cond // something was given back, or ended
	running int       // requests
	slots   int       // requests that may still start
	bytes   int64     // that may still be taken
	ended   bool
}

func newLimit(slots int, bytes int64) *limit {
	l := &limit{slots: slots, bytes: bytes}
	l.freed.L = &l.mu
	return l
}

// take returns false once the limit was ended. n is at most what there is.
func (l *limit) take(n int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.ended && (l.slots == 0 || l.bytes < n) {
		l.freed.Wait()
	}
	if l.ended {
		return false
	}
	l.slots--
	l.bytes -= n
	l.running++
	return true
}

// give gives back count requests and n bytes.
func (l *limit) give(count int, n int64) {
	l.mu.Lock()
	l.slots += count
	l.bytes += n
	l.running -= count
	l.mu.Unlock()
	l.freed.Broadcast()
}

// end lets nobody take any more.
func (l *limit) end() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.freed.Broadcast()
}

// wait returns when nothing is taken any more.
func (l *limit) wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.running > 0 {
		l.freed.Wait()
	}
}
