package node

import (
	"context"
	"path/filepath"
	"sync"
	"time"
)

// SnapshotDir is where the node of a data directory keeps snapshots of the
// cluster's records while it is an etcd member.
func SnapshotDir(dir string) string { return filepath.Join(dir, "snapshots") }

// snapshotLook is how often a node looks whether a snapshot is due: it may have
// become an etcd member.
const snapshotLook = time.Minute

// startSnapshots keeps snapshots of the records, for as long as the node is an etcd
// member.
func (n *Node) startSnapshots() {
	if n.seat == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			n.keepSnapshot(ctx)
			pause(ctx, snapshotLook)
		}
	})
	n.started("snapshots", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

func (n *Node) keepSnapshot(ctx context.Context) {
	s := n.seat.Server()
	if s == nil || time.Now().Before(n.nextSnapshot) {
		return
	}
	var err error
	if n.nextSnapshot, err = s.KeepSnapshot(ctx, SnapshotDir(n.dir), time.Now()); err != nil && ctx.Err() == nil {
		n.log.Warn("no snapshot of the cluster's records was kept", "next try", n.nextSnapshot.Format(time.TimeOnly), "err", err)
	}
}
