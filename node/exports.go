package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"torus/cluster"
	"torus/nbd"
	"torus/ring"
	"torus/store"
)

// lingering is how long a volume stays attached after its last client: a client
// that opens it again soon, as nbdinfo and nbdcopy do one after the other, finds
// it there.
const lingering = 10 * time.Second

// exports are the cluster's volumes as package nbd sees them. A volume is
// attached when a client opens it and shared by all clients of this process:
//
//	absent ─open─► opening ─► serving ─last client left─► lingering ─10 s─► ending ─► absent
//	                  │fails      ▲└──────lost────────────────│────────────► ▲
//	                  └─► absent  └───────open────────────────┘
//
// Those that "torus nbd serve" names are kept attached without clients too, see
// keep.
type exports struct {
	node *Node
	log  *slog.Logger
	only []string // volumes that are exported; nil: all

	mu       sync.Mutex // guards what follows; taken before no other lock
	open     map[store.VolumeID]*export
	lineages map[ring.LineageID]cluster.Lineage // as of the records
	closed   bool
	errs     []error        // of detaching since closed
	wg       sync.WaitGroup // goroutines that end exports
}

// An export is one volume that is not absent.
type export struct {
	name  string        // as the client that attached it knew it
	ready chan struct{} // closed when opening has ended: a and err are set
	gone  chan struct{} // closed when it is absent again
	dev   *device       // of a, and of those that follow
	err   error

	changed chan struct{}      // something of lineages has
	stop    context.CancelFunc // of the reloading, which ends by itself with dev
	reloads sync.WaitGroup

	a       *attached // guarded by exports.mu, as the rest
	clients int
	ending  bool
	timer   *time.Timer // of lingering
}

var _ nbd.Exports = (*exports)(nil)

func newExports(n *Node, only []string) *exports {
	return &exports{node: n, log: n.log, only: only, open: map[store.VolumeID]*export{}}
}

// List implements nbd.Exports.
func (x *exports) List(ctx context.Context) ([]nbd.ExportInfo, error) {
	vols, err := x.node.cluster.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]nbd.ExportInfo, 0, len(vols))
	for _, v := range vols {
		if x.has(v.Name) {
			infos = append(infos, x.info(v))
		}
	}
	return infos, nil
}

