package segment

import "time"

// due remembers when background work was last done; the background
// goroutine's alone.
type due struct {
	flushed, marked time.Time
	flushedBytes    int64
	seenBytes       int64
	idle            time.Time
}

// flushDue decides whether the index is flushed now: when much changed, after
// a while, and soon after the last write.
func (st *Store) flushDue(now time.Time) bool {
	d, bytes := &st.due, st.log.bytes.Load()
	if bytes != d.seenBytes {
		d.seenBytes, d.idle = bytes, now
	}
	due := st.index.dirtyCount.Load() >= flushDirty || bytes-d.flushedBytes >= flushBytes ||
		bytes != d.flushedBytes && (now.Sub(d.flushed) >= flushEvery || now.Sub(d.idle) >= restAfter)
	if due {
		d.flushed, d.flushedBytes = now, bytes
	}
	return due
}

// marksDue spaces out the records of watermarks, which are needed only after a
// crash, and then spare work but decide nothing.
func (st *Store) marksDue(now time.Time) bool {
	if now.Sub(st.due.marked) < flushEvery {
		return false
	}
	st.due.marked = now
	return true
}
