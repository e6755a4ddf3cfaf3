package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"torus/cluster"
	"torus/ring"
	"torus/store"
	"torus/volume"
)

// A former attachment is one by this process that the next follows at once, so that
// the volume places by rings as they are by now. Its clients notice a pause.
//
//	hold ─► volume.Close ─► cluster.Attach ─► volume.Open ─► Serving ─► serve
//	(requests wait)         (next epoch)
//
// It is not detached: somebody else could take the volume then.
type former struct {
	*attached
	closed bool // its volume was, with all it had durable on all copies in sync
}

// device returns the device that goes on; a new one if there was no attachment.
func (f *former) device() *device {
	if f == nil {
		return newDevice()
	}
	return f.dev
}

// next reports whether att follows the former attachment, with none between: nobody
// answers reads any more.
func (f *former) next(att *cluster.Attachment) bool { return f != nil && att.Epoch == f.att.Epoch+1 }

// clean reports whether att follows the former attachment, which left nothing to
// compare: the records don't say so, as it was not detached.
func (f *former) clean(att *cluster.Attachment) bool { return f.next(att) && f.closed }

// endPatience is how long a volume that is attached anew may still take to open when
// it is to end: once it has its next epoch only that one can detach cleanly.
const endPatience = 5 * time.Second

// opening returns the context to open the next attachment in, where ctx says how
// long it is wanted. cancel is to be called.
func (f *former) opening(ctx context.Context) (opening context.Context, cancel func()) {
	if f == nil {
		return ctx, func() {}
	}
	opening, end := context.WithCancel(context.WithoutCancel(ctx))
	late := make(chan *time.Timer, 1)
	stop := context.AfterFunc(ctx, func() { late <- time.AfterFunc(endPatience, end) })
	return opening, func() {
		if !stop() {
			(<-late).Stop()
		}
		end()
	}
}

// mayHaveLost is asked when writes that were not flushed may be gone: clients that go on
// must not take for written what was acknowledged to them before.
func (f *former) mayHaveLost() error {
	if f == nil || f.closed {
		return nil
	}
	return fmt.Errorf("%w: machines stopped while the volume was attached anew: %w", volume.ErrLost, store.ErrIncarnation)
}

// reload attaches a volume anew, below its device. When it fails, the device has
// ended, or ctx; end is called for what it returns in any case.
func (n *Node) reload(ctx context.Context, a *attached) *attached {
	n.reloading.Add(1)
	defer n.reloading.Add(-1)
	n.unwatch(a)
	a.dev.hold()
	begun := time.Now()
	err := a.close()
	if err != nil {
		n.log.Warn("volume not closed cleanly before it is attached anew", "volume", a.att.Volume.Name, "err", err)
	}
	if errors.Is(err, store.ErrIncarnation) { // what was acknowledged may be gone
		a.dev.fail(err)
		a.dev.serve(nil)
		return a
	}
	next, err := n.attachAgain(ctx, &former{a, err == nil})
	if err != nil {
		if ctx.Err() == nil {
			a.dev.fail(err)
		}
		a.dev.serve(nil)
		return a
	}
	if err := n.detach(a.att, false); !errors.Is(err, cluster.ErrLost) && err != nil {
		n.log.Debug("a former attachment", "err", err)
	}
	n.log.Info("volume attached anew", "volume", next.att.Volume.Name, "epoch", next.att.Epoch, "took", time.Since(begun),
		"ring", next.att.Ring.Number, "target", next.att.Target.Number)
	return next
}

// attachAgain tries until it has the volume, somebody else does, or ctx ends.
func (n *Node) attachAgain(ctx context.Context, was *former) (*attached, error) {
	for said := ""; ; {
		name, err := n.nameOf(ctx, was.att.Volume.ID)
		var a *attached
		if err == nil {
			a, err = n.attach(ctx, name, cluster.AttachOptions{Dead: n.provenDead}, was)
		}
		switch {
		case err == nil && a.att.Volume.ID != was.att.Volume.ID:
			return nil, errors.Join(fmt.Errorf("%w: volume %s was replaced meanwhile", cluster.ErrNotFound, name), n.end(a))
		case err == nil:
			return a, nil
		case ctx.Err() != nil, errors.Is(err, cluster.ErrBusy), errors.Is(err, cluster.ErrNotFound),
			errors.Is(err, cluster.ErrRecovered), errors.Is(err, volume.ErrLost):
			return nil, err
		}
		if text := err.Error(); text != said {
			n.log.Warn("volume can't be attached anew yet, trying on", "volume", was.att.Volume.Name, "err", err)
			said = text
		}
		pause(ctx, keepRetry)
	}
}

// nameOf returns the name that a volume has by now.
func (n *Node) nameOf(ctx context.Context, id store.VolumeID) (string, error) {
	all, err := n.cluster.Volumes(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range all {
		if v.ID == id {
			return v.Name, nil
		}
	}
	return "", fmt.Errorf("volume %v: %w", id, cluster.ErrNotFound)
}

// followLineages tells exports of changes of their lineages, until ctx ends.
func (x *exports) followLineages(ctx context.Context) {
	follow(ctx, x.node, "lineages", x.node.cluster.WatchLineages(ctx), func(u cluster.Update[ring.LineageID, cluster.Lineage]) {
		x.mu.Lock()
		defer x.mu.Unlock()
		if u.Reset {
			x.lineages = map[ring.LineageID]cluster.Lineage{}
		}
		maps.Copy(x.lineages, u.Put)
		for _, e := range x.open {
			signal(e.changed)
		}
	})
}

// startFollowing starts followLineages.
func (x *exports) startFollowing() {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { x.followLineages(ctx) })
	x.node.started("lineages", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

// outdated returns the attachment of an export if it is to be had anew: its lineage is
// placed by other rings, or needs other copies.
func (x *exports) outdated(e *export) *attached {
	x.mu.Lock()
	defer x.mu.Unlock()
	had := e.a.att
	now, known := x.lineages[had.Lineage.ID]
	// What is known of lineages may be older than the attachment.
	if e.ending || !known || now.Epoch < had.Epoch ||
		now.Ring == had.Ring.Number && now.Target == had.Target.Number && now.MinCopies == had.Lineage.MinCopies {
		return nil
	}
	return e.a
}

// reloadWhenOutdated has an export's volume attached anew when that is to be, until ctx ends.
func (x *exports) reloadWhenOutdated(ctx context.Context, e *export) {
	for ctx.Err() == nil {
		if a := x.outdated(e); a != nil {
			a = x.node.reload(ctx, a)
			x.mu.Lock()
			e.a = a
			x.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-e.dev.ended:
			return
		case <-e.changed:
		}
	}
}
