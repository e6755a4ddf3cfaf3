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
)

// Volumes that nobody has attached are repaired by the storage nodes in turn: one
// attaches it for maintenance, which brings what a crash left to one value and
// copies that lack writes up to date, and gives it up; at once when somebody wants
// it (/torus/wanted/VOLUME).

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

// repairs is the repair that this process does, if any.
type repairs struct {
	mu     sync.Mutex
	id     store.VolumeID // 0: none
	name   string
	cancel context.CancelFunc
}

// has reports whether a volume is under repair here, or about to be.
func (r *repairs) has(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id != 0 && r.name == name
}

// begin notes a repair that cancel ends; end that it is over.
func (r *repairs) begin(v cluster.Volume, cancel context.CancelFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.id, r.name, r.cancel = v.ID, v.Name, cancel
}

func (r *repairs) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.id = 0
}

// wanted ends the repair of a volume that somebody waits for.
func (r *repairs) wanted(id store.VolumeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.id == id && id != 0 {
		r.cancel()
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
	wg.Go(func() { n.repairLoop(ctx) })
	n.started("repairs", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

func (n *Node) repairLoop(ctx context.Context) {
	since := map[store.VolumeID]time.Time{} // volumes need repair
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
		for _, v := range toRepair(vols, nodes, n.settings.ID, since, time.Now()) {
			n.repair(ctx, v)
			// Where it was not done another has its turn first, or somebody the volume.
			delete(since, v.ID)
		}
		pause(ctx, repairEvery)
	}
}

// toRepair decides which volumes it is this node's turn to repair; since is when
// each was first seen to need it, and is brought up to date.
func toRepair(vols []cluster.VolumeInfo, nodes []cluster.NodeInfo, self ring.NodeID,
	since map[store.VolumeID]time.Time, now time.Time) (mine []cluster.VolumeInfo) {
	live := map[ring.NodeID]bool{}
	for _, n := range nodes {
		if n.Alive && !n.Stopping && slices.Contains(n.Roles, cluster.RoleStorage) {
			live[n.ID] = true
		}
	}
	needy := map[store.VolumeID]bool{}
	for _, v := range vols {
		if !needsRepair(v, live) {
			continue
		}
		needy[v.ID] = true
		if since[v.ID].IsZero() {
			since[v.ID] = now
		}
		if wait := time.Duration(1+turn(v.ID, self, live)) * repairTurn; now.Sub(since[v.ID]) >= wait {
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

// needsRepair reports whether there is something to do about a volume that nobody
// has attached: a copy lacks writes, on a node that lives, or whoever had it did
// not end well.
func needsRepair(v cluster.VolumeInfo, live map[ring.NodeID]bool) bool {
	if v.Attached != nil {
		return false
	}
	return !v.Clean || slices.ContainsFunc(v.Stale, func(s cluster.Stale) bool { return live[s.Node] })
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

// repair attaches a volume for maintenance until its copies are in sync, it is of
// no use, or somebody wants it.
func (n *Node) repair(ctx context.Context, v cluster.VolumeInfo) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n.repairs.begin(v.Volume, cancel)
	defer n.repairs.end()
	a, err := n.attach(ctx, v.Name, cluster.AttachOptions{Purpose: cluster.ForMaintenance})
	switch {
	case ctx.Err() != nil && a == nil, errors.Is(err, cluster.ErrBusy), errors.Is(err, cluster.ErrNotFound):
		return // somebody was faster
	case err != nil:
		n.log.Warn("volume can't be repaired yet", "volume", v.Name, "err", err)
		return
	}
	whole := inSyncSoon(ctx, a)
	if err := n.end(a); err != nil {
		n.log.Warn("volume not detached cleanly after its repair", "volume", v.Name, "err", err)
		return
	}
	n.log.Info("volume repaired", "volume", v.Name, "whole", whole)
}

// inSyncSoon waits until all copies are in sync; not if that makes no progress.
func inSyncSoon(ctx context.Context, a *attached) bool {
	var done int64
	inSync, moved := 0, time.Now()
	for ctx.Err() == nil {
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
		if nowDone != done || nowInSync != inSync {
			done, inSync, moved = nowDone, nowInSync, time.Now()
		}
		if time.Since(moved) >= repairStuck {
			return false
		}
		select {
		case <-a.ended:
			return false
		default:
			pause(ctx, repairLook)
		}
	}
	return false
}
