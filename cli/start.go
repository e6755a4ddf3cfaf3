package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"torus/cluster"
	"torus/node"
)

// minCapacity is the least that a node is given for pages: the store writes into
// one segment, collects into a second and makes a third ahead of use, 256 MiB each.
const minCapacity = 1 << 30

// nodeFlags say how a new node is set up.
type nodeFlags struct {
	DataDir   string   `type:"path" default:"/var/lib/torus" placeholder:"DIR" help:"Where the node keeps its data (${default})."`
	Name      string   `placeholder:"NAME" help:"Name of the node; one is made up if it is left out."`
	Listen    ipAddr   `default:"127.0.0.1" placeholder:"IP" help:"Address that the node's ports are opened on (${default})."`
	Advertise ipAddr   `placeholder:"IP" help:"Address at which other nodes reach it; that of --listen if it is left out."`
	Port      *int     `placeholder:"PORT" help:"First of the node's four ports; 0 takes free ones (7480)."`
	Zone      string   `placeholder:"ZONE" help:"Failure domain: a rack, a room."`
	Host      string   `placeholder:"HOST" help:"Machine that the node shares with others of the same host; the host name if it is left out."`
	Capacity  byteSize `placeholder:"SIZE" help:"Space for pages; what the file system has if it is left out."`
	Roles     []string `default:"etcd,storage,nbd" placeholder:"ROLE" help:"What the node does (${default})."`
	nbdFlags
}

// settings are those of a new node. have is what an attempt that did not come to
// its end has left in the directory, or zero: the records begun there carry its
// IDs and ports.
func (f *nodeFlags) settings(have node.Settings) (node.Settings, error) {
	exported, err := f.exported(f.NBD)
	if err == nil {
		err = f.check()
	}
	if err != nil {
		return node.Settings{}, err
	}
	s := node.Settings{
		ID: have.ID, Cluster: have.Cluster, Port: basePort(f.Port, have.Port),
		Name: f.Name, Listen: f.Listen.Addr, Advertise: f.Advertise.Addr, Insecure: f.Insecure, Zone: zone(f.Zone), Host: f.Host,
		Capacity: int64(f.Capacity), NBD: exported,
	}
	if s.Name == "" {
		s.Name = have.Name
	}
	for _, r := range f.Roles {
		role := cluster.Role(r)
		if role != cluster.RoleEtcd && role != cluster.RoleStorage && role != cluster.RoleNBD {
			return s, badUsage("--roles: %q is none: there are etcd, storage and nbd", r)
		}
		if slices.Contains(s.Roles, role) {
			return s, badUsage("--roles: %s is there twice", r)
		}
		s.Roles = append(s.Roles, role)
	}
	return s, nil
}

// check refuses what no node can have, before anything is written.
func (f *nodeFlags) check() error {
	if f.Name != "" {
		if err := cluster.CheckName(f.Name); err != nil {
			return badUsage("--name: %v", err)
		}
	}
	if f.Capacity != 0 && f.Capacity < minCapacity {
		return badUsage("--capacity: %s is below the least, %s", formatSize(int64(f.Capacity)), formatSize(minCapacity))
	}
	for _, label := range [][2]string{{"--zone", f.Zone}, {"--host", f.Host}} {
		if err := checkLabel(label[1]); err != nil {
			return badUsage("%s: %v", label[0], err)
		}
	}
	return nil
}

// checkLabel refuses the names of zones and hosts that would tear tables apart.
// Capitals are allowed: machines have them.
func checkLabel(s string) error {
	const most = 253 // characters of a host name
	if len(s) > most {
		return fmt.Errorf("%.20q… has %d characters, at most %d are allowed", s, len(s), most)
	}
	for _, r := range s {
		if r == ' ' || !unicode.IsPrint(r) {
			return fmt.Errorf("%q: use letters, digits and signs, without spaces", s)
		}
	}
	return nil
}

// begun returns what the directory has of a node that was not set up to the end;
// zero if it has none. A node that was is node.ErrFounded.
func (f *nodeFlags) begun() (node.Settings, error) {
	if f.DataDir == "" {
		return node.Settings{}, errNoDir
	}
	have, err := node.Load(f.DataDir)
	switch {
	case errors.Is(err, node.ErrNoNode):
		return node.Settings{}, nil
	case err == nil && have.Founded && !(len(have.Join) > 0 && !have.Registered): // refused for its name, say: it may try again
		return have, fmt.Errorf("directory %s %w: %s, of cluster %s: run it with \"torus start --data-dir %s\"",
			f.DataDir, node.ErrFounded, have.Name, have.Cluster, f.DataDir)
	}
	return have, err
}

var errNoDir = badUsage("--data-dir: the name of a directory is missing")

type initCmd struct {
	nodeFlags
	Replicas copies `default:"2" placeholder:"N" help:"Copies of a volume for which no number is given (${default})."`
}

// Run founds a cluster.
func (c *initCmd) Run(a *app) error {
	have, err := c.begun()
	if err != nil {
		return err
	}
	s, err := c.settings(have)
	if err != nil {
		return err
	}
	return a.serve(c.DataDir, s, "A cluster was founded, its first node is running.")
}

