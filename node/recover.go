package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"torus/cluster"
)

// RecoverOptions say how to found the cluster's records anew.
type RecoverOptions struct {
	Dir    string       // the data directory of a stopped node with the role etcd
	From   string       // a snapshot; "": what the node's own etcd member has
	Logger *slog.Logger // nil discards
}

// Recovered is what Recover has done.
type Recovered struct {
	Settings Settings // of the node, as they are now
	From     string   // where the records come from
	Volumes  int
	Former   string // directory of the etcd member that the node had; it may be removed
}

// ErrNothingLost: the records are there, with a majority of their members.
var ErrNothingLost = errors.New("the cluster's records are not lost")

// Recover founds the cluster's records anew on a stopped node, which keeps its ID, as
// do the cluster and its volumes. The other nodes follow when they are told to join
// (Rejoin), and no other way: two sets of records never serve one cluster by
// themselves. The new settings are the last to be written, in one step; a Recover that
// was killed before has changed nothing.
//
// cluster.ErrNotFound if the node has no etcd member's data and From is empty;
// cluster.ErrCorrupt, ErrOtherCluster of From; ErrNothingLost.
func Recover(ctx context.Context, o RecoverOptions) (r Recovered, err error) {
	lock, err := lockDir(o.Dir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	s, err := Load(o.Dir)
	if err != nil {
		return r, err
	}
	if !s.Has(cluster.RoleEtcd) {
		return r, fmt.Errorf("%w: node %s was set up without the role etcd, and can't keep the cluster's records", ErrSettings, s.Name)
	}
	if err := s.lost(ctx); err != nil {
		return r, err
	}
	n := newNode(Options{Dir: o.Dir, Settings: s, Logger: o.Logger})
	saved, err := n.savedRecords(ctx, o.From)
	if err != nil {
		return r, err
	}
	r = Recovered{From: saved.From, Volumes: saved.Volumes(), Former: etcdDir(o.Dir, s.Recovery)}
	next := cluster.Recovery{Number: max(s.Recovery.Number, saved.Info.Recovery.Number) + 1, ID: random64()}
	s.Recovery, s.Join, s.Founded, s.Registered = next, nil, true, false
	n.settings = s
	if err := n.refound(ctx, saved); err != nil {
		return r, err
	}
	r.Settings = s
	return r, s.save(o.Dir)
}

// lostPatience is how long recorded members of etcd may take to answer.
const lostPatience = 3 * time.Second

// lost returns ErrNothingLost if a majority of etcd's members answers where the node
// knew them last.
func (s Settings) lost(ctx context.Context) error {
	if len(s.Join) == 0 {
		return nil
	}
	kv, err := cluster.Dial(s.Join)
	if err != nil {
		return err
	}
	defer kv.Close() // only read from
	c, err := cluster.Open(ctx, kv, s.Cluster, cluster.Options{Patience: lostPatience})
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		return nil
	case c.Info().Recovery != s.Recovery:
		return fmt.Errorf("%w: etcd's members at %v have those of a recovery: follow it with \"torus join\"", ErrNothingLost, s.Join)
	}
	return fmt.Errorf("%w: etcd's members at %v answer: use \"torus start\"", ErrNothingLost, s.Join)
}

// savedRecords reads a snapshot, or what is left of the node's own member.
func (n *Node) savedRecords(ctx context.Context, from string) (cluster.Saved, error) {
	if from != "" {
		return cluster.ReadSaved(from)
	}
	return cluster.ReadSurvivor(ctx, n.serverOptions(), filepath.Join(n.dir, "surviving"))
}

// refound makes the new member's directory, which has its name only when it is whole.
func (n *Node) refound(ctx context.Context, saved cluster.Saved) error {
	o := n.serverOptions()
	final := o.Dir
	o.Dir = filepath.Join(n.dir, "recovering")
	is := cluster.Recovered{Recovery: n.settings.Recovery, Node: n.settings.Name, At: time.Now()}
	if err := cluster.Refound(ctx, o, saved, is); err != nil {
		return err
	}
	return os.Rename(o.Dir, final) // durable with the settings, in the same directory
}

// Rejoin returns the settings with which a node follows a recovery of its cluster,
// asked of a node that does. ErrFounded if there is none to follow.
func (s Settings) Rejoin(about About) (Settings, error) {
	switch {
	case about.Cluster != s.Cluster:
		return s, fmt.Errorf("%w, of cluster %s, and node %s is of cluster %s", ErrFounded, s.Cluster, about.Node, about.Cluster)
	case about.Recovery == s.Recovery && !s.Registered:
		return s, nil // it was begun
	case about.Recovery == s.Recovery:
		return s, fmt.Errorf("%w: %s, of cluster %s", ErrFounded, s.Name, s.Cluster)
	case about.Recovery.Number <= s.Recovery.Number:
		return s, fmt.Errorf("%w: %s, which follows recovery %v, and node %s is of another that is no newer: \"torus recover\" on one "+
			"of the two founds one that all can follow", ErrFounded, s.Name, s.Recovery, about.Node)
	}
	s.Recovery, s.Join, s.Registered = about.Recovery, about.Etcd, false // the records may be older than the node
	return s, nil
}

// follows returns cluster.ErrRecovered unless the records are those of the recovery
// that the node follows. A process that is no node follows any.
func (n *Node) follows(is cluster.Recovery) error {
	if n.settings.ID == 0 || is == n.settings.Recovery {
		return nil
	}
	if is.Number < n.settings.Recovery.Number {
		return fmt.Errorf("node %s: %w: those that answer are from before recovery %v, which it follows: stop the etcd members that have them",
			n.settings.Name, cluster.ErrRecovered, n.settings.Recovery)
	}
	return fmt.Errorf("node %s: %w: they were founded anew since, as %v: if that was meant, have the node follow with \"torus join HOST:PORT --data-dir %s\", "+
		"the API of a node that does", n.settings.Name, cluster.ErrRecovered, is, n.dir)
}

// recordsName is what nodes that exchange blocks must agree on: the cluster, and the
// founding of its records. So an exporter of lost records reaches no node that follows
// a recovery, and none of the recovered ones counts a node that does not.
func (n *Node) recordsName() string {
	info := n.cluster.Info()
	if info.Recovery == (cluster.Recovery{}) {
		return string(info.ID)
	}
	return string(info.ID) + "/" + info.Recovery.String()
}
