package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// tx is a transaction in the making: what it read, all at one revision,
// becomes its conditions.
type tx struct {
	c     *Cluster
	at    Revision // of all reads; 0 before the first
	reads map[string]Revision
	txn   Txn
}

// transact runs f, which reads and says what to write, and commits that if
// nothing it read has changed; otherwise it runs f again. When it returns nil,
// either the writes are done, or f wrote nothing.
//
// A commit with an unknown outcome is followed by another run of f too. That is
// safe since every transaction changes a key that it has read (commit insists):
// of the two at most one is done, however late the first arrives. So f must see
// from the records that an earlier run of its own was done, and then write
// nothing. All reads of a run are at one revision, or the commit of an earlier run,
// arriving between two of them, would show up half.
func (c *Cluster) transact(ctx context.Context, f func(context.Context, *tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Patience)
	defer cancel()
	var unknown error // a commit whose outcome no run of f has settled yet
	var last error    // why it was tried again
	for pause := firstPause; ; {
		t := &tx{c: c, reads: map[string]Revision{}}
		err := f(ctx, t)
		held := true
		if err == nil && len(t.txn.Then) > 0 {
			held, err = t.commit(ctx)
		}
		switch {
		case err == nil && held:
			return nil
		case err == nil: // somebody else's change came first
			continue
		case errors.Is(err, ErrUnknown):
			unknown, last = err, err
		case errors.Is(err, ErrUnavailable), errors.Is(err, ErrCompacted):
			last = err
		case ctx.Err() == nil:
			return err
		}
		if !wait(ctx, &pause) {
			return cmp.Or(unknown, last, err)
		}
	}
}

// commit submits what f said, under the conditions of what it read.
func (t *tx) commit(ctx context.Context) (bool, error) {
	changesRead := false
	for key, mod := range t.reads {
		t.txn.If = append(t.txn.If, Cond{Key: key, Mod: mod})
	}
	for _, op := range t.txn.Then {
		_, read := t.reads[op.Key]
		changesRead = changesRead || read
	}
	if !changesRead {
		panic(fmt.Sprintf("cluster: transaction changes nothing that it read: %v", t.txn.Then))
	}
	out, err := t.c.kv.Commit(ctx, t.txn)
	return out.Held, err
}

// get reads a record, and makes it a condition that it stays as it is.
func (t *tx) get(ctx context.Context, key string, r record) (bool, error) {
	p, err := t.pair(ctx, key)
	if err != nil || p.Mod == 0 {
		return false, err
	}
	return true, decode(key, p.Value, r)
}

// pair reads a record as it is stored, under the same condition.
func (t *tx) pair(ctx context.Context, key string) (Pair, error) {
	p, at, err := t.c.kv.Get(ctx, key, t.at)
	if err == nil {
		t.at, t.reads[key] = at, p.Mod
	}
	return p, err
}

// list reads all records below a prefix, and makes it a condition that none is
// added or changed (one may go).
func (t *tx) list(ctx context.Context, prefix string) ([]Pair, error) {
	pairs, at, err := t.c.kv.Range(ctx, prefix, t.at)
	if err == nil {
		t.at = at
		t.txn.If = append(t.txn.If, Cond{Key: prefix, Mod: at, Prefix: true})
	}
	return pairs, err
}

// put writes a record.
func (t *tx) put(key string, r record) { t.putLeased(key, r, 0) }

// putLeased writes a record under a lease.
func (t *tx) putLeased(key string, r record, lease LeaseID) {
	t.txn.Then = append(t.txn.Then, Op{Kind: OpPut, Key: key, Value: encode(r), Lease: lease})
}

// delete deletes a record.
func (t *tx) delete(key string) {
	t.txn.Then = append(t.txn.Then, Op{Kind: OpDelete, Key: key})
}

// deletePrefix deletes all records below prefix.
func (t *tx) deletePrefix(prefix string) {
	t.txn.Then = append(t.txn.Then, Op{Kind: OpDeletePrefix, Key: prefix})
}

// read reads one record outside of a transaction, at a revision or at the newest.
func (c *Cluster) read(ctx context.Context, key string, at Revision, r record) (bool, error) {
	var p Pair
	err := c.patiently(ctx, func(ctx context.Context) (err error) {
		p, _, err = c.kv.Get(ctx, key, at)
		return err
	})
	if err != nil || p.Mod == 0 {
		return false, err
	}
	return true, decode(key, p.Value, r)
}

// readAll reads all records below a prefix.
func (c *Cluster) readAll(ctx context.Context, prefix string, at Revision) (pairs []Pair, rev Revision, err error) {
	err = c.patiently(ctx, func(ctx context.Context) (err error) {
		pairs, rev, err = c.kv.Range(ctx, prefix, at)
		return err
	})
	return pairs, rev, err
}

// patiently repeats a call that changes nothing, or that may be done twice,
// while the records are unavailable and patience lasts.
func (c *Cluster) patiently(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Patience)
	defer cancel()
	var last error
	for pause := firstPause; ; {
		err := call(ctx)
		switch {
		case errors.Is(err, ErrUnavailable):
			last = err
		case err == nil || ctx.Err() == nil:
			return err
		}
		if !wait(ctx, &pause) {
			return cmp.Or(last, err)
		}
	}
}

// The pauses between attempts double from the first to the longest.
const (
	firstPause   = 10 * time.Millisecond
	longestPause = 500 * time.Millisecond
)

// wait sleeps for *pause and doubles it; false if ctx ended.
func wait(ctx context.Context, pause *time.Duration) bool {
	timer := time.NewTimer(*pause)
	defer timer.Stop()
	*pause = min(*pause*2, longestPause)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
