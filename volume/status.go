package volume

import "sync/atomic"

// progress is how far a resync is, for Status.
type progress struct{ done, total atomic.Int64 } // bytes

// begin starts anew.
func (p *progress) begin() {
	p.done.Store(0)
	p.total.Store(0)
}

// requests is how many requests of clients were answered so far.
func (v *Volume) requests() int64 {
	c := &v.counts
	return c.reads.Load() + c.writes.Load() + c.zeroes.Load() + c.flushes.Load()
}
