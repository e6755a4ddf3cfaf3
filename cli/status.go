package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"torus/cluster"
	"torus/node"
	"torus/ring"
)

func zone(s string) ring.Zone { return ring.Zone(s) }

type statusCmd struct{}

// statusView is the cluster as it is printed.
type statusView struct {
	Cluster  string       `json:"cluster"`
	Created  time.Time    `json:"created"`
	Replicas int          `json:"replicas"` // of volumes for which no number is given
	Healthy  bool         `json:"healthy"`
	Problems []string     `json:"problems"`
	Nodes    []nodeView   `json:"nodes"`
	Volumes  []volumeView `json:"volumes"`
}

type nodeView struct {
	Name     string         `json:"name"`
	ID       string         `json:"id"`
	Alive    bool           `json:"alive"`
	State    string         `json:"state"`
	API      string         `json:"api"`
	Zone     string         `json:"zone"`
	Host     string         `json:"host"`
	Roles    []cluster.Role `json:"roles"`
	Capacity int64          `json:"capacity"` // bytes for pages
	Used     int64          `json:"used"`     // bytes on disk, dead pages included
	Live     int64          `json:"live"`     // bytes of live pages
	Corrupt  int64          `json:"corruptPages"`
	NoSpace  bool           `json:"noSpace"`
	Failed   string         `json:"failed"`
}

// Run shows how the cluster is.
func (c *statusCmd) Run(a *app) error {
	return a.withCluster(func(ctx context.Context, records *cluster.Cluster, about node.About) error {
		nodes, err := records.Nodes(ctx)
		if err != nil {
			return err
		}
		vols, err := records.Volumes(ctx)
		if err != nil {
			return err
		}
		view := newStatusView(records.Info(), nodes, newVolumeViews(vols, about))
		return a.print(view, view.write)
	})
}

func newStatusView(info cluster.Info, nodes []cluster.NodeInfo, vols []volumeView) statusView {
	s := statusView{
		Cluster: string(info.ID), Created: info.Created, Replicas: info.Replicas,
		Problems: []string{}, Nodes: []nodeView{}, Volumes: vols,
	}
	for _, n := range nodes {
		s.Nodes = append(s.Nodes, nodeView{
			Name: n.Name, ID: n.ID.String(), Alive: n.Alive, State: string(n.State), API: n.Addresses.API,
			Zone: string(n.Zone), Host: n.Host, Roles: n.Roles, Capacity: n.Capacity,
			Used: n.Usage.Used, Live: n.Usage.Live, Corrupt: n.Usage.Corrupt, NoSpace: n.Usage.NoSpace, Failed: n.Usage.Failed,
		})
		s.Problems = append(s.Problems, problems(n)...)
	}
	s.Healthy = len(s.Problems) == 0
	return s
}

// problems says what is wrong with a node, and what to do about it.
func problems(n cluster.NodeInfo) []string {
	var all []string
	add := func(format string, args ...any) { all = append(all, "node "+n.Name+fmt.Sprintf(format, args...)) }
	if !n.Alive {
		add(" does not answer: start it with \"torus start\", or look at its log")
		return all
	}
	u := n.Usage
	if u.Failed != "" {
		add(" serves no blocks: %s: look at its disk, then start it again", u.Failed)
	}
	if u.NoSpace {
		add(" is full and refuses writes: free space on its disk, or delete volumes")
	}
	if u.Corrupt > 0 {
		add(" found %s corrupt: check its disk", plural(int(u.Corrupt), "page", "pages"))
	}
	return all
}

func (s statusView) write(w io.Writer) {
	if s.Healthy {
		fmt.Fprintf(w, "The cluster is healthy.\n\n")
	} else {
		fmt.Fprintf(w, "The cluster has %s:\n\n", plural(len(s.Problems), "problem", "problems"))
		for _, p := range s.Problems {
			fmt.Fprintf(w, "  %s\n", p)
		}
		fmt.Fprintln(w)
	}
	rows := [][]string{{"NODE", "STATE", "API", "ROLES", "LIVE", "ON DISK", "CAPACITY"}}
	for _, n := range s.Nodes {
		state := n.State
		if !n.Alive {
			state = "not answering"
		}
		rows = append(rows, []string{n.Name, state, n.API, join(n.Roles), formatSize(n.Live), formatSize(n.Used), formatSize(n.Capacity)})
	}
	writeTable(w, rows)
	fmt.Fprintln(w)
	writeVolumes(w, s.Volumes)
}

func join(roles []cluster.Role) string {
	text := ""
	for i, r := range roles {
		if i > 0 {
			text += ","
		}
		text += string(r)
	}
	return text
}
