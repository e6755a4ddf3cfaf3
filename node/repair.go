package node

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	"torus/cluster"
	"torus/ring"
	"torus/store"
	"torus/volume"
)

// Volumes that nobody has attached are repaired and scrubbed by the storage nodes in
// turn: one attaches it for maintenance, which brings what a crash left to one value
// and copies that lack writes up to date, or until it is scrubbed, and gives it up; at
// once when somebody wants it (/torus/wanted/VOLUME). A repair does not wait for a
// scrub, which may take hours.

const (
	// repairEvery is how often a node looks for what there is to repair.
	repairEvery = 5 * time.Second
	// repairTurn is how long a volume is left to whoever had it, or is about to
	// attach it, and then to each of the nodes whose turn is earlier.
	repairTurn = 10 * time.Second
	// repairStuck is for how long a repair may make no progress.
	repairStuck = time.Minute
	// repairLook is how often a node looks how far its repair is.
	repairLook = 250 * time.Millisecond
)

// repairs are the volumes that this process has attached for maintenance, or is about
// to: at most one to repair, and one to scrub.
type repairs struct {
	mu    sync.Mutex
	under map[store.VolumeID]underRepair
}

type underRepair struct {
	name   string
	cancel context.CancelFunc
}

func newRepairs() *repairs { return &repairs{under: map[store.VolumeID]underRepair{}} }

// has reports whether a volume is under repair here, or about to be.
func (r *repairs) has(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.under {
		if u.name == name {
			return true
		}
	}
	return false
}

// begin notes a repair that cancel ends, unless there is one of the volume; end that
// it is over.
func (r *repairs) begin(v cluster.Volume, cancel context.CancelFunc) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, is := r.under[v.ID]; is {
		return false
	}
	r.under[v.ID] = underRepair{v.Name, cancel}
	return true
}

func (r *repairs) end(id store.VolumeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.under, id)
}

// wanted ends the repair of a volume that somebody waits for.
func (r *repairs) wanted(id store.VolumeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if u, is := r.under[id]; is {
		u.cancel()
	}
}

// startRepairs has the node take its turns.
func (n *Node) startRepairs() {
	if n.store == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		follow(ctx, n, "volumes that are wanted", n.cluster.WatchWanted(ctx), func(u cluster.Update[store.VolumeID, cluster.Holder]) {
			for id := range u.Put {
				n.repairs.wanted(id)
			}
		})
	})
	wg.Go(func() { n.maintain(ctx, maintenance{needsRepair, repairTurn, n.inSyncSoon}) })
	wg.Go(func() { n.maintain(ctx, maintenance{n.needsScrub, 0, n.scrubbedSoon}) })
	n.started("repairs", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

// maintenance is why a volume that nobody has attached is attached for a while.
type maintenance struct {
	// needed says whether it is, given the storage nodes that live.
	needed func(v cluster.VolumeInfo, live map[ring.NodeID]bool) bool
	// grace is how long the volume is left alone before.
	grace time.Duration
	// done returns when it is done, or of no use: false.
	done func(context.Context, *attached) bool
}

// maintain attaches volumes that need it, in its turn.
func (n *Node) maintain(ctx context.Context, m maintenance) {
	since := map[store.VolumeID]time.Time{} // volumes need it
	for ctx.Err() == nil {
		vols, err := n.cluster.Volumes(ctx)
		var nodes []cluster.NodeInfo
		if err == nil {
			nodes, err = n.cluster.Nodes(ctx)
		}
		if err != nil {
			n.log.Debug("not known what there is to repair", "err", err)
			pause(ctx, repairEvery)
			continue
		}
		for _, v := range m.inTurn(vols, nodes, n.settings.ID, since, time.Now()) {
			n.repair(ctx, v, m.done)
			// Where it was not done another has its turn first, or somebody the volume.
			delete(since, v.ID)
		}
		pause(ctx, repairEvery)
	}
}

// inTurn decides which volumes it is this node's turn to attach; since is when
// each was first seen to need it, and is brought up to date.
func (m maintenance) inTurn(vols []cluster.VolumeInfo, nodes []cluster.NodeInfo, self ring.NodeID,
	since map[store.VolumeID]time.Time, now time.Time) (mine []cluster.VolumeInfo) {
	live := living(nodes)
	needy := map[store.VolumeID]bool{}
	for _, v := range vols {
		if v.Attached != nil || !m.needed(v, live) {
			continue
		}
		needy[v.ID] = true
		if since[v.ID].IsZero() {
			since[v.ID] = now
		}
		if wait := m.grace + time.Duration(turn(v.ID, self, live))*repairTurn; now.Sub(since[v.ID]) >= wait {
			mine = append(mine, v)
		}
	}
	for id := range since {
		if !needy[id] {
			delete(since, id)
		}
	}
	return mine
}

// living returns the storage nodes that live, and are not about to stop.
func living(nodes []cluster.NodeInfo) map[ring.NodeID]bool {
	live := map[ring.NodeID]bool{}
	for _, n := range nodes {
		if n.Alive && !n.Stopping && slices.Contains(n.Roles, cluster.RoleStorage) {
			live[n.ID] = true
		}
	}
	return live
}

// mayCatchUp reports whether a copy that is not in sync is on a node that lives.
func mayCatchUp(all []volume.CopyStatus, copies copiesOf, live map[ring.NodeID]bool) bool {
	return slices.ContainsFunc(all, func(c volume.CopyStatus) bool {
		node, _ := copies.at(c.Node)
		return !c.InSync() && live[node]
	})
}

// needsRepair: a copy lacks writes, on a node that lives, or whoever had the volume
// did not end well.
func needsRepair(v cluster.VolumeInfo, live map[ring.NodeID]bool) bool {
	return !v.Clean || slices.ContainsFunc(v.Stale, func(s cluster.Stale) bool { return live[s.Node] })
}

// needsScrub: it is time to scrub the volume. Those of this process are done one after
// the other.
func (n *Node) needsScrub(v cluster.VolumeInfo, _ map[ring.NodeID]bool) bool {
	return len(n.scrubs.turn) == 0 && n.scrubDue(v.Volume)
}

// scrubDue reports whether a volume is to be scrubbed now.
func (n *Node) scrubDue(v cluster.Volume) bool {
	known, every, _ := n.scrubs.of(v.ID)
	at := due(known, every, v.Created)
	return !at.IsZero() && !at.After(time.Now())
}

// turn is how many nodes come before this one: by a hash, so that the volumes'
// repairs are spread.
func turn(id store.VolumeID, self ring.NodeID, live map[ring.NodeID]bool) (before int) {
	place := func(node ring.NodeID) uint64 {
		h := fnv.New64a()
		h.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(id)), uint64(node)))
		return h.Sum64()
	}
	for node := range live {
		if place(node) < place(self) {
			before++
		}
	}
	return before
}

