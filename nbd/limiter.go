package nbd

import "sync"

// A limiter bounds requests in flight and the memory they hold. There is one
// for the server and one for each connection; a reader takes from its
// connection's first, then from the server's, before it allocates anything for
// a request, and waits where there is nothing left: so the client's socket
// fills and the client waits.
//
// Waiters are served in order, lest small requests starve a large one.
type limiter struct {
	mu      sync.Mutex
	slots   int   // requests that may still start
	bytes   int64 // memory that may still be taken
	waiting []*waiter
	closed  bool
}

// A waiter is one reader in the queue of a limiter; it is reused.
type waiter struct {
	bytes int64
	ready chan bool // capacity 1; true: taken, false: the limiter was closed
}

func newLimiter(slots int, bytes int64) *limiter {
	return &limiter{slots: slots, bytes: bytes}
}

// acquire takes one slot and n bytes, waiting until both are there. n must not
// exceed what the limiter was made with. It returns false once close was
// called.
func (l *limiter) acquire(n int64, w *waiter) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	if len(l.waiting) == 0 && l.slots > 0 && l.bytes >= n {
		l.slots--
		l.bytes -= n
		l.mu.Unlock()
		return true
	}
	w.bytes = n
	l.waiting = append(l.waiting, w)
	l.mu.Unlock()
	return <-w.ready
}

// release gives back slots and bytes that were acquired.
func (l *limiter) release(slots int, n int64) {
	l.mu.Lock()
	l.slots += slots
	l.bytes += n
	if len(l.waiting) > 0 {
		l.wake()
	}
	l.mu.Unlock()
}

// wake lets the first waiters go on; l.mu is held.
func (l *limiter) wake() {
	for len(l.waiting) > 0 && l.slots > 0 && l.bytes >= l.waiting[0].bytes {
		w := l.waiting[0]
		l.slots--
		l.bytes -= w.bytes
		copy(l.waiting, l.waiting[1:])
		l.waiting[len(l.waiting)-1] = nil
		l.waiting = l.waiting[:len(l.waiting)-1]
		w.ready <- true
	}
}

// contended tells whether somebody waits.
func (l *limiter) contended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting) > 0
}

// left returns what can still be taken.
func (l *limiter) left() (slots int, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.slots, l.bytes
}

// close sends all waiters away, now and later.
func (l *limiter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, w := range l.waiting {
		w.ready <- false
	}
	l.waiting = nil
}
