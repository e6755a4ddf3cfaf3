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
	Name       nodeName  `arg:"" help:"Name of the node."`
	RepairRate *byteSize `required:"" placeholder:"SIZE" help:"Bytes a second with which copies are brought up to date at most, of all volumes that the node has attached; 0: half of what clients leave, without another bound."`
}

// Run changes what a node is allowed.
func (c *nodeSetCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		if err := r.SetLimits(ctx, string(c.Name), cluster.Limits{RepairRate: int64(*c.RepairRate)}); err != nil {
			return noSuchNode(err)
		}
		return a.print(map[string]any{"node": c.Name, "repairRate": int64(*c.RepairRate)}, func(w io.Writer) {
			bound := ""
			if *c.RepairRate > 0 {
				bound = fmt.Sprintf(", at most %s/s", formatSize(int64(*c.RepairRate)))
			}
			fmt.Fprintf(w, "Node %s brings copies up to date with half of what clients leave%s.\n", c.Name, bound)
		})
	})
}

type nodeDrainCmd struct {
	Name nodeName `arg:"" help:"Name of the node."`
	Stop bool     `required:"" help:"Its process ends as on SIGTERM: those who have volumes attached go on without it first, and it gets what it missed when it is started again."`
}

// stopPatience is how long a node may take to stop: to hand over, and to finish
// its clients' requests.
const stopPatience = time.Minute

// Run stops a node.
func (c *nodeDrainCmd) Run(a *app) error {
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
