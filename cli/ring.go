package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"torus/cluster"
	"torus/ring"
)

type ringCmds struct {
	Show ringShowCmd `cmd:"" help:"Show the rings: which nodes have which share of the data."`
}

type ringShowCmd struct{}

// ringView is a ring as it is printed.
type ringView struct {
	Number  uint64      `json:"number"`
	Copies  int         `json:"copies"`
	Volumes []string    `json:"volumes"` // placed by it
	Shares  []shareView `json:"shares"`
}

type shareView struct {
	Node   string  `json:"node"`
	Zone   string  `json:"zone"`
	Host   string  `json:"host"`
	Weight int64   `json:"weight"` // bytes
	Share  float64 `json:"share"`  // of all copies, 0 to 1
	Best   float64 `json:"best"`   // what weights, zones and hosts would give it
	First  float64 `json:"first"`  // of the chunks, those whose first copy it has
}

// Run shows the rings.
func (c *ringShowCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		views, err := ringViews(ctx, r.Cluster)
		if err != nil {
			return err
		}
		return a.print(views, func(w io.Writer) { writeRings(w, views) })
	})
}

func ringViews(ctx context.Context, c *cluster.Cluster) ([]ringView, error) {
	rings, err := c.Rings(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	vols, err := c.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, n := range nodes {
		names[n.ID.String()] = n.Name
	}
	views := []ringView{}
	for _, r := range rings {
		v := ringView{Number: r.Number, Copies: r.Copies(), Volumes: []string{}}
		for _, vol := range vols {
			if vol.Lineage.Ring == r.Number {
				v.Volumes = append(v.Volumes, vol.Name)
			}
		}
		for _, s := range r.Shares() {
			name := names[s.Member.ID.String()]
			if name == "" {
				name = s.Member.ID.String()
			}
			copies := float64(r.Copies())
			v.Shares = append(v.Shares, shareView{
				Node: name, Zone: string(s.Member.Zone), Host: s.Member.Host, Weight: s.Member.Weight,
				Share: s.Data / copies, Best: s.Best / copies, First: float64(s.First) / ring.Partitions,
			})
		}
		slices.SortFunc(v.Shares, func(a, b shareView) int { return strings.Compare(a.Node, b.Node) })
		views = append(views, v)
	}
	return views, nil
}

func writeRings(w io.Writer, rings []ringView) {
	if len(rings) == 0 {
		fmt.Fprintln(w, "There are no rings yet: the first volume makes one.")
	}
	for i, r := range rings {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "Ring %d: %s of each chunk, %s.\n\n", r.Number, plural(r.Copies, "copy", "copies"),
			plural(len(r.Volumes), "volume", "volumes"))
		rows := [][]string{{"NODE", "ZONE", "HOST", "WEIGHT", "SHARE", "BEST", "FIRST"}}
		for _, s := range r.Shares {
			zone := s.Zone
			if zone == "" {
				zone = "-"
			}
			rows = append(rows, []string{s.Node, zone, s.Host, formatSize(s.Weight), percent(s.Share), percent(s.Best), percent(s.First)})
		}
		writeTable(w, rows)
	}
}

func percent(share float64) string { return fmt.Sprintf("%.1f%%", 100*share) }
