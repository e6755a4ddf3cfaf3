package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"torus/cluster"
	"torus/node"
)

type volumeCmds struct {
	Create volumeCreateCmd `cmd:"" help:"Create a volume."`
	List   volumeListCmd   `cmd:"" help:"List all volumes."`
	Show   volumeShowCmd   `cmd:"" help:"Show a volume."`
	Set    volumeSetCmd    `cmd:"" help:"Change how many copies a volume has."`
	Rename volumeRenameCmd `cmd:"" help:"Give a volume another name."`
	Delete volumeDeleteCmd `cmd:"" help:"Delete a volume with all its data."`
}

// volumeName is a name that a volume can have.
type volumeName string

// UnmarshalText refuses any other, before a cluster is asked.
func (n *volumeName) UnmarshalText(b []byte) error {
	*n = volumeName(b)
	return cluster.CheckName(string(b))
}

// copies is how many copies a volume has, or needs; 0 is none given.
type copies int

// UnmarshalText refuses what no volume can have.
func (c *copies) UnmarshalText(b []byte) error {
	n, err := strconv.Atoi(string(b))
	if err != nil || n < 1 || n > cluster.MaxReplicas {
		return fmt.Errorf("%q is not a number from 1 to %d", b, cluster.MaxReplicas)
	}
	*c = copies(n)
	return nil
}

// volumeView is a volume as it is printed.
type volumeView struct {
	Name      string      `json:"name"`
	ID        string      `json:"id"`
	Size      int64       `json:"size"` // bytes
	Replicas  int         `json:"replicas"`
	MinCopies int         `json:"minCopies"`
	Created   time.Time   `json:"created"`
	Clean     bool        `json:"clean"` // detached cleanly, or never attached
	Epoch     uint32      `json:"epoch"`
	Attached  *holderView `json:"attached"` // null: by nobody
	URIs      []string    `json:"uris"`     // at the node that was asked

	Waiting string       `json:"waiting,omitempty"` // what requests wait for
	Behind  []behindView `json:"behind,omitempty"`  // nodes that lack writes
	Moving  *movingView  `json:"moving,omitempty"`
	Scrub   *scrubView   `json:"scrub,omitempty"` // the newest
	Loss    *lossView    `json:"loss,omitempty"`  // the newest
}

type holderView struct {
	By    string    `json:"by"`
	Since time.Time `json:"since"`
}

func newVolumeView(v cluster.VolumeInfo, about node.About) volumeView {
	view := volumeView{
		Name: v.Name, ID: v.ID.String(), Size: v.Size, Replicas: v.Lineage.Replicas, MinCopies: v.Lineage.MinCopies,
		Created: v.Created, Clean: v.Clean, Epoch: uint32(v.Epoch), URIs: uris(about, v.Name),
	}
	view.Behind, view.Moving = behind(v), moving(v)
	if v.Scrub != (cluster.Scrub{}) {
		view.Scrub = newScrubView(v.Name, v.Scrub)
	}
	if v.Report != nil {
		view.Waiting = v.Report.Waiting
	}
	if v.Loss != nil {
		view.Loss = &lossView{At: v.Loss.At, Epoch: uint32(v.Loss.Epoch)}
	}
	if v.Attached != nil {
		view.Attached = &holderView{By: v.Attached.Holder.String(), Since: v.Attached.Since}
	}
	return view
}

// lossView says that writes which were not flushed may be gone.
type lossView struct {
	At    time.Time `json:"at"`
	Epoch uint32    `json:"epoch"` // of the attachment that found it
}

func (l *lossView) String() string {
	return "what was written before " + l.At.UTC().Format(time.RFC3339) + " and not flushed may be gone: no node had all of it any more"
}

// uris returns how NBD clients reach a volume at the node that was asked.
func uris(about node.About, name string) []string {
	all := []string{}
	for _, e := range about.Exports {
		all = append(all, node.URI(exportAddr(e), name, e.TLS))
	}
	return all
}

// exportAddr is the address of an export as a net.Addr.
func exportAddr(e node.Exported) net.Addr {
	if e.Unix {
		return &net.UnixAddr{Name: e.Address, Net: "unix"}
	}
	return tcpAddr(e.Address)
}

// tcpAddr is HOST:PORT, as it was told.
type tcpAddr string

