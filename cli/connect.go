package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"torus/cluster"
	"torus/node"
)

// commandPatience is how long a command waits for records that are unavailable.
const commandPatience = 10 * time.Second

// withCluster runs f with the records of the cluster that --cluster names.
func (a *app) withCluster(f func(ctx context.Context, c *cluster.Cluster, about node.About) error) error {
	return a.withRecords(func(ctx context.Context, r records) error { return f(ctx, r.Cluster, r.about) })
}

// records are what a command works on.
type records struct {
	*cluster.Cluster
	etcd  *cluster.Client
	about node.About
}

// withRecords is withCluster for commands that ask etcd itself too.
func (a *app) withRecords(f func(ctx context.Context, r records) error) error {
	about, err := a.ask()
	if err != nil {
		return err
	}
	kv, err := cluster.Dial(about.Etcd)
	if err != nil {
		return err
	}
	c, err := cluster.Open(a.ctx, kv, about.Cluster, cluster.Options{Log: a.log, Patience: commandPatience})
	if err == nil {
		err = f(a.ctx, records{c, kv, about})
	}
	return errors.Join(err, kv.Close())
}

// ask finds a node that answers.
func (a *app) ask() (node.About, error) {
	if len(a.peers) == 0 {
		return node.About{}, badUsage("--cluster: the address of a node is missing")
	}
	var peers, reasons []string
	for _, addr := range a.peers {
		about, err := node.Ask(a.ctx, string(addr))
		if err == nil {
			return about, nil
		}
		peers, reasons = append(peers, string(addr)), append(reasons, rootCause(err))
	}
	return node.About{}, fmt.Errorf("no node answers at %s (%s): start one with \"torus start\" or \"torus dev\", or name another with --cluster",
		strings.Join(peers, ", "), strings.Join(reasons, "; "))
}

// rootCause returns the innermost text of an error, as the outer ones repeat
// the address.
func rootCause(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}
