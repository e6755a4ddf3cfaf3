// Package segment is the page store on this machine's disk: pages in
// append-only segment files, an index of them in Badger.
//
// It promises the contract of package store over kill -9, power loss, a full
// disk, flipped bits in any of its files and the loss of the whole index. What
// is acknowledged is in a segment; what is synced is on stable storage; Badger
// is a cache of what the segments say, and is rebuilt from them at any doubt.
// Which copy of a page is right among nodes is left to package volume.
//
// A store's directory:
//
//	lock            held with flock while a process has the store open
//	store.json      format, identity, incarnation, boot ID
//	segments/N.seg  the log (format.go), spares among them
//	segments/reserve  space kept for Badger and etcd (ballast.go)
//	index/          Badger (indexdb.go)
//	index.damaged/  an index in doubt, until another is made from the segments
package segment

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"torus/store"
)

// Options say where a store is and how large it may get.
type Options struct {
	// Dir is made if it is not there.
	Dir string
	// Capacity bounds the segments, in bytes; 0: what the file system has.
	Capacity int64
	// Reserve is the disk space held back for Badger and etcd, in bytes;
	// 0: DefaultReserve.
	Reserve int64
	// SegmentSize in bytes, a multiple of 4096 of at least 1 MiB and at most
	// 256 MiB; 0: 256 MiB. It is fixed when the store is made.
	SegmentSize int64
	// CacheBytes bounds the part of the index that is kept in memory though it
	// is in Badger too; 0: 64 MiB.
	CacheBytes int64
	// Logger may be nil.
	Logger *slog.Logger

	// For the tests: the disk to use, what the boot ID is, no background work,
	// the size of Badger's memtable, which every open clears.
	disk     disk
	bootID   string
	manual   bool
	memtable int64
}

const (
	// DefaultReserve is what is held back for Badger and etcd.
	DefaultReserve     = 1 << 30
	defaultSegmentSize = 256 << 20
	defaultCacheBytes  = 64 << 20
	defaultMemtable    = 128 << 20 // a flush of mostDirty buckets fits into 15 % of it
)

// Store keeps pages in a directory. Open makes it.
type Store struct {
	options Options
	logger  *slog.Logger
	lock    *dirLock

	// gate is held for reading by every request, and for writing where the
	// store as a whole changes: closing, rebuilding the index. Locks are taken
	// in the order gate, session, layer.exclusive, flushMu, log, index, shard, layer, tables.
	gate   sync.RWMutex
	closed bool // guarded by gate

	state    *stateFile
	segments *segments
	log      *hotLog
	index    *index
	tables   *tables
	disk     disk

	failure     atomic.Pointer[error]
	incarnation atomic.Uint64
	doubt       atomic.Pointer[string]

	flushMu   sync.Mutex // one flush at a time
	persisted meta       // what Badger's meta record says; guarded by flushMu
	// freedSegments are those whose record the next flush deletes; guarded by flushMu.
	freedSegments []*seg
	tableSums     []*uint64 // of the 't' records; guarded by flushMu

	background sync.WaitGroup
	stop       chan struct{}
	wake       chan struct{}
	collector  collector
	due        due
	sweeps     sweepQueue
	sweeping   sync.Mutex // one sweep at a time; taken after gate and layer.exclusive

	stats counters
}

type counters struct {
	writes, reads, syncs, bytesWritten, bytesRead, corrupt, collected atomic.Int64
}

var _ store.Store = (*Store)(nil)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", store.ErrInvalid, fmt.Sprintf(format, args...))
}

// enter lets a request in; the caller releases the gate. Only then is it known
// that the store is open.
func (st *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	st.gate.RLock()
	if st.closed {
		st.gate.RUnlock()
		return store.ErrClosed
	}
	if err := st.failure.Load(); err != nil {
		st.gate.RUnlock()
		return fmt.Errorf("%w: %v", store.ErrFailed, *err)
	}
	return nil
}

func (st *Store) currentIncarnation() store.Incarnation {
	return store.Incarnation(st.incarnation.Load())
}

// fail ends the service after a disk error: what was acknowledged may be
// gone, so from here on the store is another incarnation, also over a restart (N2).
func (st *Store) fail(err error) {
	if !st.failure.CompareAndSwap(nil, &err) {
		return
	}
	st.logger.Error("the disk failed; the store serves nothing until it is opened anew", "error", err)
	st.log.breakOff(err)
	st.incarnation.Store(uint64(newIncarnation()))
	if err := st.state.disown(); err != nil {
		st.logger.Error("the failure could not be recorded", "error", err)
	}
}

// suspect notes that the index contradicts itself or the segments: collecting
// stops, and the index is rebuilt.
func (st *Store) suspect(format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	if st.doubt.CompareAndSwap(nil, &why) {
		st.logger.Error("the index is in doubt and will be rebuilt from the segments", "why", why)
		st.poke()
	}
}

// doubted turns an index's contradiction into ErrCorrupt: not absence, and
// gone after the rebuild.
func (st *Store) doubted(err error) error {
	if !errors.Is(err, errDoubt) {
		return err
	}
	st.suspect("%v", err)
	return fmt.Errorf("%w: %v", store.ErrCorrupt, err)
}

