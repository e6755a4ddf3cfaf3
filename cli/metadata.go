package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"torus/cluster"
	"torus/node"
)

type metadataCmds struct {
	List metadataListCmd `cmd:"" help:"List the snapshots of the cluster's records that a node keeps, also of one that is stopped."`
	Save metadataSaveCmd `cmd:"" help:"Save the cluster's records, as they are now, to a file."`

	Layers  metadataLayersCmd  `cmd:"" help:"List the layers that nodes have and no record names, as after a recovery."`
	GiveUp  metadataGiveUpCmd  `cmd:"" help:"After a recovery, go on without the copies of a node that is gone for good."`
	Confirm metadataConfirmCmd `cmd:"" help:"After a recovery, let data be removed again."`
}

// snapshotView is a snapshot as it is printed.
type snapshotView struct {
	File     string    `json:"file"`
	Taken    time.Time `json:"taken"`
	Cluster  string    `json:"cluster"`
	Revision int64     `json:"revision"`
	Volumes  int       `json:"volumes"`
	Bytes    int64     `json:"bytes"`
}

func newSnapshotView(s cluster.Snapshot) snapshotView {
	return snapshotView{
		File: s.Path, Taken: s.Taken.UTC(), Cluster: string(s.Cluster), Revision: int64(s.Revision), Volumes: s.Volumes, Bytes: s.Bytes,
	}
}

type metadataListCmd struct {
	DataDir string `type:"path" default:"/var/lib/torus" placeholder:"DIR" help:"Where the node keeps its data (${default})."`
}

// Run lists the snapshots of a node on this machine.
func (c *metadataListCmd) Run(a *app) error {
	if _, err := node.Load(c.DataDir); err != nil {
		return advise(err, node.ErrNoNode, "name the data directory of a node with --data-dir")
	}
	whole, damaged := cluster.SnapshotsIn(node.SnapshotDir(c.DataDir))
	views := make([]snapshotView, len(whole))
	for i, s := range whole {
		views[i] = newSnapshotView(s)
	}
	err := a.print(views, func(w io.Writer) { writeSnapshots(w, views) })
	return errors.Join(append(damaged, err)...)
}

func writeSnapshots(w io.Writer, views []snapshotView) {
	if len(views) == 0 {
		fmt.Fprintln(w, "No snapshots here: nodes that are etcd members keep them, one an hour.")
		return
	}
	rows := [][]string{{"TAKEN", "VOLUMES", "SIZE", "FILE"}}
	for _, v := range views {
		rows = append(rows, []string{v.Taken.Format(time.RFC3339), fmt.Sprint(v.Volumes), formatSize(v.Bytes), v.File})
	}
	writeTable(w, rows)
}

type metadataSaveCmd struct {
	File string `arg:"" type:"path" help:"File to write; it must not be there."`
}

// Run saves the records.
func (c *metadataSaveCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		s, err := r.etcd.Save(ctx, c.File)
		if err != nil {
			return advise(err, cluster.ErrExists, "choose another name")
		}
		view := newSnapshotView(s)
		return a.print(view, func(w io.Writer) {
			fmt.Fprintf(w, "Saved the records of %s to %s.\n", plural(view.Volumes, "volume", "volumes"), view.File)
		})
	})
}
