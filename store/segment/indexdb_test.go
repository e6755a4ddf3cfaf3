package segment

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"torus/store"
)

// Buckets are read while a flush is being committed: who misses one in memory
// does not wait for as long as that takes.
func TestBucketsAreReadDuringCommit(t *testing.T) {
	x, err := openIndexDB(memoryDir(t)+"/index", defaultMemtable, badgerLog{slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	var longest atomic.Int64 // read, in ns
	// write commits n buckets, and returns how long that took.
	write := func(first, n uint64) time.Duration {
		t.Helper()
		txn := x.db.NewTransaction(true)
		defer txn.Discard()
		for i := range n {
			key := bucketDBKey(bucketKey{1, first + i})
			v, _ := encodeBucket(key, 1, &[bucketPages]desc{{pos: 1, version: 1, kind: store.Data}})
			if err := txn.Set(key, v); err != nil {
				t.Fatal(err)
			}
		}
		longest.Store(0)
		start := time.Now()
		if err := x.commit(txn); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	write(0, 1)
	stop, ended := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			var pages [bucketPages]desc
			start := time.Now()
			err = x.bucket(bucketKey{1, 0}, 1, &pages)
			longest.Store(max(longest.Load(), int64(time.Since(start))))
		}
		ended <- err
	}()
	waited := true
	for range 5 { // a read may have waited for the processor
		took := write(1, mostDirty)
		most := time.Duration(longest.Load())
		t.Logf("a commit took %v, the longest read meanwhile %v", took, most)
		if waited = most > took/4; !waited {
			break
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if waited {
		t.Error("reading a bucket waits for a commit")
	}
}
