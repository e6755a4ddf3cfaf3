package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"torus/cluster"
	"torus/ring"
)

type nodeCmds struct {
	List    nodeListCmd    `cmd:"" help:"List all nodes."`
	Show    nodeShowCmd    `cmd:"" help:"Show a node."`
	Set     nodeSetCmd     `cmd:"" help:"Change a node's zone, its part of the data, or what it is allowed."`
	Drain   nodeDrainCmd   `cmd:"" help:"Move all data off a node, or stop it without a stall of those who use it."`
	Undrain nodeUndrainCmd `cmd:"" help:"Let a node that was drained keep data again."`
	Remove  nodeRemoveCmd  `cmd:"" help:"Take a node that keeps no copies out of the cluster, for good."`
}

// nodeName is a name that a node can have.
type nodeName string

// UnmarshalText refuses any other, before a cluster is asked.
func (n *nodeName) UnmarshalText(b []byte) error {
	*n = nodeName(b)
	return cluster.CheckName(string(b))
}

// nodeView is a node as it is printed.
type nodeView struct {
	Name     string         `json:"name"`
	ID       string         `json:"id"`
	Alive    bool           `json:"alive"`
	State    string         `json:"state"`
	API      string         `json:"api"`
	Blocks   string         `json:"blocks"` // where exporters reach its store; empty without one
	Zone     string         `json:"zone"`
	Host     string         `json:"host"`
	Roles    []cluster.Role `json:"roles"`
	Etcd     string         `json:"etcd"`     // its part: voter, learner, or none
	Capacity int64          `json:"capacity"` // bytes for pages
	Used     int64          `json:"used"`     // bytes on disk, dead pages included
	Live     int64          `json:"live"`     // bytes of live pages
	Corrupt  int64          `json:"corruptPages"`
	NoSpace  bool           `json:"noSpace"`
	Failed   string         `json:"failed"`

	Stopping   bool  `json:"stopping"`
	RepairRate int64 `json:"repairRate"` // bytes/s; 0: no bound

	Weight  float64  `json:"weight"`  // its part of the data, relative to its capacity
	Volumes []string `json:"volumes"` // that have copies on it, or are to
}

func newNodeView(n cluster.NodeInfo, members []cluster.Member, placed map[ring.NodeID][]string) nodeView {
	v := nodeView{
		Name: n.Name, ID: n.ID.String(), Alive: n.Alive, State: string(n.State), API: n.Addresses.API, Blocks: n.Addresses.Blocks,
		Zone: string(n.Zone), Host: n.Host, Roles: n.Roles, Etcd: "none", Capacity: n.Capacity,
		Used: n.Usage.Used, Live: n.Usage.Live, Corrupt: n.Usage.Corrupt, NoSpace: n.Usage.NoSpace, Failed: n.Usage.Failed,
		Stopping: n.Alive && n.Stopping, RepairRate: n.Limits.RepairRate,
		Weight: n.Weight, Volumes: placed[n.ID],
	}
	for _, m := range members {
		switch {
		case m.Node != n.ID:
		case m.Learner:
			v.Etcd = "learner"
		default:
			v.Etcd = "voter"
		}
	}
	return v
}

// states is the state for people: a node that does not answer has no other, unless it
// is to go.
func (v nodeView) states() string {
	text := v.State
	switch {
	case !v.Alive:
		text = "not answering"
	case v.Stopping:
		text = "stopping"
	}
	switch {
	case v.State == string(cluster.NodeActive):
		return text
	case len(v.Volumes) > 0:
		return fmt.Sprintf("%s, %s left", text, plural(len(v.Volumes), "volume", "volumes"))
	}
	return text + ", can be removed"
}

func (v nodeView) write(w io.Writer) {
	space := ""
	switch {
	case v.Capacity > 0 && !v.Alive: // what it has it does not say
		space = formatSize(v.Capacity)
	case v.Capacity > 0:
		space = fmt.Sprintf("%s live, %s on disk, of %s", formatSize(v.Live), formatSize(v.Used), formatSize(v.Capacity))
	}
	repairRate := "" // by default
	if v.RepairRate > 0 {
		repairRate = fmt.Sprintf("at most %s/s", formatSize(v.RepairRate))
	}
	weight := "" // by default
	if v.Weight != 1 {
		weight = fmt.Sprint(v.Weight)
	}
	writeFields(w, "", [][2]string{
		{"name", v.Name}, {"ID", v.ID}, {"state", v.states()}, {"roles", join(v.Roles)}, {"etcd", v.Etcd},
		{"zone", v.Zone}, {"host", v.Host}, {"API", v.API}, {"blocks", v.Blocks}, {"space", space}, {"weight", weight}, {"volumes", strings.Join(v.Volumes, ", ")}, {"repair rate", repairRate}, {"failed", v.Failed},
	})
}

