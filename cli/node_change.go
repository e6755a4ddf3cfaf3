package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"torus/cluster"
	"torus/node"
)

type nodeSetCmd struct {
	Name       nodeName       `arg:"" help:"Name of the node."`
	Zone       *string        `placeholder:"Z" help:"Its zone: no two copies lie in one, while there are enough zones. It counts before what the node is started with."`
	Weight     *float64       `placeholder:"W" help:"Its part of the data, relative to its capacity: 1 is its share, 0.5 half of that."`
	RepairRate *byteSize      `placeholder:"SIZE" help:"Bytes a second with which copies are brought up to date at most, of all volumes that the node has attached; 0: half of what clients leave, without another bound."`
	AwayAfter  *time.Duration `placeholder:"DURATION" help:"How long it may not answer before its data is rebuilt on other nodes, such as 1h; 10m if it never was set; 0: for ever."`
}

// Run changes a node.
func (c *nodeSetCmd) Run(a *app) error {
	change := cluster.NodeChange{Weight: c.Weight}
	if c.Zone != nil {
		z := zone(*c.Zone)
		change.Zone = &z
	}
	if change == (cluster.NodeChange{}) && c.RepairRate == nil && c.AwayAfter == nil {
		return badUsage("nothing to change: use --zone, --weight, --repair-rate or --away-after")
	}
	return a.withRecords(func(ctx context.Context, r records) error {
		n, err := r.Node(ctx, string(c.Name))
		if err == nil && (c.RepairRate != nil || c.AwayAfter != nil) {
			err = r.SetLimits(ctx, n.Name, c.limits(n.Limits))
		}
		if err == nil && change != (cluster.NodeChange{}) {
			err = r.SetNode(ctx, n.Name, change)
		}
		if err == nil {
			n, err = r.Node(ctx, n.Name)
		}
		if err != nil {
			return noSuchNode(err)
		}
		members, err := r.etcd.Members(ctx)
		if err != nil {
			return err
		}
		placed, err := r.Placed(ctx)
		if err != nil {
			return err
		}
		view := newNodeView(n, members, placed)
		return a.print(view, view.write)
	})
}

// limits returns what the node is allowed, as it is to be.
func (c *nodeSetCmd) limits(l cluster.Limits) cluster.Limits {
	if c.RepairRate != nil {
		l.RepairRate = int64(*c.RepairRate)
	}
	if c.AwayAfter != nil {
		if l.AwayAfter = *c.AwayAfter; l.AwayAfter == 0 {
			l.AwayAfter = -time.Second
		}
	}
	return l
}

type nodeDrainCmd struct {
	Name nodeName `arg:"" help:"Name of the node."`
	Stop bool     `help:"Move nothing, but end its process as on SIGTERM: those who have volumes attached go on without it first, and it gets what it missed when it is started again."`
}

// Run drains a node, or stops it.
func (c *nodeDrainCmd) Run(a *app) error {
	if c.Stop {
		return c.stop(a)
	}
	return a.withRecords(func(ctx context.Context, r records) error {
		if err := r.DrainNode(ctx, string(c.Name)); err != nil {
			return noSuchNode(err)
		}
		return a.print(map[string]string{"draining": string(c.Name)}, func(w io.Writer) {
			fmt.Fprintf(w, "Node %s is drained: its data moves to the others. \"torus node list\" says when it can be removed.\n", c.Name)
		})
	})
}

type nodeUndrainCmd struct {
	Name nodeName `arg:"" help:"Name of the node."`
}

// Run ends the draining of a node.
func (c *nodeUndrainCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		if err := r.UndrainNode(ctx, string(c.Name)); err != nil {
			return noSuchNode(err)
		}
		return a.print(map[string]string{"active": string(c.Name)}, func(w io.Writer) {
			fmt.Fprintf(w, "Node %s keeps data again.\n", c.Name)
		})
	})
}

// stopPatience is how long a node may take to stop: to hand over, and to finish
// its clients' requests.
const stopPatience = time.Minute

// stop stops a node.
func (c *nodeDrainCmd) stop(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		n, err := r.Node(ctx, string(c.Name))
		if err != nil {
			return noSuchNode(err)
		}
		if !n.Alive {
			return fmt.Errorf("node %s: %w: it does not answer, and may have stopped already", n.Name, cluster.ErrBusy)
		}
		if err := mayStop(ctx, r, n); err != nil {
			return err
		}
		if err := r.AskToStop(ctx, n.Node, fmt.Sprintf("process %d", os.Getpid())); err != nil {
			return err
		}
		if err := awaitStopped(ctx, r, n); err != nil {
			return err
		}
		return a.print(map[string]string{"stopped": n.Name}, func(w io.Writer) {
			fmt.Fprintf(w, "Node %s has stopped. Run it again with \"torus start\"; it gets what it misses until then.\n", n.Name)
		})
	})
}

// mayStop refuses to stop a node that an attached volume can't do without.
func mayStop(ctx context.Context, r records, n cluster.NodeInfo) error {
	all, err := r.Dependents(ctx, n.ID)
	if err != nil {
		return err
	}
	var soon, not []string
	for _, d := range all {
		switch {
		case cluster.ProvenDeadHere(d.Attached.Holder):
		case d.Without == cluster.WithoutSoon:
			soon = append(soon, d.Name)
		case d.Without == cluster.WithoutNot:
			not = append(not, d.Name)
		}
	}
	for _, refused := range []struct {
		volumes   []string
		why, help string
	}{
		{not, "requests to %s would wait until it is back: too few other copies are in sync", "start the nodes that lack writes, or detach the volume"},
		{soon, "other copies of %s are just being brought up to date", "try again when \"torus status\" says that they are"},
	} {
		if len(refused.volumes) > 0 {
			list := strings.Join(slices.Sorted(slices.Values(refused.volumes)), ", ")
			return advise(fmt.Errorf("node %s: %w: "+refused.why, n.Name, cluster.ErrBusy, list), cluster.ErrBusy, "%s", refused.help)
		}
	}
	return nil
}

// awaitStopped returns when a node no longer says that it lives; where the records
// have stopped with it, when it does not answer.
func awaitStopped(ctx context.Context, r records, n cluster.NodeInfo) error {
	for end := time.Now().Add(stopPatience); time.Now().Before(end); {
		now, err := r.Node(ctx, n.Name)
		switch {
		case err == nil && !now.Alive:
			return nil
		case errors.Is(err, cluster.ErrUnavailable):
			if _, asked := node.Ask(ctx, n.Addresses.API); asked != nil {
				return nil
			}
		case err != nil:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("node %s has not stopped after %v: look at its log", n.Name, stopPatience)
}
