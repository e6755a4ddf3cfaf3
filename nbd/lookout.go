package nbd

import (
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A lookout is how a reader waits for the next request of a client that sends
// one at a time: in the kernel, on a thread of its own, rather than through the
// runtime's poller, which wakes two threads more for each request (at depth 1,
// 58 µs of the processor for a read that takes 46 so). The threads are few: a
// client that turns out slower is waited for as others are.
type lookout struct {
	all   *lookouts
	on    bool
	pause int // waits still to pass after one in vain
}

// lookouts are those of all connections.
type lookouts struct{ n atomic.Int32 }

const (
	lookoutFor   = time.Millisecond
	lookoutMost  = 4  // at a time
	lookoutPause = 16 // waits without, after one in vain
)

// begin is called before the first look at the socket. soon says whether the
// next request is expected within lookoutFor.
func (l *lookout) begin(soon bool) {
	l.on = soon && l.pause == 0
	if soon && l.pause > 0 {
		l.pause--
	}
}

// wait returns true when there is something to read from fd, an error included,
// and false when the poller is to be asked for that.
func (l *lookout) wait(fd uintptr) bool {
	if !l.on {
		return false
	}
	l.on = false
	if l.all.n.Add(1) > lookoutMost {
		l.all.n.Add(-1)
		return false
	}
	defer l.all.n.Add(-1)
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds[:], int(lookoutFor.Milliseconds()))
	if n == 0 && err == nil {
		l.pause = lookoutPause
	}
	return n > 0 || errors.Is(err, unix.EINTR)
}