// repair attaches a volume for maintenance until done returns, which says whether it is
// done, or somebody wants it.
func (n *Node) repair(ctx context.Context, v cluster.VolumeInfo, done func(context.Context, *attached) bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !n.repairs.begin(v.Volume, cancel) {
		return
	}
	defer n.repairs.end(v.ID)
	a, err := n.attach(ctx, v.Name, cluster.AttachOptions{Purpose: cluster.ForMaintenance}, nil)
	switch {
	case ctx.Err() != nil && a == nil, errors.Is(err, cluster.ErrBusy), errors.Is(err, cluster.ErrNotFound):
		return // somebody was faster
	case err != nil:
		n.log.Warn("volume can't be repaired yet", "volume", v.Name, "err", err)
		return
	}
	complete := done(ctx, a)
	if err := n.end(a); err != nil {
		n.log.Warn("volume not detached cleanly after maintenance", "volume", v.Name, "err", err)
		return
	}
	n.log.Info("volume maintained", "volume", v.Name, "done", complete)
}

// scrubbedSoon waits until the volume is scrubbed (see scrubWhenDue), and all copies are
// in sync; not if that makes no progress.
func (n *Node) scrubbedSoon(ctx context.Context, a *attached) bool {
	var last cluster.Scrub
	for moved := time.Now(); n.scrubDue(a.att.Volume); {
		known, _, _ := n.scrubs.of(a.att.Volume.ID)
		if known != last {
			last, moved = known, time.Now()
		}
		if time.Since(moved) >= repairStuck || !a.goesOn(ctx) {
			return false
		}
	}
	return n.inSyncSoon(ctx, a)
}

// goesOn waits a little, and reports whether the volume is to be kept.
func (a *attached) goesOn(ctx context.Context) bool {
	select {
	case <-a.dev.ended:
		return false
	default:
		pause(ctx, repairLook)
		return ctx.Err() == nil
	}
}

// inSyncSoon waits until all copies are in sync; not if that makes no progress, nor for
// nodes that are gone: when one is there again, it is needed again.
func (n *Node) inSyncSoon(ctx context.Context, a *attached) bool {
	var done int64
	inSync, moved := 0, time.Now()
	look := moved.Add(repairEvery)
	for {
		nowDone, nowInSync := int64(0), 0
		all := a.vol.Status().Copies
		for _, c := range all {
			nowDone += c.Done
			if c.InSync() {
				nowInSync++
			}
		}
		if nowInSync == len(all) {
			return true
		}
		if time.Now().After(look) {
			if nodes, err := n.cluster.Nodes(ctx); err == nil && !mayCatchUp(all, a.copies, living(nodes)) {
				return false
			}
			look = time.Now().Add(repairEvery)
		}
		if nowDone != done || nowInSync != inSync {
			done, inSync, moved = nowDone, nowInSync, time.Now()
		}
		if time.Since(moved) >= repairStuck || !a.goesOn(ctx) {
			return false
		}
	}
}
