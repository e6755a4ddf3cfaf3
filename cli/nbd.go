package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"torus/cluster"
	"torus/node"
)

type nbdCmds struct {
	Serve nbdServeCmd `cmd:"" help:"Export volumes with NBD, in the foreground, from a machine that need not store anything."`
}

type nbdServeCmd struct {
	Volumes  []volumeName `arg:"" name:"volume" help:"Volumes to export."`
	Listen   []string     `sep:"," placeholder:"ADDR" help:"Address to serve on, HOST:PORT; may be repeated (127.0.0.1:10809, unless there is a socket)."`
	Socket   []string     `sep:"," placeholder:"PATH" help:"Unix socket to serve on; may be repeated."`
	ReadOnly bool         `help:"Let clients read only."`
	Force    bool         `help:"Take the volumes from whoever holds them."`
	tlsFlags
}

// Run exports volumes until the program is to stop.
func (c *nbdServeCmd) Run(a *app) error {
	addrs, err := c.addrs()
	if err != nil {
		return err
	}
	exported, err := c.exported(addrs)
	if err != nil {
		return err
	}
	volumes, err := c.volumes()
	if err != nil {
		return err
	}
	s := node.New(node.Settings{Roles: []cluster.Role{cluster.RoleNBD}, NBD: exported, Insecure: c.Insecure})
	if err := s.Check(); err != nil { // before anybody is asked
		return err
	}
	about, err := a.ask()
	if err != nil {
		return err
	}
	o := node.ServeOptions{
		Cluster: about.Cluster, Endpoints: about.Etcd, Volumes: volumes, NBD: exported, Insecure: c.Insecure,
		ReadOnly: c.ReadOnly, Force: c.Force, Version: version(), Logger: a.log,
	}
	return a.runNode(func(ctx context.Context, starting func(string)) (*node.Node, error) {
		o.Waiting = starting
		n, err := node.Serve(ctx, o)
		return n, noSuchVolume(advise(inUse(err), cluster.ErrBusy, "%s, or take the volume from it with --force", howToFree(err)))
	}, func(ctx context.Context, n *node.Node) error {
		r := serving{Volumes: []servedView{}}
		for _, name := range o.Volumes {
			v := servedView{Volume: name, ReadOnly: c.ReadOnly, URIs: []string{}}
			for _, addr := range n.ExportAddrs() {
				v.URIs = append(v.URIs, node.URI(addr, name, exported.Cert != ""))
			}
			r.Volumes = append(r.Volumes, v)
		}
		return a.print(r, r.banner)
	})
}

// volumes are the names of the volumes to export.
func (c *nbdServeCmd) volumes() ([]string, error) {
	var names []string
	for _, v := range c.Volumes {
		if slices.Contains(names, string(v)) {
			return nil, badUsage("<volume> ...: %s is there twice", v)
		}
		names = append(names, string(v))
	}
	return names, nil
}

// inUse reduces an error that NBD clients were told too to what it says: who has
// the volume.
func inUse(err error) error {
	var busy *cluster.BusyError
	if errors.As(err, &busy) {
		return busy
	}
	return err
}

// addrs are where clients connect, in the form of node.NBD.
func (c *nbdServeCmd) addrs() ([]string, error) {
	addrs := c.Listen
	for _, l := range c.Listen {
		if strings.ContainsRune(l, '/') {
			return nil, badUsage("--listen %s: a path is given with --socket", l)
		}
	}
	for _, s := range c.Socket {
		if !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, ".") {
			s = "./" + s
		}
		addrs = append(addrs, s)
	}
	if len(addrs) == 0 {
		addrs = []string{"127.0.0.1:10809"}
	}
	return addrs, nil
}

// serving is what "nbd serve" prints when it serves.
type serving struct {
	Volumes []servedView `json:"volumes"`
}

type servedView struct {
	Volume   string   `json:"volume"`
	ReadOnly bool     `json:"readOnly"`
	URIs     []string `json:"uris"` // one for each address
}

func (s serving) banner(w io.Writer) {
	rows := [][]string{{"VOLUME", "ACCESS", "NBD"}}
	for _, v := range s.Volumes {
		access := "read and write"
		if v.ReadOnly {
			access = "read only"
		}
		for _, u := range v.URIs {
			rows = append(rows, []string{v.Volume, access, u})
		}
	}
	writeTable(w, rows)
	fmt.Fprint(w, "\nCtrl-C stops it.\n")
}
