package cluster

import (
	"context"
	"fmt"
	"iter"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Watch implements KV. The leader is required: without it a watch that lost
// its quorum stays silent.
func (e *Client) Watch(ctx context.Context, prefix string, from Revision) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		defer cancel()
		defer context.AfterFunc(e.ctx, cancel)()
		changes := e.client.Watch(wctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(int64(from)))
		for resp := range changes {
			if resp.CompactRevision != 0 {
				yield(Batch{}, ErrCompacted)
				return
			}
			if err := resp.Err(); err != nil {
				yield(Batch{}, e.failed(ctx, err))
				return
			}
			if b := etcdBatch(resp); len(b.Events) > 0 && !yield(b, nil) {
				return
			}
		}
		switch {
		case e.ctx.Err() != nil:
			yield(Batch{}, ErrClosed)
		case ctx.Err() != nil:
			yield(Batch{}, ctx.Err())
		default:
			yield(Batch{}, fmt.Errorf("%w: etcd ended the watch", ErrUnavailable))
		}
	}
}

func etcdBatch(resp clientv3.WatchResponse) Batch {
	var b Batch
	for _, ev := range resp.Events {
		b.Revision = Revision(ev.Kv.ModRevision)
		b.Events = append(b.Events, Event{
			Pair: Pair{
				Key: string(ev.Kv.Key), Value: ev.Kv.Value,
				Mod: Revision(ev.Kv.ModRevision), Lease: LeaseID(ev.Kv.Lease),
			},
			Deleted: ev.Type == clientv3.EventTypeDelete,
		})
	}
	return b
}