// Info implements nbd.Exports; it attaches nothing.
func (x *exports) Info(ctx context.Context, name string) (nbd.ExportInfo, error) {
	v, err := x.volume(ctx, name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	return x.info(v), nil
}

func (x *exports) info(v cluster.VolumeInfo) nbd.ExportInfo {
	return nbd.ExportInfo{Name: v.Name, Description: "Torus volume " + v.ID.String(), Size: v.Size, ReadOnly: x.node.readOnly}
}

// has reports whether a volume with this name would be exported.
func (x *exports) has(name string) bool { return x.only == nil || slices.Contains(x.only, name) }

// volume finds a volume for a client; a name that none can have is not found.
func (x *exports) volume(ctx context.Context, name string) (cluster.VolumeInfo, error) {
	if !x.has(name) {
		return cluster.VolumeInfo{}, fmt.Errorf("%w: volume %s is not exported here", nbd.ErrNotFound, name)
	}
	v, err := x.node.cluster.Volume(ctx, name)
	if errors.Is(err, cluster.ErrNotFound) || errors.Is(err, cluster.ErrInvalid) {
		err = fmt.Errorf("%w: %w", nbd.ErrNotFound, err)
	}
	return v, err
}

// Open implements nbd.Exports.
func (x *exports) Open(ctx context.Context, name string) (nbd.Device, func(), error) {
	e, leave, err := x.hold(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	return e.dev, leave, nil
}

// hold returns a volume's export, open, and counts the caller as a client until
// leave is called.
func (x *exports) hold(ctx context.Context, name string) (e *export, leave func(), err error) {
	for {
		v, err := x.volume(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		e, first, err := x.enter(v)
		if err != nil {
			return nil, nil, err
		}
		if first {
			x.attach(ctx, v.ID, e)
		}
		retry, err := x.await(ctx, v.ID, e)
		switch {
		case err != nil:
			return nil, nil, err
		case !retry:
			return e, sync.OnceFunc(func() { x.leave(v.ID, e) }), nil
		}
	}
}

// enter counts a client in, and makes the export if it is absent: whoever gets
// first then attaches it.
func (x *exports) enter(v cluster.VolumeInfo) (e *export, first bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil, false, nbd.ErrShutdown
	}
	e = x.open[v.ID]
	if e == nil {
		e = &export{name: v.Name, ready: make(chan struct{}), gone: make(chan struct{}), changed: make(chan struct{}, 1)}
		x.open[v.ID] = e
		first = true
	}
	if !e.ending && e.lost() { // just now: endWhenLost has yet to hear of it
		x.finish(v.ID, e)
	}
	if !e.ending {
		e.clients++
		if e.timer != nil {
			e.timer.Stop()
		}
	}
	return e, first, nil
}

// lost reports whether the export is open and its attachment over.
func (e *export) lost() bool {
	select {
	case <-e.ready:
	default:
		return false
	}
	if e.dev == nil {
		return false
	}
	select {
	case <-e.dev.ended:
		return true
	default:
		return false
	}
}

// attach ends opening.
func (x *exports) attach(ctx context.Context, id store.VolumeID, e *export) {
	a, err := x.node.attachSoon(ctx, e.name)
	if err == nil && a.att.Volume.ID != id {
		err = errors.Join(fmt.Errorf("%w: volume %s was replaced meanwhile", nbd.ErrBusy, e.name), x.node.end(a))
	}
	if errors.Is(err, cluster.ErrBusy) {
		err = fmt.Errorf("%w: %w", nbd.ErrBusy, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if err == nil {
		e.a, e.dev = a, a.dev
	}
	e.err = err
	close(e.ready)
	if err != nil {
		e.ending = true
		delete(x.open, id)
		close(e.gone)
		x.log.Warn("volume not attached", "volume", e.name, "err", err)
		return
	}
	x.wg.Go(func() { x.endWhenLost(id, e) })
	reloading, stop := context.WithCancel(context.Background())
	e.stop = stop
	e.reloads.Go(func() { x.reloadWhenOutdated(reloading, e) })
}

// await waits until the export is open; retry: it is ending, and absent now.
func (x *exports) await(ctx context.Context, id store.VolumeID, e *export) (retry bool, err error) {
	select {
	case <-e.ready:
	case <-ctx.Done():
		x.leave(id, e)
		return false, ctx.Err()
	}
	x.mu.Lock()
	ending := e.ending
	x.mu.Unlock()
	switch {
	case e.err != nil:
		return false, e.err
	case !ending:
		return false, nil
	}
	select {
	case <-e.gone:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// leave counts a client out.
func (x *exports) leave(id store.VolumeID, e *export) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e.clients--
	if e.clients > 0 || e.ending || x.closed {
		return
	}
	e.timer = time.AfterFunc(lingering, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if e.clients == 0 && !e.ending && !x.closed {
			x.finish(id, e)
		}
	})
}

// finish begins ending. Under mu, with ending unset.
func (x *exports) finish(id store.VolumeID, e *export) {
	e.ending = true
	x.wg.Go(func() {
		<-e.ready
		if e.err != nil {
			return
		}
		e.stop()
		e.reloads.Wait()
		err := x.node.end(e.a)
		if err != nil {
			x.log.Warn("volume not detached cleanly", "volume", e.name, "err", err)
		} else {
			x.log.Info("volume detached", "volume", e.name)
		}
		x.mu.Lock()
		delete(x.open, id)
		if x.closed && err != nil && !errors.Is(err, cluster.ErrLost) { // what somebody else has is not ours to end well
			x.errs = append(x.errs, fmt.Errorf("volume %s not detached cleanly: %w", e.name, err))
		}
		x.mu.Unlock()
		close(e.gone)
	})
}

// endWhenLost ends an export whose attachment is over, and returns when the
// export is gone, for whatever reason. Its clients learn it from the device.
func (x *exports) endWhenLost(id store.VolumeID, e *export) {
	select {
	case <-e.gone:
		return
	case <-e.dev.ended:
	}
	x.log.Error("attachment ended: its clients are cut off", "volume", e.name, "cause", e.dev.cause)
	x.mu.Lock()
	if !e.ending {
		x.finish(id, e)
	}
	x.mu.Unlock()
}

// count returns how many volumes are attached, or about to be.
func (x *exports) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.open)
}

// close ends all exports and waits for that. The NBD server is shut down before,
// so that no client uses them. Nil: all volumes were synced and detached clean.
func (x *exports) close() error {
	x.mu.Lock()
	x.closed = true
	for id, e := range x.open {
		if e.timer != nil {
			e.timer.Stop()
		}
		if !e.ending {
			x.finish(id, e)
		}
	}
	x.mu.Unlock()
	x.wg.Wait()
	return errors.Join(x.errs...)
}
