package cluster

import (
	"context"
	"fmt"
	"iter"
	"time"
)

// A KV keeps the records: an ordered map from keys to values in which every
// change has a revision, with transactions, watches and leases. etcd is one
// (Server.KV, Dial), Memory another; testKV, in the tests, holds both to this text.
//
// All methods may be called concurrently. Each is one attempt that ends within
// a few seconds, whatever its context says; repeating is left to Cluster.
// Errors: ErrUnavailable, nothing was done and it may be tried again; ErrUnknown
// (from Commit alone), it may have been done, now or a little later; ErrClosed;
// others as said at the method.
type KV interface {
	// Get returns what key holds at revision at, 0 being the newest that any
	// client was told of, and the revision that this was read at. A pair with
	// Mod 0 is absent. ErrCompacted if at is too old.
	Get(ctx context.Context, key string, at Revision) (Pair, Revision, error)

	// Range returns all pairs whose keys begin with prefix, in the order of
	// keys; the rest as Get does.
	Range(ctx context.Context, prefix string, at Revision) ([]Pair, Revision, error)

	// Commit does all of t.Then at one revision if all of t.If hold, and
	// nothing otherwise. It is no error if they don't: Outcome says so.
	// ErrNoLease if a put names a lease that is gone; ErrFull if there is no space.
	Commit(ctx context.Context, t Txn) (Outcome, error)

	// Watch yields the changes of keys that begin with prefix, from revision
	// from on (0: from now), in batches that never split a revision. It ends
	// with an error: ErrCompacted when from is too old, ErrUnavailable when
	// the connection or the leader is lost, the context's when that ends.
	Watch(ctx context.Context, prefix string, from Revision) iter.Seq2[Batch, error]

	// Grant makes a lease that lasts ttl from the sending of this call or of
	// the last KeepAlive that was answered; the TTL that it returns may be
	// longer. Keys put under a lease are deleted when it ends.
	Grant(ctx context.Context, ttl time.Duration) (Lease, error)

	// KeepAlive renews a lease for its whole TTL. ErrNoLease if it has ended.
	KeepAlive(ctx context.Context, id LeaseID) error

	// Revoke ends a lease and deletes its keys. A lease that is gone is no error.
	Revoke(ctx context.Context, id LeaseID) error

	// Close releases what the KV holds and ends calls and watches under way.
	// Leases live on until they run out.
	Close() error
}

// Revision counts the changes of a KV from 1.
type Revision int64

// Pair is a key with its value.
type Pair struct {
	Key   string
	Value []byte   // not to be changed
	Mod   Revision // of the last change; 0: there is no such key
	Lease LeaseID  // 0: none
}

// LeaseID names a lease. Zero is none.
type LeaseID int64

// Lease is a granted lease.
type Lease struct {
	ID  LeaseID
	TTL time.Duration
}

// Txn is a transaction: if all conditions hold, all operations are done. No two
// operations touch the same key. At most MaxTxnOps of each.
type Txn struct {
	If   []Cond
	Then []Op
}

// MaxTxnOps is the most conditions, and the most operations, of a transaction.
const MaxTxnOps = 1024

// Cond states what was read: that Key was last changed at Mod, or is absent if
// Mod is 0; or, with Prefix, that no key beginning with Key was made or changed
// after Mod (of deletions it says nothing).
type Cond struct {
	Key    string
	Mod    Revision
	Prefix bool
}

// OpKind says what an Op does.
type OpKind uint8

const (
	// OpPut sets Key to Value, under Lease if that is not 0.
	OpPut OpKind = iota + 1
	// OpDelete deletes Key, if it is there.
	OpDelete
	// OpDeletePrefix deletes all keys that begin with Key.
	OpDeletePrefix
)

// Op is one operation of a transaction.
type Op struct {
	Kind  OpKind
	Key   string
	Value []byte
	Lease LeaseID
}

// Outcome is what became of a transaction.
type Outcome struct {
	Held     bool     // the conditions held, the operations were done
	Revision Revision // of the change; of the store, if they did not hold
}

// Batch is what changed up to a revision.
type Batch struct {
	Revision Revision
	Events   []Event // in the order of revisions
}

// Event is the change of one key.
type Event struct {
	Pair         // for a deletion: Key and, as Mod, its revision
	Deleted bool // the key was deleted, or its lease has ended
}

// check returns ErrInvalid for a transaction that no KV takes.
func (t Txn) check() error {
	if len(t.Then) > MaxTxnOps || len(t.If) > MaxTxnOps {
		return fmt.Errorf("%w: transaction of %d conditions and %d operations; at most %d of each",
			ErrInvalid, len(t.If), len(t.Then), MaxTxnOps)
	}
	if len(t.Then) == 0 {
		return fmt.Errorf("%w: transaction without operations", ErrInvalid)
	}
	touched := map[string]bool{}
	for _, op := range t.Then {
		if op.Key == "" || op.Kind < OpPut || op.Kind > OpDeletePrefix {
			return fmt.Errorf("%w: operation %d on key %q", ErrInvalid, op.Kind, op.Key)
		}
		if touched[op.Key] {
			return fmt.Errorf("%w: key %q twice in one transaction", ErrInvalid, op.Key)
		}
		touched[op.Key] = true
	}
	return nil
}