func writeNodes(w io.Writer, nodes []nodeView) {
	rows := [][]string{{"NODE", "STATE", "ZONE", "API", "ROLES", "ETCD", "LIVE", "ON DISK", "CAPACITY"}}
	for _, n := range nodes {
		zone := n.Zone
		if zone == "" {
			zone = "-"
		}
		live, used := formatSize(n.Live), formatSize(n.Used)
		if !n.Alive { // what it has it does not say
			live, used = "-", "-"
		}
		rows = append(rows, []string{n.Name, n.states(), zone, n.API, join(n.Roles), n.Etcd, live, used, formatSize(n.Capacity)})
	}
	writeTable(w, rows)
}

// nodeViews returns all nodes as they are printed.
func nodeViews(ctx context.Context, c *cluster.Cluster, etcd *cluster.Client) ([]nodeView, []cluster.NodeInfo, error) {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return nil, nil, err
	}
	members, err := etcd.Members(ctx)
	if err != nil {
		return nil, nil, err
	}
	placed, err := c.Placed(ctx)
	if err != nil {
		return nil, nil, err
	}
	views := []nodeView{}
	for _, n := range nodes {
		views = append(views, newNodeView(n, members, placed))
	}
	return views, nodes, nil
}

type nodeListCmd struct{}

// Run lists the nodes.
func (c *nodeListCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		views, _, err := nodeViews(ctx, r.Cluster, r.etcd)
		if err != nil {
			return err
		}
		return a.print(views, func(w io.Writer) { writeNodes(w, views) })
	})
}

type nodeShowCmd struct {
	Name nodeName `arg:"" help:"Name of the node."`
}

// Run shows a node.
func (c *nodeShowCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		n, err := r.Node(ctx, string(c.Name))
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

type nodeRemoveCmd struct {
	Name             nodeName `arg:"" help:"Name of the node."`
	DataLossAccepted bool     `help:"The node is gone for good: volumes of which it has the last copy in sync go on with what other copies have. What only it had is lost."`
}

// Run removes a node.
func (c *nodeRemoveCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		if c.DataLossAccepted {
			if err := c.giveUp(ctx, a, r); err != nil {
				return err
			}
		}
		if err := r.RemoveNode(ctx, string(c.Name)); err != nil {
			return noSuchNode(advise(err, cluster.ErrBusy, "move them off it first with \"torus node drain %s\"; if it is gone for good they move by themselves, "+
				"or use --data-loss-accepted", c.Name))
		}
		return a.print(map[string]string{"removed": string(c.Name)}, func(w io.Writer) {
			fmt.Fprintf(w, "Node %s was removed. If it still runs, it stops by itself; its data directory can be deleted.\n", c.Name)
		})
	})
}

// removePatience is how long it is waited for that what a node had, and others have
// too, is moved to nodes that stay.
const removePatience = 30 * time.Second

// giveUp gives up what a node has, and waits until nothing names it any more.
func (c *nodeRemoveCmd) giveUp(ctx context.Context, a *app, r records) error {
	lost, err := r.GiveUpNode(ctx, string(c.Name))
	if err != nil {
		return noSuchNode(advise(err, cluster.ErrBusy, "try again then"))
	}
	for _, name := range lost {
		a.note("Volume %s goes on without the last copy that was in sync: what only node %s had is lost.", name, c.Name)
	}
	n, err := r.Node(ctx, string(c.Name))
	if err != nil {
		return noSuchNode(err)
	}
	for until := time.Now().Add(removePatience); time.Now().Before(until); {
		placed, err := r.Placed(ctx)
		if err != nil || len(placed[n.ID]) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(removeEvery):
		}
	}
	return nil // the removal says what is in the way
}

// removeEvery is how often that is looked at.
const removeEvery = 250 * time.Millisecond

func noSuchNode(err error) error {
	return advise(err, cluster.ErrNotFound, "\"torus node list\" names those there are")
}
