package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"torus/cluster"
	"torus/ring"
)

func zone(s string) ring.Zone { return ring.Zone(s) }

type statusCmd struct {
	Watch bool `help:"Show it again every second, until Ctrl-C."`
}

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

// Run shows how the cluster is.
func (c *statusCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		if c.Watch {
			return a.watchStatus(ctx, r)
		}
		view, err := newStatusView(ctx, r)
		if err != nil {
			return err
		}
		return a.print(view, view.write)
	})
}

// watchEvery is how often "status --watch" looks.
const watchEvery = time.Second

// watchStatus prints the status again and again until the program is to stop:
// over itself on a terminal, and one JSON object after the other with -o json.
func (a *app) watchStatus(ctx context.Context, r records) error {
	const home = "\x1b[H\x1b[2J" // cursor to the top, screen cleared
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		view, err := newStatusView(ctx, r)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, cluster.ErrUnavailable):
			return err
		case err != nil:
			fmt.Fprintf(a.stderr, "The cluster's records do not answer: %v\n", err)
		default:
			var page bytes.Buffer
			if !a.json {
				page.WriteString(home)
			}
			if err := a.printTo(&page, view, view.write); err != nil {
				return err
			}
			_, err := page.WriteTo(a.stdout)
			if errors.Is(err, syscall.EPIPE) {
				return nil // whoever read it has seen enough
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func newStatusView(ctx context.Context, r records) (statusView, error) {
	info := r.Info()
	s := statusView{Cluster: string(info.ID), Created: info.Created, Replicas: info.Replicas, Problems: []string{}}
	views, nodes, err := nodeViews(ctx, r.Cluster, r.etcd)
	if err != nil {
		return s, err
	}
	vols, err := r.Volumes(ctx)
	if err != nil {
		return s, err
	}
	s.Nodes, s.Volumes = views, newVolumeViews(vols, r.about)
	for _, n := range nodes {
		s.Problems = append(s.Problems, problems(n)...)
	}
	for _, v := range s.Volumes {
		s.Problems = append(s.Problems, v.problems(nodes)...)
	}
	recovery, err := recoveryProblems(ctx, r)
	if err != nil {
		return s, err
	}
	s.Problems = append(s.Problems, recovery...)
	s.Healthy = len(s.Problems) == 0
	return s, nil
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
		add(" came upon corrupt pages, %s: they are rewritten from other copies; check its disk", plural(int(u.Corrupt), "time", "times"))
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
	writeNodes(w, s.Nodes)
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
