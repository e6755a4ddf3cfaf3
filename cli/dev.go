package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"torus/cluster"
	"torus/node"
)

// devReserve is what dev holds back on the disk.
const devReserve = 64 << 20

// devSize is the size of the volume that dev makes.
const devSize = 1 << 30

type devCmd struct {
	DataDir string     `type:"path" placeholder:"DIR" help:"Keep the data in this directory, and use what is there. Without it, it is temporary."`
	Volume  volumeName `default:"vol1" placeholder:"NAME" help:"Volume to export, created if it is not there (${default})."`
	Size    volumeSize `placeholder:"SIZE" help:"Its size, when it is created: a number with K, M, G or T (1GiB)."`
	Port    *int       `placeholder:"PORT" help:"First of the node's four ports; 0 takes free ones (7480)."`
	nbdFlags
}

// Run runs a cluster of one.
func (c *devCmd) Run(a *app) (err error) {
	dir := c.DataDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "torus-dev-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	s, err := c.settings(dir)
	if err != nil {
		return err
	}
	return a.run(dir, s, func(ctx context.Context, n *node.Node) error {
		v, err := c.volume(ctx, n.Cluster())
		if err != nil {
			return err
		}
		r := newRunning(n, dir)
		r.Temporary, r.Volume, r.Size = c.DataDir == "", v.Name, v.Size
		for _, addr := range n.ExportAddrs() {
			r.URIs = append(r.URIs, node.URI(addr, v.Name, s.NBD.Cert != ""))
		}
		return a.print(r, r.devBanner)
	})
}

// settings are those of the directory, or new ones.
func (c *devCmd) settings(dir string) (node.Settings, error) {
	s, err := node.Load(dir) // without a node: zero
	switch {
	case errors.Is(err, node.ErrNoNode) || err == nil && !s.Founded: // or one that did not get far
		s = node.New(node.Settings{
			ID: s.ID, Cluster: s.Cluster, Name: "dev", Port: basePort(c.Port, s.Port), Reserve: devReserve, Replicas: 1,
		})
	case err != nil:
		return s, err
	case c.Port != nil && *c.Port != 0 && *c.Port != s.Port:
		return s, badUsage("--port %d: the node in %s was set up with port %d, which can't be changed yet", *c.Port, dir, s.Port)
	}
	if s, err = c.over(s); err == nil && len(s.NBD.Listen) == 0 {
		s.NBD.Listen = []string{"127.0.0.1:10809"}
	}
	return s, err
}

// volume returns the volume to export, which it creates if there is none.
func (c *devCmd) volume(ctx context.Context, records *cluster.Cluster) (cluster.Volume, error) {
	size := int64(c.Size)
	if size == 0 {
		size = devSize
	}
	v, err := records.CreateVolume(ctx, cluster.VolumeSpec{Name: string(c.Volume), Size: size, Replicas: 1})
	if !errors.Is(err, cluster.ErrExists) {
		return v, err
	}
	have, err := records.Volume(ctx, string(c.Volume))
	if err != nil {
		return have.Volume, err
	}
	if c.Size != 0 && have.Size != size {
		return have.Volume, fmt.Errorf("volume %s: %w, with %s: leave --size out, or choose another --volume",
			c.Volume, cluster.ErrExists, formatSize(have.Size))
	}
	return have.Volume, nil
}

// devBanner says what runs where, what to copy, and how to stop.
func (r running) devBanner(w io.Writer) {
	data := r.DataDir
	if r.Temporary {
		data += " (temporary: removed at the end; --data-dir keeps it)"
	}
	fields := [][2]string{
		{"volume", fmt.Sprintf("%s, %s", r.Volume, formatSize(r.Size))},
		{"data", data},
		{"API", r.API},
		{"etcd", strings.Join(r.Etcd, ", ")},
	}
	for _, u := range r.URIs {
		fields = append(fields, [2]string{"NBD", u})
	}
	fmt.Fprint(w, "Torus is running: a cluster of one, for trying it.\n\n")
	writeFields(w, "  ", fields)
	fmt.Fprint(w, "\nIn another terminal:\n\n")
	if len(r.URIs) > 0 {
		uri := r.URIs[0]
		fmt.Fprintf(w, "  nbdinfo '%s'\n  nbdcopy disk.img '%s'\n", uri, uri)
	}
	fmt.Fprintf(w, "  torus status%s\n\nCtrl-C stops it.\n", ifNotDefault(r.API))
}
