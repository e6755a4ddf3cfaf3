package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"torus/cluster"
	"torus/node"
)

type initCmd struct {
	DataDir  string     `type:"path" default:"/var/lib/torus" placeholder:"DIR" help:"Where the node keeps its data (${default})."`
	Name     string     `placeholder:"NAME" help:"Name of the node; one is made up if it is left out."`
	Listen   netip.Addr `default:"127.0.0.1" placeholder:"IP" help:"Loopback address that the node's ports are opened on (${default})."`
	Port     *int       `placeholder:"PORT" help:"First of the node's four ports; 0 takes free ones (7480)."`
	Zone     string     `placeholder:"ZONE" help:"Failure domain: a rack, a room."`
	Host     string     `placeholder:"HOST" help:"Machine that the node shares with others of the same host; the host name if it is left out."`
	Capacity byteSize   `placeholder:"SIZE" help:"Space for pages; what the file system has if it is left out."`
	Roles    []string   `default:"etcd,storage,nbd" placeholder:"ROLE" help:"What the node does (${default})."`
	Replicas int        `default:"1" placeholder:"N" help:"Copies of a volume for which no number is given (${default})."`
	nbdFlags
}

// Run founds a cluster.
func (c *initCmd) Run(a *app) error {
	have, err := node.Load(c.DataDir) // without a node: zero
	switch {
	case err == nil && have.Founded:
		return fmt.Errorf("directory %s %w: %s, of cluster %s: run it with \"torus start --data-dir %s\"",
			c.DataDir, node.ErrFounded, have.Name, have.Cluster, c.DataDir)
	case err != nil && !errors.Is(err, node.ErrNoNode):
		return err
	}
	s, err := c.settings(have)
	if err != nil {
		return err
	}
	return a.serve(c.DataDir, s, "founded")
}

// settings are those of a node that founds a cluster. have is what an init that
// did not come to its end has left in the directory, or zero: the records begun
// there carry its IDs and ports.
func (c *initCmd) settings(have node.Settings) (node.Settings, error) {
	exported, err := c.nbdFlags.settings()
	if err != nil {
		return node.Settings{}, err
	}
	if c.Name != "" {
		if err := cluster.CheckName(c.Name); err != nil {
			return node.Settings{}, badUsage("--name: %v", err)
		}
	}
	s := node.Settings{
		ID: have.ID, Cluster: have.Cluster, Port: basePort(c.Port, have.Port),
		Name: c.Name, Listen: c.Listen, Insecure: c.Insecure, Host: c.Host,
		Capacity: int64(c.Capacity), Replicas: c.Replicas, NBD: exported,
	}
	s.Zone = zone(c.Zone)
	for _, r := range c.Roles {
		role := cluster.Role(r)
		if role != cluster.RoleEtcd && role != cluster.RoleStorage && role != cluster.RoleNBD {
			return s, badUsage("--roles: %q is none: there are etcd, storage and nbd", r)
		}
		s.Roles = append(s.Roles, role)
	}
	if !slices.Contains(s.Roles, cluster.RoleEtcd) {
		return s, badUsage("--roles: the node that founds a cluster keeps its records: it needs the role etcd")
	}
	return node.New(s), nil
}

// basePort is the first port of a node that founds a cluster: what is given,
// and where that leaves it open the one that the directory has, if any.
func basePort(given *int, had int) int {
	switch {
	case had != 0 && (given == nil || *given == 0):
		return had
	case given == nil:
		return node.DefaultPort
	}
	return *given
}

type startCmd struct {
	DataDir string `type:"path" default:"/var/lib/torus" placeholder:"DIR" help:"Where the node keeps its data (${default})."`
	nbdFlags
}

// Run runs a node again. NBD flags that are given replace what it was set up
// with.
func (c *startCmd) Run(a *app) error {
	s, err := node.Load(c.DataDir)
	if err != nil {
		return advise(err, node.ErrNoNode, "found a cluster with \"torus init --data-dir %s\"", c.DataDir)
	}
	if s, err = c.over(s); err != nil {
		return err
	}
	return a.serve(c.DataDir, s, "started")
}

// serve runs a node and says where it is reached.
func (a *app) serve(dir string, s node.Settings, done string) error {
	return a.run(dir, s, func(ctx context.Context, n *node.Node) error {
		r := newRunning(n, dir)
		return a.print(r, func(w io.Writer) { r.nodeBanner(w, done) })
	})
}

func (r running) nodeBanner(w io.Writer, done string) {
	fields := [][2]string{
		{"node", r.Node},
		{"cluster", r.Cluster},
		{"data", r.DataDir},
		{"API", r.API},
		{"etcd", r.Etcd},
	}
	for _, addr := range r.NBD {
		fields = append(fields, [2]string{"NBD", addr})
	}
	if len(r.NBD) == 0 {
		fields = append(fields, [2]string{"NBD", "off: volumes are exported with --nbd"})
	}
	what := "The node is running."
	if done == "founded" {
		what = "A cluster was founded, its first node is running."
	}
	fmt.Fprintf(w, "%s\n\n", what)
	writeFields(w, "  ", fields)
	c := ifNotDefault(r.API)
	fmt.Fprintf(w, "\nIn another terminal:\n\n  torus volume create vol1 10G%s\n  torus status%s\n\nCtrl-C stops it.\n", c, c)
}
