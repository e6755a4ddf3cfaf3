package volume_test

import (
	"bytes"
	"context"
	"iter"

	"torus/store"
)

// far is a replica at the other end of a link. What it sends is a copy, as the
// caller has its bytes back while late messages still carry them.
type far struct {
	*link
	epoch store.Epoch
	inc   store.Incarnation
}

var _ store.Replica = (*far)(nil)

func (r *far) request(ctx context.Context, op string, off, n int64, v store.Version, do func(store.Replica) (any, error)) (any, error) {
	return r.call(ctx, message{op: op, off: off, n: n, v: v, do: do, epoch: r.epoch, inc: r.inc, limit: answerTime})
}

func (r *far) Incarnation() store.Incarnation { return r.inc }

func (r *far) Create(ctx context.Context, layer, parent store.LayerID) error {
	_, err := r.request(ctx, "create", 0, 0, 0, func(to store.Replica) (any, error) {
		return nil, to.Create(context.Background(), layer, parent)
	})
	return err
}

func (r *far) Write(ctx context.Context, layer store.LayerID, off int64, p []byte, v store.Version, f store.Flags) error {
	if err := r.p.pass(); err != nil {
		return err
	}
	p = bytes.Clone(p)
	r.p.w.model.sends(r.epoch, off, int64(len(p)), p, v)
	_, err := r.request(ctx, "write", off, int64(len(p)), v, func(to store.Replica) (any, error) {
		err := to.Write(context.Background(), layer, off, p, v, f)
		r.p.w.model.arrived(r.node, off, int64(len(p)), v, err)
		return nil, err
	})
	return err
}

func (r *far) Zero(ctx context.Context, layer store.LayerID, off, n int64, v store.Version, f store.Flags) error {
	if err := r.p.pass(); err != nil {
		return err
	}
	r.p.w.model.sends(r.epoch, off, n, nil, v)
	_, err := r.request(ctx, "zero", off, n, v, func(to store.Replica) (any, error) {
		err := to.Zero(context.Background(), layer, off, n, v, f)
		r.p.w.model.arrived(r.node, off, n, v, err)
		return nil, err
	})
	return err
}

func (r *far) Read(ctx context.Context, chain []store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	type read struct {
		p    []byte
		info []store.PageInfo
	}
	n := len(p)
	got, err := r.request(ctx, "read", off, int64(n), 0, func(to store.Replica) (any, error) {
		got := read{make([]byte, n), make([]store.PageInfo, n/store.PageSize)}
		return got, to.Read(context.Background(), chain, off, got.p, got.info)
	})
	if err == nil {
		copy(p, got.(read).p)
		copy(info, got.(read).info)
	}
	return err
}

func (r *far) Sync(ctx context.Context) error {
	_, err := r.request(ctx, "sync", 0, 0, 0, func(to store.Replica) (any, error) { return nil, to.Sync(context.Background()) })
	return err
}

func (r *far) Extents(ctx context.Context, layer store.LayerID, off, n int64, since store.Version) iter.Seq2[store.Extent, error] {
	return listed[store.Extent](func() (any, error) {
		return r.request(ctx, "extents", off, n, since, func(to store.Replica) (any, error) {
			return collect(to.Extents(context.Background(), layer, off, n, since))
		})
	})
}

func (r *far) Unstable(ctx context.Context, layer store.LayerID) iter.Seq2[store.Extent, error] {
	return listed[store.Extent](func() (any, error) {
		return r.request(ctx, "unstable", 0, 0, 0, func(to store.Replica) (any, error) {
			return collect(to.Unstable(context.Background(), layer))
		})
	})
}

func (r *far) Adopt(ctx context.Context, layer store.LayerID, e store.Extent, p []byte) error {
	p = bytes.Clone(p)
	if e.Kind == store.Absent {
		r.p.w.happens("resync: takes back")
	}
	r.p.w.happens("resync: adopts")
	_, err := r.request(ctx, "adopt", e.Off, e.N, e.Version, func(to store.Replica) (any, error) {
		return nil, to.Adopt(context.Background(), layer, e, p)
	})
	return err
}

func (r *far) Stable(ctx context.Context, layer store.LayerID, stable, settled store.Version) error {
	r.p.w.model.tells(r.epoch, stable, settled)
	_, err := r.request(ctx, "stable", 0, 0, stable, func(to store.Replica) (any, error) {
		return nil, to.Stable(context.Background(), layer, stable, settled)
	})
	return err
}