func (a tcpAddr) Network() string { return "tcp" }
func (a tcpAddr) String() string  { return string(a) }

// state says in a few words who has a volume, and how its copies are.
func (v volumeView) state() string {
	text := v.holder() + v.degraded()
	if v.Moving != nil {
		text += ", " + v.Moving.String()
	}
	return text
}

func (v volumeView) holder() string {
	switch {
	case v.Attached != nil:
		return "attached by " + v.Attached.By
	case !v.Clean:
		return "not attached (not detached cleanly)"
	}
	return "not attached"
}

type volumeCreateCmd struct {
	Name      volumeName `arg:"" help:"Name: letters a-z, digits, '.', '_' and '-'."`
	Size      volumeSize `arg:"" help:"Size: a number with K, M, G or T, from 4K to 1024T, such as 10G."`
	Replicas  copies     `placeholder:"N" help:"Copies, each on a node of its own; the cluster's number if it is left out."`
	MinCopies copies     `placeholder:"M" help:"Copies that a write needs before it is acknowledged; one less than the copies, at least 1, if it is left out."`
}

// Run creates a volume.
func (c *volumeCreateCmd) Run(a *app) error {
	return a.withCluster(func(ctx context.Context, records *cluster.Cluster, about node.About) error {
		_, err := records.CreateVolume(ctx, cluster.VolumeSpec{
			Name: string(c.Name), Size: int64(c.Size), Replicas: int(c.Replicas), MinCopies: int(c.MinCopies),
		})
		if err != nil {
			return advise(err, cluster.ErrExists, "choose another name, or look at it with \"torus volume show %s\"", c.Name)
		}
		v, err := records.Volume(ctx, string(c.Name))
		if err != nil {
			return err
		}
		view := newVolumeView(v, about)
		return a.print(view, func(w io.Writer) {
			fmt.Fprintf(w, "Created volume %s: %s, %s.\n", view.Name, formatSize(view.Size), plural(view.Replicas, "copy", "copies"))
			for _, u := range view.URIs {
				fmt.Fprintln(w, u)
			}
		})
	})
}

type volumeListCmd struct{}

// Run lists the volumes.
func (c *volumeListCmd) Run(a *app) error {
	return a.withCluster(func(ctx context.Context, records *cluster.Cluster, about node.About) error {
		vols, err := records.Volumes(ctx)
		if err != nil {
			return err
		}
		views := newVolumeViews(vols, about)
		return a.print(views, func(w io.Writer) { writeVolumes(w, views) })
	})
}

func newVolumeViews(vols []cluster.VolumeInfo, about node.About) []volumeView {
	views := make([]volumeView, len(vols))
	for i, v := range vols {
		views[i] = newVolumeView(v, about)
	}
	return views
}

func writeVolumes(w io.Writer, views []volumeView) {
	if len(views) == 0 {
		fmt.Fprintln(w, "No volumes. Create one with \"torus volume create vol1 10G\".")
		return
	}
	rows := [][]string{{"VOLUME", "SIZE", "COPIES", "STATE"}}
	for _, v := range views {
		rows = append(rows, []string{v.Name, formatSize(v.Size), fmt.Sprint(v.Replicas), v.state()})
	}
	writeTable(w, rows)
}

type volumeShowCmd struct {
	Name volumeName `arg:"" help:"Name of the volume."`
}

// Run shows a volume.
func (c *volumeShowCmd) Run(a *app) error {
	return a.withCluster(func(ctx context.Context, records *cluster.Cluster, about node.About) error {
		v, err := records.Volume(ctx, string(c.Name))
		if err != nil {
			return noSuchVolume(err)
		}
		view := newVolumeView(v, about)
		return a.print(view, view.write)
	})
}

func (v volumeView) write(w io.Writer) {
	fields := [][2]string{
		{"volume", v.Name},
		{"ID", v.ID},
		{"size", fmt.Sprintf("%s (%d bytes)", formatSize(v.Size), v.Size)},
		{"copies", fmt.Sprintf("%d, at least %d to write", v.Replicas, v.MinCopies)},
		{"created", v.Created.UTC().Format(time.RFC3339)},
		{"state", v.state()},
	}
	if v.Loss != nil {
		fields = append(fields, [2]string{"loss", v.Loss.String()})
	}
	if v.Scrub != nil {
		fields = append(fields, [2]string{"verified", v.Scrub.describe()})
	}
	for _, u := range v.URIs {
		fields = append(fields, [2]string{"NBD", u})
	}
	writeFields(w, "", fields)
}

