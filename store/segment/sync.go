package segment

import (
	"fmt"
	"sync"

	"torus/store"
)

// sync returns when everything applied before the call is on stable storage.
// Callers share one fdatasync: who comes while one runs waits for the next.
// Older segments need none, since rotating synced them.
func (l *hotLog) sync() error {
	target := l.applied.Load()
	l.syncMu.Lock()
	for l.syncing && l.synced.Load() < target && l.syncErr == nil {
		l.syncDone.Wait()
	}
	if l.syncErr != nil || l.synced.Load() >= target {
		err := l.syncErr
		l.syncMu.Unlock()
		return err
	}
	l.syncing = true
	l.syncMu.Unlock()

	l.mu.Lock()
	g, end, written := l.cur, l.applied.Load(), l.off
	g.pins.Add(1)
	l.mu.Unlock()
	err := g.f.datasync()
	g.unpin()
	l.syncs.Add(1)
	if err != nil {
		l.failed(err)
		err = fmt.Errorf("%w: %v", store.ErrFailed, err)
	}
	l.syncMu.Lock()
	l.syncing = false
	if err != nil {
		// Never retried into success: the kernel may have dropped the pages (N2).
		l.syncErr = err
	}
	l.syncMu.Unlock()
	if err == nil {
		l.syncedTo(end)
		l.zeroAhead(g, written)
	}
	l.syncMu.Lock()
	l.syncDone.Broadcast()
	l.syncMu.Unlock()
	return err
}

func (l *hotLog) syncedTo(end uint64) {
	for {
		old := l.synced.Load()
		if end <= old || l.synced.CompareAndSwap(old, end) {
			return
		}
	}
}

// Zeroing ahead: a sync on blocks that were written before takes about half as
// long as one on blocks only allocated, whose conversion the file system's
// journal has to record. So where syncs come often, the blocks that the log
// will soon reach are written with zeroes in the background; where data comes
// in bulk they are not, since that would double what goes to the disk.
const (
	zeroBuffer = 1 << 20
	zeroSpan   = 8 << 20 / blockSize   // zeroed at a time
	zeroMargin = 4 << 20 / blockSize   // begun when this much is left
	oftenBytes = 256 << 10 / blockSize // syncs closer than this are often
)

// zeroWindow is the part of the open segment that is being zeroed, and up to
// where it was written before. Guarded by the log's mutex.
type zeroWindow struct {
	done     sync.Cond
	active   bool
	from, to uint32 // while active
	warm     uint32 // blocks below were written before
	lastSync uint32 // where the log ended at the sync before
	often    int    // syncs in a row that were close to the one before
	running  sync.WaitGroup
}

func (z *zeroWindow) reset(off uint32, warm bool) {
	z.warm, z.lastSync = off, off
	if warm {
		z.warm = maxBlocks
	}
}

// wait returns when nothing in [from, to) is being zeroed.
func (z *zeroWindow) wait(from, to uint32) {
	for z.active && from < z.to && z.from < to {
		z.done.Wait()
	}
}

func (l *hotLog) zeroAhead(g *seg, off uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	z := &l.zeroing
	if g != l.cur || l.rotating { // what is given up now may soon be another's
		return
	}
	if off-z.lastSync > oftenBytes {
		z.often = 0
	} else {
		z.often++
	}
	z.lastSync = off
	if z.often < 8 || z.active || z.warm >= l.segs.blocks || z.warm > l.off+zeroMargin {
		return
	}
	z.from = max(z.warm, l.off)
	z.to = min(z.from+zeroSpan, l.segs.blocks)
	if z.from >= z.to {
		return
	}
	z.active = true
	z.running.Add(1)
	go l.zero(g)
}

func (l *hotLog) zero(g *seg) {
	z := &l.zeroing
	defer z.running.Done()
	var bufs [zeroSpan * blockSize / zeroBuffer][]byte
	n := 0
	for left := int(z.to-z.from) * blockSize; left > 0; n++ {
		bufs[n] = zeroPages[:min(left, len(zeroPages))]
		left -= len(bufs[n])
	}
	err := g.f.writeAt(bufs[:n], int64(z.from)*blockSize)
	if err != nil {
		l.failed(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	z.active = false
	if err == nil && g == l.cur {
		z.warm = z.to
	}
	z.done.Broadcast()
}

var zeroPages = alignedBuffer(zeroBuffer)