func (c *initCmd) settings(have node.Settings) (node.Settings, error) {
	if len(have.Join) > 0 {
		return have, fmt.Errorf("directory %s %w, begun to join cluster %s: go on with \"torus join\", or choose another --data-dir",
			c.DataDir, node.ErrFounded, have.Cluster)
	}
	s, err := c.nodeFlags.settings(have)
	if err != nil {
		return s, err
	}
	if !slices.Contains(s.Roles, cluster.RoleEtcd) {
		return s, badUsage("--roles: the node that founds a cluster keeps its records: it needs the role etcd")
	}
	s.Replicas = int(c.Replicas)
	return node.New(s), nil
}

type joinCmd struct {
	Peer apiAddr `arg:"" placeholder:"HOST:PORT" help:"API of any node of the cluster."`
	nodeFlags
}

// Run joins a cluster.
func (c *joinCmd) Run(a *app) error {
	have, err := c.begun()
	if errors.Is(err, node.ErrFounded) || have.Founded && have.Recovery != (cluster.Recovery{}) {
		return c.rejoin(a, have)
	}
	if err != nil {
		return err
	}
	s, err := c.settings(have)
	if err != nil {
		return err
	}
	s = node.New(s)
	if err := s.Check(); err != nil { // before a stranger is asked
		return err
	}
	about, err := node.Ask(a.ctx, string(c.Peer))
	if err != nil {
		return fmt.Errorf("no node of a cluster answers at %s: %s: name the API of one that runs, as its banner and \"torus node list\" say it", c.Peer, rootCause(err))
	}
	if have.Cluster != "" && have.Cluster != about.Cluster {
		return fmt.Errorf("directory %s %w, begun for cluster %s, and %s is of cluster %s: choose another --data-dir",
			c.DataDir, node.ErrFounded, have.Cluster, c.Peer, about.Cluster)
	}
	s.Cluster, s.Recovery, s.Join = about.Cluster, about.Recovery, about.Etcd
	return a.serve(c.DataDir, s, "The node has joined the cluster and is running.")
}

// rejoin runs the node that a directory has, if the cluster's records were recovered
// without it: it follows them from now on, with all its data.
func (c *joinCmd) rejoin(a *app, have node.Settings) error {
	about, err := node.Ask(a.ctx, string(c.Peer))
	if err != nil {
		return fmt.Errorf("no node of a cluster answers at %s: %s: name the API of one that runs", c.Peer, rootCause(err))
	}
	s, err := have.Rejoin(about)
	if err != nil {
		return fmt.Errorf("directory %s %w: run it with \"torus start --data-dir %s\", or choose another --data-dir", c.DataDir, err, c.DataDir)
	}
	if c.Name != "" { // it may have been refused for its name
		s.Name = c.Name
	}
	return a.serve(c.DataDir, s, "The node follows the recovered records and is running.")
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
	DataDir   string `type:"path" default:"/var/lib/torus" placeholder:"DIR" help:"Where the node keeps its data (${default})."`
	Listen    ipAddr `placeholder:"IP" help:"Open the node's ports on another address from now on."`
	Advertise ipAddr `placeholder:"IP" help:"Other nodes reach it at another address from now on."`
	Port      int    `placeholder:"PORT" help:"First of the node's four ports from now on."`
	nbdFlags
}

// Run runs a node again. Flags that are given replace what it was set up with.
func (c *startCmd) Run(a *app) error {
	if c.DataDir == "" {
		return errNoDir
	}
	s, err := node.Load(c.DataDir)
	if err != nil {
		return advise(err, node.ErrNoNode, "found a cluster with \"torus init --data-dir %s\", or join one with \"torus join\"", c.DataDir)
	}
	if s, err = c.over(s); err != nil {
		return err
	}
	if c.Listen.IsValid() {
		s.Listen = c.Listen.Addr
	}
	if c.Advertise.IsValid() {
		s.Advertise = c.Advertise.Addr
	}
	if c.Port != 0 {
		s.Port = c.Port
	}
	return a.serve(c.DataDir, s, "The node is running.")
}

// serve runs a node and says where it is reached.
func (a *app) serve(dir string, s node.Settings, what string) error {
	return a.run(dir, s, func(ctx context.Context, n *node.Node) error {
		r := newRunning(n, dir)
		return a.print(r, func(w io.Writer) { r.nodeBanner(w, what) })
	})
}

func (r running) nodeBanner(w io.Writer, what string) {
	fields := [][2]string{
		{"node", r.Node},
		{"cluster", r.Cluster},
		{"data", r.DataDir},
		{"API", r.API},
		{"etcd", strings.Join(r.Etcd, ", ")},
	}
	for _, addr := range r.NBD {
		fields = append(fields, [2]string{"NBD", addr})
	}
	if len(r.NBD) == 0 {
		fields = append(fields, [2]string{"NBD", "off: volumes are exported with --nbd"})
	}
	fmt.Fprintf(w, "%s\n\n", what)
	writeFields(w, "  ", fields)
	c := ifNotDefault(r.API)
	fmt.Fprintf(w, "\nOn other machines, or with another port and directory on this one:\n\n  torus join %s\n", r.API)
	fmt.Fprintf(w, "\nIn another terminal:\n\n  torus volume create vol1 10G%s\n  torus status%s\n\nCtrl-C stops it.\n", c, c)
}