type volumeSetCmd struct {
	Name      volumeName `arg:"" help:"Name of the volume."`
	Replicas  copies     `placeholder:"N" help:"Copies, each on a node of its own; they are made, or given up, while the volume is used."`
	MinCopies copies     `placeholder:"M" help:"Copies that a write needs before it is acknowledged."`
}

// Run changes a volume.
func (c *volumeSetCmd) Run(a *app) error {
	if c.Replicas == 0 && c.MinCopies == 0 {
		return badUsage("nothing to change: use --replicas or --min-copies")
	}
	return a.withCluster(func(ctx context.Context, records *cluster.Cluster, about node.About) error {
		v, err := records.Volume(ctx, string(c.Name))
		if err != nil {
			return noSuchVolume(err)
		}
		replicas := cmp.Or(int(c.Replicas), v.Lineage.Replicas)
		if err := records.SetReplicas(ctx, v.Name, replicas, int(c.MinCopies)); err != nil {
			return noSuchVolume(err)
		}
		if v, err = records.Volume(ctx, v.Name); err != nil {
			return err
		}
		return a.print(newVolumeView(v, about), func(w io.Writer) {
			fmt.Fprintf(w, "Volume %s is to have %s, at least %d to write. \"torus status\" says how far that is.\n",
				v.Name, plural(v.Lineage.Replicas, "copy", "copies"), v.Lineage.MinCopies)
		})
	})
}

type volumeRenameCmd struct {
	Name volumeName `arg:"" help:"Name of the volume."`
	To   volumeName `arg:"" help:"Its new name."`
}

// Run renames a volume.
func (c *volumeRenameCmd) Run(a *app) error {
	return a.withCluster(func(ctx context.Context, records *cluster.Cluster, about node.About) error {
		if err := records.RenameVolume(ctx, string(c.Name), string(c.To)); err != nil {
			return noSuchVolume(err)
		}
		v, err := records.Volume(ctx, string(c.To))
		if err != nil {
			return err
		}
		return a.print(newVolumeView(v, about), func(w io.Writer) {
			fmt.Fprintf(w, "Renamed volume %s to %s.\n", c.Name, c.To)
		})
	})
}

type volumeDeleteCmd struct {
	Name volumeName `arg:"" help:"Name of the volume."`
}

// Run deletes a volume.
func (c *volumeDeleteCmd) Run(a *app) error {
	return a.withCluster(func(ctx context.Context, records *cluster.Cluster, about node.About) error {
		v, err := records.Volume(ctx, string(c.Name))
		if err == nil {
			err = deleteVolume(ctx, records, v.Volume)
		}
		if err != nil {
			return noSuchVolume(advise(err, cluster.ErrBusy, "%s", howToFree(err)))
		}
		return a.print(newVolumeView(v, node.About{}), func(w io.Writer) {
			fmt.Fprintf(w, "Deleted volume %s.\n", c.Name)
		})
	})
}

// givesWay is how often a volume is tried again that is attached for maintenance.
const givesWay = 100 * time.Millisecond

// deleteVolume deletes a volume. Who has it for maintenance is asked to give it up.
func deleteVolume(ctx context.Context, records *cluster.Cluster, v cluster.Volume) error {
	asked := false
	for until := time.Now().Add(records.Lease() + time.Second); ; {
		err := records.DeleteVolume(ctx, v.Name)
		var busy *cluster.BusyError
		if !errors.As(err, &busy) || busy.Purpose != cluster.ForMaintenance || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
		if !asked {
			process, err := cluster.ThisProcess()
			if err == nil {
				err = records.Want(ctx, v, cluster.Holder{Name: "torus volume delete", Process: process})
			}
			if err != nil {
				return err
			}
			asked = true
		}
		time.Sleep(givesWay)
	}
}

// howToFree says what makes the holder of a volume let it go.
func howToFree(err error) string {
	var busy *cluster.BusyError
	if errors.As(err, &busy) && busy.Holder.Node == 0 {
		return "stop that first"
	}
	return "disconnect its clients; 10 s after the last one it is free"
}

func noSuchVolume(err error) error {
	return advise(err, cluster.ErrNotFound, "\"torus volume list\" names those there are")
}