// poke wakes the background work.
func (st *Store) poke() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// ReadSealed implements store.Store.
func (st *Store) ReadSealed(ctx context.Context, chain []store.LayerID, off int64, p []byte) error {
	if err := st.enter(ctx); err != nil {
		return err
	}
	defer st.gate.RUnlock()
	return st.read(chain, off, p, nil)
}

// Layers implements store.Store. It sweeps first, so that Bytes counts what
// lives.
func (st *Store) Layers(ctx context.Context) iter.Seq2[store.LayerInfo, error] {
	return func(yield func(store.LayerInfo, error) bool) {
		if err := st.enter(ctx); err != nil {
			yield(store.LayerInfo{}, err)
			return
		}
		_, err := st.sweep()
		layers := st.tables.allLayers()
		st.gate.RUnlock()
		if err != nil {
			yield(store.LayerInfo{}, err)
			return
		}
		for _, l := range layers {
			if info, ok := l.info(); ok && !yield(info, nil) {
				return
			}
		}
	}
}

func (l *layer) info() (store.LayerInfo, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return store.LayerInfo{ID: l.id, Parent: l.parent, Bytes: l.live.Load() * store.PageSize,
		Stable: store.Version(l.stable.Load()), Settled: store.Version(l.settled.Load())}, l.known
}

// Fences implements store.Store.
func (st *Store) Fences(ctx context.Context) iter.Seq2[store.Fence, error] {
	return func(yield func(store.Fence, error) bool) {
		if err := st.enter(ctx); err != nil {
			yield(store.Fence{}, err)
			return
		}
		var fences []store.Fence
		st.tables.mu.RLock()
		for id, v := range st.tables.volumes {
			if e := v.durable.Load(); e != 0 {
				fences = append(fences, store.Fence{Volume: id, Epoch: store.Epoch(e)})
			}
		}
		st.tables.mu.RUnlock()
		st.gate.RUnlock()
		for _, f := range fences {
			if !yield(f, nil) {
				return
			}
		}
	}
}

// Stat implements store.Store. It answers also when the store has failed.
func (st *Store) Stat(ctx context.Context) (store.Stat, error) {
	if err := ctx.Err(); err != nil {
		return store.Stat{}, err
	}
	st.gate.RLock()
	defer st.gate.RUnlock()
	if st.closed {
		return store.Stat{}, store.ErrClosed
	}
	s := store.Stat{
		Identity: st.state.Identity, Incarnation: st.currentIncarnation(),
		Capacity: st.segments.available(), Used: st.segments.usedBytes(),
		Corrupt: st.stats.corrupt.Load(), Writes: st.stats.writes.Load(), Reads: st.stats.reads.Load(),
		Syncs: st.stats.syncs.Load(), BytesWritten: st.stats.bytesWritten.Load(), BytesRead: st.stats.bytesRead.Load(),
		BytesToDisk: st.log.bytes.Load() + st.stats.collected.Load(), BytesCollected: st.stats.collected.Load(),
		NoSpace: st.segments.exhausted() != nil && st.segments.usable() == 0,
	}
	for _, g := range st.segments.all() {
		s.Live += int64(g.live.Load()) * store.PageSize
	}
	if err := st.failure.Load(); err != nil {
		s.Failed = (*err).Error()
	}
	return s, nil
}

// Close implements store.Store.
func (st *Store) Close() error {
	st.gate.Lock()
	if st.closed {
		st.gate.Unlock()
		return nil
	}
	st.closed = true
	st.gate.Unlock()
	close(st.stop)
	st.background.Wait()
	var err error
	if st.failure.Load() == nil {
		err = errors.Join(st.recordMarks(), st.sealClean(), st.flush())
	}
	return errors.Join(err, st.shut())
}

// sealClean ends the log with a record that names all before it as synced, so
// that damage to the last batches is not taken for a torn tail; on a full disk
// there may be no block for it.
func (st *Store) sealClean() error {
	if err := st.log.sync(); err != nil {
		return err
	}
	r := newRequest()
	r.need = forSpace
	r.add(record{kind: recClean})
	if err := st.commitDurable(r); !errors.Is(err, store.ErrNoSpace) {
		return err
	}
	return nil
}

// shut closes what is open, in reverse.
func (st *Store) shut() error {
	st.log.zeroing.running.Wait()
	return errors.Join(st.index.db.close(), st.segments.close(), st.segments.ballast.close(), st.lock.release())
}

// tick is how often the background work looks around.
const tick = 200 * time.Millisecond

// runBackground flushes, sweeps, collects and rebuilds until the store closes.
func (st *Store) runBackground() {
	defer st.background.Done()
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-st.stop:
			return
		case <-t.C:
		case <-st.wake:
		}
		if st.failure.Load() != nil {
			continue
		}
		if err := st.maintain(); err != nil && !errors.Is(err, store.ErrFailed) {
			st.logger.Error("background work of the store", "error", err)
		}
	}
}

// reserveTick is how often the reserve is looked after: a quarter of it is free
// beside it, and others may fill that faster than a round of background work takes.
const reserveTick = 20 * time.Millisecond

// watchReserve has the reserve give way in time, and also when the store has failed.
func (st *Store) watchReserve() {
	defer st.background.Done()
	t := time.NewTicker(reserveTick)
	defer t.Stop()
	for {
		select {
		case <-st.stop:
			return
		case <-t.C:
			_ = st.segments.ballast.adjust() // maintain tries it too, and says what is wrong
		}
	}
}
