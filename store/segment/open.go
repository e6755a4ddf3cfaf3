package segment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"torus/store"
)

const (
	segmentsDir = "segments"
	indexDir    = "index"
	indexAside  = "index.damaged"
)

func checkSegmentSize(n int64) error {
	if n < 1<<20 || n > maxBlocks*blockSize || n%blockSize != 0 {
		return invalid("segment size %d is not a multiple of %d in [%d, %d]", n, blockSize, 1<<20, maxBlocks*blockSize)
	}
	return nil
}

func (o *Options) fill() error {
	if o.SegmentSize == 0 {
		o.SegmentSize = defaultSegmentSize
	}
	if o.Reserve == 0 {
		o.Reserve = DefaultReserve
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.memtable == 0 {
		o.memtable = defaultMemtable
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Capacity < 0 || o.Reserve < 0 || o.CacheBytes < 0 {
		return invalid("capacity %d, reserve %d, cache %d", o.Capacity, o.Reserve, o.CacheBytes)
	}
	if o.bootID == "" {
		var err error
		if o.bootID, err = currentBootID(); err != nil {
			return err
		}
	}
	return checkSegmentSize(o.SegmentSize)
}

// Open opens the store in o.Dir, or makes it. It returns when everything that
// was acknowledged is there again: the tail of the log is replayed, and the
// index rebuilt if it is lost or contradicts itself. ErrCorrupt: the segments
// have lost something that was on stable storage, and nothing says what; the
// error names the place. ErrLocked; a *FormatError for a store of another format.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := makeDirs(o.Dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	st, err := openLocked(o, lock)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", o.Dir, errors.Join(err, lock.release()))
	}
	return st, nil
}

// GiveWay has the reserve of the store in o.Dir, if there is one, give way to what
// has filled the disk while nobody ran. It is for those who keep other files beside
// the store, and open them before it or at the same time. ErrLocked.
func GiveWay(o Options) error {
	if err := o.fill(); err != nil {
		return err
	}
	dir := filepath.Join(o.Dir, segmentsDir)
	if _, err := os.Stat(filepath.Join(dir, ballastName)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return err
	}
	b, err := openBallast(&osDisk{dir: dir}, o.Reserve)
	if err == nil {
		err = errors.Join(b.adjust(), b.close())
	}
	return errors.Join(err, lock.release())
}

func makeDirs(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, segmentsDir), 0o700); err != nil {
		return err
	}
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(filepath.Clean(dir))))
}

func openLocked(o Options, lock *dirLock) (*Store, error) {
	st := &Store{options: o, logger: o.Logger, lock: lock, tables: newTables(), disk: o.disk,
		stop: make(chan struct{}), wake: make(chan struct{}, 1)}
	var err error
	if st.state, err = loadState(o.Dir, o.bootID, o.SegmentSize); err != nil {
		return nil, err
	}
	st.incarnation.Store(uint64(st.state.Incarnation))
	if st.disk == nil {
		if st.disk, err = newOSDisk(filepath.Join(o.Dir, segmentsDir)); err != nil {
			return nil, err
		}
	}
	b, err := openBallast(st.disk, o.Reserve)
	if err != nil {
		return nil, err
	}
	st.segments = newSegments(st.disk, st.state.Identity, st.state.SegmentSize, o.Capacity, b)
	st.log = newHotLog(st.segments)
	st.log.apply, st.log.snapshot, st.log.failed = st.apply, st.snapshot, st.fail
	err = b.adjust()
	if !o.manual { // also during the recovery, in which Badger writes
		st.background.Add(1)
		go st.watchReserve()
	}
	if err = errors.Join(err, st.recover()); err != nil {
		close(st.stop)
		st.background.Wait()
		return nil, errors.Join(err, st.abandon())
	}
	if !o.manual {
		st.background.Add(1)
		go st.runBackground()
	}
	return st, nil
}

// abandon closes what an open that failed had opened.
func (st *Store) abandon() error {
	var err error
	if st.index != nil && st.index.db != nil {
		err = st.index.db.close()
	}
	return errors.Join(err, st.segments.close(), st.segments.ballast.close())
}

// snapshot returns the records that a hot segment begins with.
func (st *Store) snapshot() []record {
	var recs []record
	for _, g := range st.segments.all() {
		recs = append(recs, record{kind: recSegment, layer: store.LayerID(g.num), page: uint64(g.used.Load()), flags: uint8(g.stream)})
	}
	return st.tables.snapshot(recs)
}

// maintain is one round of the background work.
func (st *Store) maintain() error {
	st.segments.supplyAgain()
	if err := st.segments.ballast.adjust(); err != nil {
		return err
	}
	if st.doubt.Load() != nil {
		if err := st.rebuildServing(); err != nil {
			return err
		}
	}
	if st.marksDue(time.Now()) {
		if err := st.recordMarks(); err != nil {
			return err
		}
	}
	swept, err := st.sweep()
	if err != nil {
		return err
	}
	if st.flushDue(time.Now()) {
		if err := st.flush(); err != nil {
			return err
		}
		if swept {
			st.forget()
		}
	}
	more, err := st.collect(time.Now())
	if more {
		st.poke()
	}
	if errors.Is(err, store.ErrClosed) || errors.Is(err, store.ErrNoSpace) {
		return nil // closing; or the collector has to wait for space like others
	}
	return err
}
