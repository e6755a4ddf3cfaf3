package remote

import (
	"cmp"
	"context"
	"fmt"
	"hash/crc32"
	"iter"
	"slices"

	"torus/store"
)

// A job is one request from its header to its answer. It is reused: the reader
// owns it first, then the worker, then who sends the answer.
type job struct {
	c      *serverConn
	req    request
	chain  []store.LayerID
	buf    []byte // from the pool: what came, or what goes
	infos  []store.PageInfo
	charge int64 // taken from the connection's limit

	answer answer
	head   [answerSize]byte
	data   []byte // of the answer; lies in buf
	extra  []byte // behind it
	small  []byte // reused for extra
}

// keepInfos is how many page infos a job keeps room for: those of a 1 MiB read.
const keepInfos = 256

// release gives back what j holds, and j.
func (j *job) release() {
	s := j.c.srv
	if j.buf != nil {
		s.buffers.put(j.buf)
	}
	j.c, j.buf, j.data, j.extra = nil, nil, nil, nil
	if cap(j.infos) > keepInfos {
		j.infos = nil
	}
	if cap(j.small) > keepInfos*runSize {
		j.small = nil
	}
	s.jobs.Put(j)
}

// perform has the store do what is asked and encodes the answer.
func (j *job) perform() {
	j.answer = answer{op: j.req.op, id: j.req.id}
	j.data, j.extra, j.small = nil, nil, j.small[:0]
	if err := j.ask(); err != nil {
		j.data, j.answer.flags = nil, 0
		j.answer.errno = errnoOf(err)
		j.small = appendError(j.small[:0], err)
	}
	j.extra = j.small
	j.answer.body = uint32(len(j.data) + len(j.extra))
	if j.answer.body > 0 {
		j.answer.bodySum = crc32.Update(checksum(j.data), castagnoli, j.extra)
	}
	j.answer.encode(j.head[:])
}

func (j *job) ask() error {
	s, r := j.c.srv.options.Store, &j.req
	ctx := j.c.ctx
	switch r.op {
	case opAttach:
		incarnation, err := j.c.srv.attached.attach(ctx, r.volume, r.epoch)
		j.small = le.AppendUint64(j.small, uint64(incarnation))
		return err
	case opReadSealed:
		j.buf = j.c.srv.buffers.get(int(r.n))
		j.data = j.buf
		return s.ReadSealed(ctx, j.chain, r.off, j.data)
	case opDrop:
		return s.Drop(ctx, r.layer, store.Chunks{First: uint32(r.n), End: uint32(uint64(r.n) >> 32)})
	case opForget:
		return j.c.srv.attached.forget(ctx, r.volume)
	case opLayers:
		return listByID(j, s.Layers(ctx), layerSize, func(l store.LayerInfo) uint64 { return uint64(l.ID) }, appendLayer)
	case opFences:
		return listByID(j, s.Fences(ctx), fenceSize, func(f store.Fence) uint64 { return uint64(f.Volume) }, appendFence)
	case opStat:
		stat, err := s.Stat(ctx)
		j.small = appendStat(j.small, stat)
		return err
	}
	replica, err := j.c.srv.attached.replica(ctx, r)
	if err != nil {
		return err
	}
	return j.askReplica(ctx, replica)
}

// askReplica does what is asked of one volume.
func (j *job) askReplica(ctx context.Context, replica store.Replica) error {
	r := &j.req
	switch r.op {
	case opCreate:
		return replica.Create(ctx, r.layer, store.LayerID(r.off))
	case opWrite:
		return replica.Write(ctx, r.layer, r.off, j.buf, r.version, store.Flags(r.flags))
	case opZero:
		return replica.Zero(ctx, r.layer, r.off, r.n, r.version, store.Flags(r.flags))
	case opRead:
		return j.read(ctx, replica)
	case opSync:
		return replica.Sync(ctx)
	case opExtents:
		return listExtents(j, replica.Extents(ctx, r.layer, r.off, r.n, r.version), 0)
	case opUnstable:
		return listExtents(j, replica.Unstable(ctx, r.layer), int64(r.extra))
	case opAdopt:
		return replica.Adopt(ctx, r.layer, store.Extent{Off: r.off, N: r.n, Kind: store.Kind(r.count), Version: r.version}, j.buf)
	case opStable:
		return replica.Stable(ctx, r.layer, r.version, store.Version(r.extra))
	}
	return fmt.Errorf("%w: %v", store.ErrInvalid, r.op)
}

func (j *job) read(ctx context.Context, replica store.Replica) error {
	r := &j.req
	var infos []store.PageInfo
	if r.flags&flagInfo != 0 {
		pages := int(r.n / store.PageSize)
		j.infos = slices.Grow(j.infos[:0], pages)[:pages]
		infos = j.infos
	}
	j.buf = j.c.srv.buffers.get(int(r.n))
	j.data = j.buf
	if err := replica.Read(ctx, j.chain, r.off, j.data, infos); err != nil {
		return err
	}
	j.small = appendRuns(j.small, infos)
	return nil
}

// listExtents answers with the extents that end behind from, as many as fit.
// The client asks again from where the last one ended.
func listExtents(j *job, seq iter.Seq2[store.Extent, error], from int64) error {
	for e, err := range seq {
		if err != nil {
			if len(j.small) == 0 {
				return err
			}
			j.answer.flags = flagMore // the client asks for more and gets the error
			return nil
		}
		if e.End() <= from {
			continue
		}
		if len(j.small)+extentSize > listBody {
			j.answer.flags = flagMore
			return nil
		}
		j.small = appendExtent(j.small, e)
	}
	return nil
}

// listByID answers with the first entries whose ID is above the cursor, in
// order. A store lists in no order, so each page of a list goes through all of
// it; what is in memory is two pages. (Holding the store's own iteration open
// between requests would let clients that went away hold memory.)
func listByID[T any](j *job, seq iter.Seq2[T, error], size int, id func(T) uint64, encode func([]byte, T) []byte) error {
	most := listBody / size
	byID := func(a, b T) int { return cmp.Compare(id(a), id(b)) }
	var page []T
	for v, err := range seq {
		if err != nil {
			return err
		}
		if j.req.flags&flagCursor != 0 && id(v) <= uint64(j.req.version) {
			continue
		}
		if page = append(page, v); len(page) == 2*most {
			slices.SortFunc(page, byID)
			page = page[:most]
			j.answer.flags = flagMore
		}
	}
	slices.SortFunc(page, byID)
	if len(page) > most {
		page = page[:most]
		j.answer.flags = flagMore
	}
	for _, v := range page {
		j.small = encode(j.small, v)
	}
	return nil
}
