package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"torus/cluster"
	"torus/node"
)

// nbdFlags say where and how a node exports volumes.
type nbdFlags struct {
	NBD []string `name:"nbd" sep:"," placeholder:"ADDR" help:"Export volumes with NBD on HOST:PORT or on the Unix socket of a path. May be repeated."`
	tlsFlags
}

// tlsFlags say how NBD is protected.
type tlsFlags struct {
	TLSCert     string `name:"tls-cert" type:"existingfile" placeholder:"FILE" help:"Certificate with which NBD is encrypted, in PEM."`
	TLSKey      string `name:"tls-key" type:"existingfile" placeholder:"FILE" help:"Its private key, in PEM."`
	TLSCA       string `name:"tls-ca" type:"existingfile" placeholder:"FILE" help:"Authority whose certificates NBD clients must show, in PEM."`
	Insecure    bool   `help:"Allow unencrypted connections on addresses that other machines can reach."`
	TLSOptional bool   `name:"tls-optional" help:"Offer TLS to NBD clients, but serve those without it too."`
}

// over puts what is given in the place of what the node was set up with, and
// leaves the rest: a node with TLS does not lose it when it moves to another
// address.
func (f nbdFlags) over(s node.Settings) (node.Settings, error) {
	given, err := f.tlsFlags.exported(f.NBD)
	if err != nil {
		return s, err
	}
	listen := s.NBD.Listen
	if len(given.Listen) > 0 {
		listen = given.Listen
	}
	if given.Cert != "" {
		s.NBD = given
	}
	s.NBD.Listen, s.Insecure = listen, s.Insecure || f.Insecure
	return s, nil
}

// exported returns how volumes are exported at the addresses.
func (f tlsFlags) exported(addrs []string) (node.NBD, error) {
	switch {
	case (f.TLSCert == "") != (f.TLSKey == ""):
		return node.NBD{}, badUsage("--tls-cert and --tls-key are needed together")
	case f.TLSCert == "" && (f.TLSCA != "" || f.TLSOptional):
		return node.NBD{}, badUsage("--tls-ca and --tls-optional need --tls-cert and --tls-key")
	}
	// A node may be started from another directory next time.
	listen := slices.Clone(addrs)
	for i, addr := range listen {
		if _, port, err := net.SplitHostPort(addr); err == nil && !strings.ContainsRune(addr, '/') && !isPort(port) {
			return node.NBD{}, badUsage("NBD address %s: port %q is not a number from 0 to 65535", addr, port)
		}
		if strings.HasPrefix(addr, ".") {
			abs, err := filepath.Abs(addr)
			if err != nil {
				return node.NBD{}, err
			}
			listen[i] = abs
		}
	}
	return node.NBD{Listen: listen, Cert: f.TLSCert, Key: f.TLSKey, ClientCA: f.TLSCA, TLSOptional: f.TLSOptional}, nil
}

// leastProcs is how many goroutines of a server may be in system calls or running
// at once. A goroutine that waits for the disk keeps its share of the scheduler
// until the runtime's monitor notices, up to 10 ms later: with one share a core,
// two reads at a time were all that two cores had under way (1 MiB reads at depth
// 8: 586/s with 2, 786/s with 8; 4 KiB at depth 32: 31,000/s and 37,000/s).
const leastProcs = 8

// spreadProcs sees to leastProcs, unless the environment says otherwise.
func spreadProcs() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < leastProcs {
		runtime.GOMAXPROCS(leastProcs)
	}
}

// run runs a node until the program is to stop or the node fails. ready is
// called when it serves.
func (a *app) run(dir string, s node.Settings, ready func(ctx context.Context, n *node.Node) error) error {
	return a.runNode(func(ctx context.Context, starting func(string)) (*node.Node, error) {
		return node.Start(ctx, node.Options{Dir: dir, Settings: s, Version: version(), Starting: starting, Logger: a.log})
	}, ready)
}

// runNode runs what start starts until the program is to stop or it fails. ready
// is called when it serves.
func (a *app) runNode(start func(ctx context.Context, starting func(string)) (*node.Node, error),
	ready func(ctx context.Context, n *node.Node) error) error {
	spreadProcs()
	p := a.progress("starting")
	n, err := start(a.ctx, p.at)
	p.end()
	if err != nil && a.ctx.Err() != nil && interrupted(err) {
		a.note("Stopped before it was serving.")
		return nil
	}
	if err != nil {
		return err
	}
	if err := ready(a.ctx, n); err != nil {
		return errors.Join(err, n.Close())
	}
	select {
	case <-a.ctx.Done():
	case <-n.Asked():
	case <-n.Failed():
		err := n.Err()
		return errors.Join(fmt.Errorf("stopped: %w", inUse(err)), n.Close())
	}
	a.note("Stopping: requests under way are finished, volumes synced. (Once more: at once.)")
	if err := n.Close(); err != nil {
		return err
	}
	a.note("Stopped.")
	return nil
}

// interrupted reports whether an error is what the end of a context leaves: of a
// transaction under way the records say only that its outcome is not known.
func interrupted(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, cluster.ErrUnknown) || errors.Is(err, cluster.ErrUnavailable)
}

// note tells a person what goes on.
func (a *app) note(format string, args ...any) {
	if !a.json {
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// running is what a node prints when it serves.
type running struct {
	Node      string   `json:"node"`
	NodeID    string   `json:"nodeID"`
	Cluster   string   `json:"cluster"`
	DataDir   string   `json:"dataDir"`
	Temporary bool     `json:"temporary"` // the data directory is removed at the end
	API       string   `json:"api"`
	Etcd      []string `json:"etcd"` // where its members are reached
	NBD       []string `json:"nbd"`  // addresses
	Volume    string   `json:"volume,omitempty"`
	Size      int64    `json:"size,omitempty"`
	URIs      []string `json:"uris"` // of the volume, one for each address
}

func newRunning(n *node.Node, dir string) running {
	s := n.Settings()
	r := running{
		Node: s.Name, NodeID: s.ID.String(), Cluster: string(s.Cluster), DataDir: dir,
		API: n.API(), Etcd: n.Etcd(), NBD: []string{}, URIs: []string{},
	}
	for _, addr := range n.ExportAddrs() {
		r.NBD = append(r.NBD, addr.String())
	}
	return r
}

// ifNotDefault returns the flag that makes other commands find the API.
func ifNotDefault(api string) string {
	if api == fmt.Sprintf("127.0.0.1:%d", node.DefaultPort) {
		return ""
	}
	return " --cluster " + api
}
