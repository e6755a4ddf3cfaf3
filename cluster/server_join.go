package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

// ErrNotMember: the cluster has not added the node to etcd's members.
var ErrNotMember = errors.New("not a member of etcd")

// join starts the member of a node that was added. record says how far an earlier
// try has come. What can go wrong on the way, and how it goes on:
//
//   - another member was added between the list and the start: listed again;
//   - killed before the start made etcd's log: nobody was promised anything, start anew;
//   - killed after: the log goes on, as that of the same member;
//   - removed meanwhile, and added again: that is another member, and begins anew.
func join(ctx context.Context, o ServerOptions, record dirRecord) (*Server, error) {
	if o.Join == nil {
		return nil, fmt.Errorf("%w: directory %s has not finished joining cluster %s: that goes on only with a client of it",
			ErrInvalid, o.Dir, o.Cluster)
	}
	for pause := firstPause; ; {
		members, err := o.Join.Members(ctx)
		if err == nil {
			var s *Server
			if s, err = joinOnce(o, &record, members); err == nil {
				return s, nil
			}
		}
		if !errors.Is(err, errOtherMembers) && !errors.Is(err, ErrUnavailable) || !wait(ctx, &pause) {
			return nil, err
		}
	}
}

// errOtherMembers: the list of members was out of date.
var errOtherMembers = errors.New("the members have changed meanwhile")

// joinOnce starts with one list of members.
func joinOnce(o ServerOptions, record *dirRecord, members []Member) (*Server, error) {
	self, err := o.findSelf(members)
	if err != nil {
		return nil, err
	}
	how := foundOrRestart
	if record.Member != hexID(self.ID) || !hasLog(o.Dir) {
		if self.Node == o.Node {
			// An empty log under the number of a member that has run would unsay what it
			// acknowledged; etcd panics.
			return nil, fmt.Errorf("%w: node %v is a member of etcd already, but its records are not in directory %s: "+
				`remove the node with "torus node remove", then join anew with an empty data directory`, ErrCorrupt, o.Node, o.Dir)
		}
		if err := os.RemoveAll(memberDir(o.Dir)); err != nil {
			return nil, err
		}
		record.Member = hexID(self.ID) // before there can be a log of it
		if err := writeDirRecord(recordPath(o.Dir), *record); err != nil {
			return nil, err
		}
		how = initialClusterOf(members, self.Peer, o.Node.String())
	}
	s, err := run(o, how)
	if err != nil {
		// By text: etcd has no identity for them.
		for _, text := range []string{"member count is unequal", "no match found for existing member"} {
			if strings.Contains(err.Error(), text) {
				return nil, fmt.Errorf("%w: %w", errOtherMembers, err)
			}
		}
		return nil, err
	}
	// From now on others may count on what this member acknowledges.
	if err := markFounded(o, s.ID()); err != nil {
		s.Close() // only logs
		return nil, err
	}
	return s, nil
}

// findSelf returns the place that was kept for this node, or that it has.
func (o ServerOptions) findSelf(members []Member) (Member, error) {
	peer := o.addr(o.PeerPort)
	for _, m := range members {
		if m.Node == o.Node {
			return m, nil
		}
	}
	for _, m := range members {
		if m.Peer != peer {
			continue
		}
		if m.Node != 0 {
			return Member{}, fmt.Errorf("%w: peer address %s belongs to node %v: if that one is gone, remove it with "+
				`"torus node remove"`, ErrExists, peer, m.Node)
		}
		return m, nil
	}
	return Member{}, fmt.Errorf("%w: cluster %s has kept no place for node %v at %s", ErrNotMember, o.Cluster, o.Node, peer)
}
