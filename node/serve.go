package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"torus/cluster"
)

// ServeOptions say what a process exports that is no node and stores nothing.
type ServeOptions struct {
	Cluster   cluster.ID
	Endpoints []string // of etcd, each HOST:PORT
	Volumes   []string // their names, at least one
	NBD       NBD
	Insecure  bool // plain NBD also on addresses that other machines can reach
	ReadOnly  bool // clients can't write
	Force     bool // take each volume, once, from whoever holds it

	Version string
	// Waiting is told, in passing, what is waited for; it may be nil.
	Waiting func(what string)
	Logger  *slog.Logger // nil discards
}

// Serve exports volumes from a machine that need not be part of the cluster. It
// returns when all of them are attached; they stay so until Close, whether or not
// there are clients. cluster.ErrBusy, naming the holder, if somebody has one of
// them; a volume whose nodes do not answer is waited for.
func Serve(ctx context.Context, o ServeOptions) (*Node, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	n := newNode(Options{Version: o.Version, Starting: o.Waiting, Logger: o.Logger, Settings: Settings{
		Name: host, Host: host, Cluster: o.Cluster, Join: o.Endpoints,
		Roles: []cluster.Role{cluster.RoleNBD}, NBD: o.NBD, Insecure: o.Insecure,
	}})
	n.readOnly = o.ReadOnly
	if o.Force {
		n.force = map[string]bool{}
		for _, name := range o.Volumes {
			n.force[name] = true
		}
	}
	if err := n.serve(ctx, o.Volumes); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) serve(ctx context.Context, volumes []string) (err error) {
	if err := n.settings.checkExports(); err != nil {
		return err
	}
	if n.process, err = cluster.ThisProcess(); err != nil {
		return err
	}
	n.started("listeners", n.closeListeners)
	if n.nbdListeners, err = n.listenNBD(); err != nil {
		return err
	}
	n.starting("the cluster's records")
	if err := n.dialCluster(ctx); err != nil {
		return err
	}
	for _, name := range volumes { // a name that is wrong is told before anything is taken
		if _, err := n.cluster.Volume(ctx, name); err != nil {
			return err
		}
	}
	n.startPeers()
	n.startScrubs()
	n.startLettingGo()
	if err := n.startNBD(volumes); err != nil {
		return err
	}
	return n.keepVolumes(ctx, volumes)
}

// keepVolumes attaches volumes and keeps them so; it returns when all of them
// are, or one can't be.
func (n *Node) keepVolumes(ctx context.Context, volumes []string) error {
	keeping, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	attached, failed := make(chan string, len(volumes)), make(chan error, len(volumes))
	for _, name := range volumes {
		first := sync.OnceFunc(func() { attached <- name })
		wg.Go(func() {
			if err := n.exports.keep(keeping, name, first); keeping.Err() == nil {
				failed <- err
				n.fail(err)
			}
		})
	}
	n.started("attachments", func() error {
		stop()
		wg.Wait()
		return nil
	})
	waiting := time.NewTimer(time.Second)
	defer waiting.Stop()
	for left := len(volumes); left > 0; {
		select {
		case <-attached:
			left--
		case err := <-failed:
			return err
		case <-waiting.C:
			n.starting(fmt.Sprintf("%d volumes to be attached", left))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
