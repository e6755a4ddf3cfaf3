package volume_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"torus/cluster"
)

// simKV is the cluster's records as one process reaches them: away for a while,
// with answers that are lost, and commits that arrive late.
type simKV struct {
	cluster.KV
	p *process
}

// reach is the way there of one call. With an error nothing was done, or what
// trouble says.
func (k simKV) reach(what string) (r *rand.Rand, trouble int, err error) {
	if k.p.pass() != nil {
		return nil, 0, cluster.ErrClosed
	}
	w := k.p.w
	r = k.p.draws(what)
	time.Sleep(w.delay(r))
	if k.p.isDead() {
		return nil, 0, cluster.ErrClosed
	}
	if !w.healed() && (w.recordsAway() || w.with.records && r.IntN(12) == 0) {
		return r, 1 + r.IntN(4), cluster.ErrUnavailable
	}
	return r, 0, nil
}

// back is the way back.
func (k simKV) back(r *rand.Rand) error {
	time.Sleep(k.p.w.delay(r))
	if k.p.pass() != nil {
		return cluster.ErrClosed
	}
	return nil
}

func (k simKV) Get(ctx context.Context, key string, at cluster.Revision) (p cluster.Pair, rev cluster.Revision, err error) {
	r, _, err := k.reach("get " + key)
	if err == nil {
		if p, rev, err = k.KV.Get(ctx, key, at); err == nil {
			err = k.back(r)
		}
	}
	return p, rev, err
}

func (k simKV) Range(ctx context.Context, prefix string, at cluster.Revision) (pairs []cluster.Pair, rev cluster.Revision, err error) {
	r, _, err := k.reach("range " + prefix)
	if err == nil {
		if pairs, rev, err = k.KV.Range(ctx, prefix, at); err == nil {
			err = k.back(r)
		}
	}
	return pairs, rev, err
}

func (k simKV) Commit(ctx context.Context, t cluster.Txn) (cluster.Outcome, error) {
	r, trouble, err := k.reach("commit")
	if r == nil {
		return cluster.Outcome{}, err
	}
	switch trouble {
	case 0:
		out, err := k.commit(ctx, t)
		if err == nil {
			err = k.back(r)
		}
		return out, err
	case 1: // refused
		return cluster.Outcome{}, cluster.ErrUnavailable
	case 2: // done, the answer is lost
		_, err = k.commit(ctx, t)
		k.p.w.happens("record: answer lost")
		k.p.w.note("%s: commit done, its answer lost (%v)", k.p.name, err)
	case 3: // late; half of them before they are tried again
		most := 15 * time.Second
		if r.IntN(2) == 0 {
			most = time.Second
		}
		k.p.w.running.Go(func() {
			time.Sleep(time.Duration(r.Int64N(int64(most))))
			out, err := k.commit(context.Background(), t)
			k.p.w.happens(map[bool]string{true: "record: late commit done", false: "record: late commit in vain"}[out.Held])
			k.p.w.note("%s: late commit arrives: %v, %v", k.p.name, out.Held, err)
		})
	}
	k.p.w.happens("record: outcome unknown")
	time.Sleep(time.Duration(r.Int64N(int64(2 * time.Second))))
	return cluster.Outcome{}, cluster.ErrUnknown
}

// commit commits, and has the model look at what that left in sync.
func (k simKV) commit(ctx context.Context, t cluster.Txn) (cluster.Outcome, error) {
	before := k.p.w.pairs(staleKeys)
	out, err := k.KV.Commit(ctx, t)
	if err != nil || !out.Held {
		return out, err
	}
	w, about := k.p.w, false
	moves := w.with.rings && slices.ContainsFunc(t.Then, func(op cluster.Op) bool { return strings.HasPrefix(op.Key, lineageKeys) })
	if moves {
		w.model.placed()
	}
	for _, op := range t.Then {
		if !strings.HasPrefix(op.Key, staleKeys) {
			continue
		}
		about = true
		w.note("%s: records %s %s", k.p.name, op.Key, op.Value)
		switch _, target := copyIn(op.Key); {
		case target != 0 && op.Kind == cluster.OpPut || moves:
			continue // so far nobody relies on that copy, or no more
		case target != 0:
			w.happens("record: in sync by the target")
			w.model.joinsTarget(w.nodeOf(op.Key))
		case op.Kind == cluster.OpDelete:
			w.happens("record: in sync")
			w.model.joins(op.Key)
		case bytes.Contains(op.Value, []byte("said that it stops")):
			w.happens("record: stale, planned")
		default:
			w.happens("record: stale")
		}
		if op.Kind == cluster.OpPut {
			w.model.marked(op.Key, w.sinceOf(op.Value), slices.ContainsFunc(before, func(p cluster.Pair) bool { return p.Key == op.Key }))
		}
	}
	if about {
		w.model.recorded()
	}
	return out, err
}

func (k simKV) Grant(ctx context.Context, ttl time.Duration) (l cluster.Lease, err error) {
	r, _, err := k.reach("grant")
	if err == nil {
		if l, err = k.KV.Grant(ctx, ttl); err == nil {
			err = k.back(r)
		}
	}
	return l, err
}

func (k simKV) KeepAlive(ctx context.Context, id cluster.LeaseID) error {
	r, _, err := k.reach("keep alive")
	if err == nil {
		if err = k.KV.KeepAlive(ctx, id); err == nil {
			err = k.back(r)
		}
	}
	return err
}

func (k simKV) Revoke(ctx context.Context, id cluster.LeaseID) error {
	r, _, err := k.reach("revoke")
	if err == nil {
		if err = k.KV.Revoke(ctx, id); err == nil {
			err = k.back(r)
		}
	}
	return err
}
