package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"torus/cluster"
	"torus/node"
)

type recoverCmd struct {
	DataDir string `type:"path" default:"/var/lib/torus" placeholder:"DIR" help:"Where the node keeps its data (${default})."`
	From    string `type:"path" placeholder:"FILE" help:"Snapshot to take the records from; without it, what the node's own etcd member has."`
}

// recoverView is what was recovered, as it is printed.
type recoverView struct {
	Cluster  string `json:"cluster"`
	Recovery string `json:"recovery"`
	Node     string `json:"node"`
	From     string `json:"from"`
	Volumes  int    `json:"volumes"`
	Former   string `json:"former"` // directory that is not used any more
}

// Run founds the cluster's records anew.
func (c *recoverCmd) Run(a *app) error {
	r, err := node.Recover(a.ctx, node.RecoverOptions{Dir: c.DataDir, From: c.From, Logger: a.log})
	if err != nil {
		err = advise(err, node.ErrNoNode, "name the data directory of a node with --data-dir")
		if c.From == "" {
			err = advise(err, cluster.ErrNotFound, "take them from a snapshot with --from: \"torus metadata list\" names those of a node")
		}
		return err
	}
	v := recoverView{
		Cluster: string(r.Settings.Cluster), Recovery: r.Settings.Recovery.String(), Node: r.Settings.Name,
		From: r.From, Volumes: r.Volumes, Former: r.Former,
	}
	return a.print(v, func(w io.Writer) { v.write(w, c.DataDir) })
}

func (v recoverView) write(w io.Writer, dir string) {
	fmt.Fprintf(w, "The records of cluster %s, with %s, were founded anew from the %s.\n\n", v.Cluster, plural(v.Volumes, "volume", "volumes"), v.From)
	writeFields(w, "  ", [][2]string{{"recovery", v.Recovery}, {"node", v.Node}, {"left as it was", v.Former}})
	fmt.Fprintf(w, `
Run this node:

  torus start --data-dir %s

On each other node of the cluster, with its data directory and the API of this one:

  torus join HOST:PORT --data-dir DIR

Then, with "torus status": each volume is served once all its nodes are back and
their copies were compared. No data is removed before you say, when all is well:

  torus metadata confirm
`, dir)
}

type metadataConfirmCmd struct{}

// Run confirms a recovery.
func (c *metadataConfirmCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		if err := r.ConfirmRecovery(ctx); err != nil {
			return err
		}
		names, err := r.Uncompared(ctx)
		if err != nil {
			return err
		}
		view := struct {
			Uncompared []string `json:"uncompared"`
		}{append([]string{}, names...)}
		return a.print(view, func(w io.Writer) {
			fmt.Fprintln(w, "Confirmed: data of deleted volumes is removed again.")
			for _, name := range names {
				fmt.Fprintf(w, "The copies of volume %s are still to be compared, when it is attached.\n", name)
			}
		})
	})
}

type metadataGiveUpCmd struct {
	Node     string `arg:"" help:"Name of the node that does not come back, or has lost its data."`
	Accepted bool   `name:"data-loss-accepted" help:"Go on although the node may have had the newest data."`
}

// Run goes on without a node's copies.
func (c *metadataGiveUpCmd) Run(a *app) error {
	if !c.Accepted {
		return badUsage("of all copies, those of node %s may be the only ones with the newest data: if they are gone for good, say so with --data-loss-accepted", c.Node)
	}
	return a.withRecords(func(ctx context.Context, r records) error {
		names, err := r.GiveUpCopies(ctx, c.Node)
		if err != nil {
			return advise(err, cluster.ErrNotFound, "\"torus node list\" names those there are")
		}
		view := struct {
			Volumes []string `json:"volumes"`
		}{append([]string{}, names...)}
		return a.print(view, func(w io.Writer) {
			fmt.Fprintf(w, "%s on node %s given up.\n", plural(len(names), "copy", "copies"), c.Node)
			for _, name := range names {
				fmt.Fprintf(w, "Volume %s is served without it.\n", name)
			}
		})
	})
}

type metadataLayersCmd struct{}

// strayView is a layer that no record names, as it is printed.
type strayView struct {
	Layer string `json:"layer"`
	Node  string `json:"node"`
	Bytes int64  `json:"bytes"`
}

// Run lists what nodes have and no record names.
func (c *metadataLayersCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		known, err := r.KnownLayers(ctx)
		if err != nil {
			return err
		}
		nodes, err := r.Nodes(ctx)
		if err != nil {
			return err
		}
		views := []strayView{}
		var errs []error
		for _, n := range nodes {
			if !n.Has(cluster.RoleStorage) {
				continue
			}
			layers, err := node.AskLayers(ctx, n.Addresses.API)
			if err != nil {
				errs = append(errs, fmt.Errorf("node %s does not say which layers it has: %s", n.Name, rootCause(err)))
				continue
			}
			for id, l := range layers {
				if !known[id] {
					views = append(views, strayView{l.ID, n.Name, l.Bytes})
				}
			}
		}
		slices.SortFunc(views, func(a, b strayView) int { return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Node, b.Node)) })
		err = a.print(views, func(w io.Writer) { writeStray(w, views) })
		return errors.Join(append(errs, err)...)
	})
}

func writeStray(w io.Writer, views []strayView) {
	if len(views) == 0 {
		fmt.Fprintln(w, "The nodes have no layer that is not in the cluster's records.")
		return
	}
	rows := [][]string{{"LAYER", "NODE", "SIZE"}}
	for _, v := range views {
		rows = append(rows, []string{v.Layer, v.Node, formatSize(v.Bytes)})
	}
	writeTable(w, rows)
	fmt.Fprintln(w, "\nNo record names these: they are kept.")
}

// recoveryProblems says what is left to be done after a recovery of the records.
func recoveryProblems(ctx context.Context, r records) ([]string, error) {
	is, err := r.Recovered(ctx)
	if err != nil || is.Recovery == (cluster.Recovery{}) {
		return nil, err
	}
	names, err := r.Uncompared(ctx)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, name := range names {
		all = append(all, fmt.Sprintf("volume %s was not attached since the cluster's records were recovered: all its nodes are needed for that, "+
			"as their copies are compared then", name))
	}
	if !is.Confirmed {
		all = append(all, fmt.Sprintf("the cluster's records were recovered on node %s, from the %s: no data is removed until you have looked "+
			"(\"torus metadata layers\") and confirmed that with \"torus metadata confirm\"", is.Node, is.From))
	}
	return all, nil
}
