package remote

import (
	"runtime"
	"sync"
)

// replies gathers answers. The first to come sends, and goes on until there
// are no more; the others leave theirs with it. So a lone answer leaves at
// once, and under load one system call carries many.
type replies struct {
	c      *serverConn
	output *output // the sender's

	mu      sync.Mutex // guards what follows
	queue   []*job
	spare   []*job // for the next queue
	sending bool
	batches uint64 // sent
	beat    bool   // an opAlive is to be sent
	pinged  uint64 // that it says
	err     error  // nothing can be sent any more

	beatFrame [answerSize]byte // the sender's
	beats     sync.WaitGroup   // senders that a beat began
}

const (
	// few is how many answers are worth a system call while more requests are
	// under way.
	few = 8
	// batchBytes bounds what is sent at a time, lest answers that are out wait
	// for their batch to be given back.
	batchBytes = 1 << 20
)

// send sends the answer of j and gives j back.
func (o *replies) send(j *job) {
	o.mu.Lock()
	o.queue = append(o.queue, j)
	o.drain()
}

// alive has an opAlive sent, unless a sender is stuck with the last one. It does
// not send itself: who sends goes on for others, and the keeper has the next beat
// to keep.
func (o *replies) alive(pinged uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.beat, o.pinged = true, pinged
	if !o.sending {
		o.beats.Go(func() {
			o.mu.Lock()
			o.drain()
		})
	}
}

// progress returns how many batches were sent and whether one is being sent.
func (o *replies) progress() (batches uint64, sending bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.batches, o.sending
}

// drain sends what there is, unless somebody does already. It is called with
// mu held and returns without.
func (o *replies) drain() {
	if o.sending {
		o.mu.Unlock()
		return
	}
	o.sending = true
	for len(o.queue) > 0 || o.beat {
		if len(o.queue) < few && o.others() {
			// What one sync or one batch of the store has released comes in a
			// crowd: letting it run first makes one system call of many.
			o.mu.Unlock()
			runtime.Gosched()
			o.mu.Lock()
		}
		batch := o.queue
		o.queue = o.spare[:0]
		err := o.err
		if o.beat {
			o.beat = false
			a := answer{op: opAlive, id: o.pinged}
			a.encode(o.beatFrame[:])
			o.output.add(o.beatFrame[:])
		}
		o.mu.Unlock()
		if err = o.sendAll(batch, err); err != nil {
			o.c.end(err)
		}
		o.mu.Lock()
		o.spare = batch[:0]
		o.batches++
		o.err = err
	}
	o.sending = false
	o.mu.Unlock()
}

// others tells whether requests are under way that aren't in the queue. Called
// with mu held.
func (o *replies) others() bool {
	l := o.c.limit
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running > len(o.queue)
}

// sendAll sends the batch in pieces and gives its jobs back, sent or not.
func (o *replies) sendAll(batch []*job, err error) error {
	for start := 0; start < len(batch) || len(o.output.bufs) > 0; {
		end, size := start, 0
		for end < len(batch) && size < batchBytes {
			j := batch[end]
			o.output.add(j.head[:])
			o.output.add(j.data)
			o.output.add(j.extra)
			size += len(j.data) + len(j.extra)
			end++
		}
		if err == nil {
			err = o.output.flush()
		} else {
			o.output.discard()
		}
		var charge int64
		for i, j := range batch[start:end] {
			charge += j.charge
			j.release()
			batch[start+i] = nil
		}
		o.c.limit.give(end-start, charge)
		start = end
	}
	return err
}
