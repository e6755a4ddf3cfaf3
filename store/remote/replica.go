package remote

import (
	"context"
	"fmt"
	"iter"

	"torus/store"
)

// A replica is a volume as one attachment sees it on the peer. It is no more
// than names, which every request carries: the server that answers may be
// another process than the one that attached.
type replica struct {
	client      *Client
	volume      store.VolumeID
	epoch       store.Epoch
	incarnation store.Incarnation
}

var _ store.Starter = (*replica)(nil)

// call returns one with the replica's names.
func (r *replica) call(o op, layer store.LayerID) *call {
	k := r.client.getCall(o)
	k.req.volume, k.req.epoch, k.req.incarnation, k.req.layer = r.volume, r.epoch, r.incarnation, layer
	return k
}

// Incarnation implements store.Replica.
func (r *replica) Incarnation() store.Incarnation { return r.incarnation }

// Create implements store.Replica.
func (r *replica) Create(ctx context.Context, layer, parent store.LayerID) error {
	k := r.call(opCreate, layer)
	defer r.client.putCall(k)
	k.req.off = int64(parent)
	return r.client.answered(k, -1, r.client.do(ctx, k))
}

// checkIO refuses what no frame carries.
func checkIO(off int64, n int) error {
	if n > store.MaxIO {
		return fmt.Errorf("%w: %d bytes in one request, at most %d", store.ErrInvalid, n, store.MaxIO)
	}
	return store.CheckRange(off, int64(n))
}

// Write implements store.Replica.
func (r *replica) Write(ctx context.Context, layer store.LayerID, off int64, p []byte, v store.Version, f store.Flags) error {
	w, err := r.StartWrite(ctx, layer, off, p, v, f)
	if err != nil {
		return err
	}
	return w.Wait()
}

// StartWrite implements store.Starter.
func (r *replica) StartWrite(ctx context.Context, layer store.LayerID, off int64, p []byte, v store.Version, f store.Flags) (store.Started, error) {
	if err := checkIO(off, len(p)); err != nil {
		return nil, fail(opWrite, layer, off, err)
	}
	k := r.call(opWrite, layer)
	k.req.off, k.req.n, k.req.version, k.req.flags, k.out = off, int64(len(p)), v, uint8(f), p
	if err := r.client.begin(ctx, k); err != nil {
		err = r.client.answered(k, off, err)
		r.client.putCall(k)
		return nil, err
	}
	k.client, k.ctx = r.client, ctx
	return k, nil
}

// Wait implements store.Started.
func (k *call) Wait() error {
	c := k.client
	err := c.answered(k, k.req.off, c.finish(k.ctx, k))
	c.putCall(k)
	return err
}

// wide is the length in bytes above which Zero and Adopt may have to look at
// more pages than Timeout allows for.
const wide = 1 << 30

// Zero implements store.Replica.
func (r *replica) Zero(ctx context.Context, layer store.LayerID, off, n int64, v store.Version, f store.Flags) error {
	if err := store.CheckRange(off, n); err != nil {
		return fail(opZero, layer, off, err)
	}
	k := r.call(opZero, layer)
	defer r.client.putCall(k)
	k.req.off, k.req.n, k.req.version, k.req.flags, k.patient = off, n, v, uint8(f), n > wide
	return r.client.answered(k, off, r.client.do(ctx, k))
}

// Read implements store.Replica.
func (r *replica) Read(ctx context.Context, chain []store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	k := r.call(opRead, 0)
	defer r.client.putCall(k)
	return r.client.answered(k, off, r.client.read(ctx, k, chain, off, p, info))
}

// read is for sealed layers too.
func (c *Client) read(ctx context.Context, k *call, chain []store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	if err := checkIO(off, len(p)); err != nil {
		return err
	}
	pages := len(p) / store.PageSize
	switch {
	case len(chain) > maxChain:
		return fmt.Errorf("%w: chain of %d layers, at most %d", store.ErrInvalid, len(chain), maxChain)
	case info != nil && len(info) < pages:
		return fmt.Errorf("%w: room for %d pages of info, %d are read", store.ErrInvalid, len(info), pages)
	}
	k.chain = k.chain[:0]
	for i, layer := range chain {
		if layer == 0 {
			return fmt.Errorf("%w: layer 0 in a chain", store.ErrInvalid)
		}
		if i > 0 {
			k.chain = le.AppendUint64(k.chain, uint64(layer))
		}
	}
	k.req.layer, k.req.count = first(chain), uint16(len(k.chain)/8)
	k.req.off, k.req.n, k.out, k.in = off, int64(len(p)), k.chain, p
	if info != nil {
		k.req.flags, k.info = flagInfo, info[:pages]
	}
	return c.do(ctx, k)
}

