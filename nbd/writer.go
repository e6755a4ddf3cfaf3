package nbd

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// writer gathers replies. The first to come writes, and goes on until there
// are no more; the others leave theirs with it. So a lone reply leaves at
// once, and under load one system call carries many.
type writer struct {
	running atomic.Int32 // requests read and not yet answered
	mu      sync.Mutex   // guards what follows
	idle    sync.Cond    // running fell to 0
	queue   []*request
	spare   []*request // for the next queue
	bufs    [][]byte   // the writing goroutine's
	writing bool
	err     error // nothing can be sent any more
}

// fewReplies is how many replies are worth a system call while more requests
// are under way.
const fewReplies = 8

// reply sends the reply of r and gives r back.
func (c *conn) reply(r *request) {
	o := &c.out
	o.mu.Lock()
	o.queue = append(o.queue, r)
	if o.writing {
		o.mu.Unlock()
		return
	}
	o.writing = true
	for len(o.queue) > 0 {
		if len(o.queue) < fewReplies && int(o.running.Load()) > len(o.queue) {
			// Others are about to finish: what one sync or one batch of
			// the device has released comes in a crowd. Letting them
			// run first makes one system call of many (a third of the
			// CPU at depth 32); a lone request does not come here.
			o.mu.Unlock()
			runtime.Gosched()
			o.mu.Lock()
		}
		batch := o.queue
		o.queue = o.spare[:0]
		err := o.err
		o.mu.Unlock()
		if err == nil {
			err = c.send(batch)
		}
		for i, r := range batch {
			c.release(r)
			c.srv.putRequest(r)
			batch[i] = nil
		}
		o.mu.Lock()
		o.spare = batch
		o.err = err
		if o.running.Add(int32(-len(batch))) == 0 {
			o.idle.Broadcast()
		}
	}
	o.writing = false
	o.mu.Unlock()
}

// send writes the replies of batch. If that fails the connection is closed,
// which ends the reader too.
func (c *conn) send(batch []*request) error {
	o := &c.out
	o.bufs = o.bufs[:0]
	for _, r := range batch {
		o.bufs = append(o.bufs, r.head)
		if len(r.body) > 0 {
			o.bufs = append(o.bufs, r.body)
		}
	}
	err := c.wire.send(o.bufs)
	clear(o.bufs)
	if err != nil {
		c.nc.Close()
	}
	return err
}