func first(chain []store.LayerID) store.LayerID {
	if len(chain) == 0 {
		return 0
	}
	return chain[0]
}

// Sync implements store.Replica.
func (r *replica) Sync(ctx context.Context) error {
	k := r.call(opSync, 0)
	defer r.client.putCall(k)
	if err := r.client.do(ctx, k); err != nil {
		return fmt.Errorf("sync volume %v: %w", r.volume, err)
	}
	return nil
}

// Extents implements store.Replica.
func (r *replica) Extents(ctx context.Context, layer store.LayerID, off, n int64, since store.Version) iter.Seq2[store.Extent, error] {
	return func(yield func(store.Extent, error) bool) {
		if err := store.CheckRange(off, n); err != nil {
			yield(store.Extent{}, fail(opExtents, layer, off, err))
			return
		}
		k := r.call(opExtents, layer)
		defer r.client.putCall(k)
		k.req.version = since
		end := off + n
		r.extents(ctx, k, off, yield, func(at int64) bool {
			k.req.off, k.req.n = at, end-at
			return at < end
		})
	}
}

// Unstable implements store.Replica.
func (r *replica) Unstable(ctx context.Context, layer store.LayerID) iter.Seq2[store.Extent, error] {
	return func(yield func(store.Extent, error) bool) {
		k := r.call(opUnstable, layer)
		defer r.client.putCall(k)
		r.extents(ctx, k, 0, yield, func(at int64) bool {
			k.req.extra = uint64(at)
			return true
		})
	}
}

// extents yields page by page; ask makes k the request for what lies at or
// behind at, false if nothing can.
func (r *replica) extents(ctx context.Context, k *call, at int64, yield func(store.Extent, error) bool, ask func(at int64) bool) {
	for more := true; more && ask(at); {
		k.patient = true
		err := r.client.do(ctx, k)
		if err == nil && (len(k.body)%extentSize != 0 || k.more && len(k.body) == 0) {
			err = malformed(k)
		}
		if err != nil {
			yield(store.Extent{}, r.client.answered(k, at, err))
			return
		}
		more = k.more
		for b := k.body; len(b) > 0; b = b[extentSize:] {
			e := decodeExtent(b)
			if e.N <= 0 || e.End() <= at {
				yield(store.Extent{}, r.client.answered(k, at, malformed(k)))
				return
			}
			at = e.End()
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Adopt implements store.Replica.
func (r *replica) Adopt(ctx context.Context, layer store.LayerID, e store.Extent, p []byte) error {
	err := store.CheckRange(e.Off, e.N)
	if err == nil && e.Kind == store.Data {
		err = checkIO(e.Off, int(e.N))
	}
	switch {
	case err != nil:
	case e.Kind == store.Data && int64(len(p)) != e.N, e.Kind != store.Data && len(p) != 0:
		err = fmt.Errorf("%w: %d bytes for %v of %d", store.ErrInvalid, len(p), e.Kind, e.N)
	}
	if err != nil {
		return fail(opAdopt, layer, e.Off, err)
	}
	k := r.call(opAdopt, layer)
	defer r.client.putCall(k)
	k.req.off, k.req.n, k.req.version, k.req.count = e.Off, e.N, e.Version, uint16(e.Kind)
	k.out, k.patient = p, e.N > wide
	return r.client.answered(k, e.Off, r.client.do(ctx, k))
}

// Stable implements store.Replica.
func (r *replica) Stable(ctx context.Context, layer store.LayerID, stable, settled store.Version) error {
	k := r.call(opStable, layer)
	defer r.client.putCall(k)
	k.req.version, k.req.extra = stable, uint64(settled)
	return r.client.answered(k, -1, r.client.do(ctx, k))
}
