package cluster

import (
	"context"
	"errors"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"torus/ring"
)

// MemberID is etcd's number of a member. A node that is removed and joins anew
// has another.
type MemberID uint64

// String returns the ID as 16 hexadecimal digits.
func (id MemberID) String() string { return hexID(id).String() }

// Member is an etcd member, as etcd knows it.
type Member struct {
	ID      MemberID
	Node    ring.NodeID // 0 until its first start was made known
	Peer    string      // HOST:PORT, for the other members
	Client  string      // HOST:PORT, for clients; empty until its first start was made known
	Learner bool        // it has the records and no vote
}

// Members returns etcd's members, as a quorum of them knows.
func (e *Client) Members(ctx context.Context) ([]Member, error) {
	cctx, cancel := e.call(ctx)
	defer cancel()
	resp, err := e.client.MemberList(cctx)
	if err != nil {
		return nil, e.failed(ctx, err)
	}
	members := make([]Member, len(resp.Members))
	for i, m := range resp.Members {
		members[i] = newMember(m)
	}
	return members, nil
}

// newMember reads what etcd says of a member. A name that is no node's ID is as none.
func newMember(m *etcdserverpb.Member) Member {
	var id hexID
	if id.UnmarshalText([]byte(m.Name)) != nil {
		id = 0
	}
	return Member{
		ID: MemberID(m.ID), Node: ring.NodeID(id), Learner: m.IsLearner,
		Peer: firstAddr(m.PeerURLs), Client: firstAddr(m.ClientURLs),
	}
}

func firstAddr(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	return strings.TrimPrefix(urls[0], "http://")
}

// addLearner adds a member without a vote, that will be reached by others at peer.
func (e *Client) addLearner(ctx context.Context, peer string) (MemberID, error) {
	cctx, cancel := e.call(ctx)
	defer cancel()
	resp, err := e.client.MemberAddAsLearner(cctx, []string{"http://" + peer})
	if err != nil && strings.Contains(err.Error(), "member not found") {
		return 0, errSameSecond
	}
	if err != nil {
		return 0, e.memberFailed(ctx, err)
	}
	return MemberID(resp.Member.ID), nil
}

// promote gives a learner its vote. errNotReady until it has caught up.
func (e *Client) promote(ctx context.Context, id MemberID) error {
	cctx, cancel := e.call(ctx)
	defer cancel()
	_, err := e.client.MemberPromote(cctx, uint64(id))
	return e.memberFailed(ctx, err)
}

// remove takes a member out of etcd, for good. One that is not there is removed: by an
// earlier request, perhaps, whose answer was lost.
func (e *Client) remove(ctx context.Context, id MemberID) error {
	cctx, cancel := e.call(ctx)
	defer cancel()
	_, err := e.client.MemberRemove(cctx, uint64(id))
	if errors.Is(err, rpctypes.ErrMemberNotFound) {
		return nil
	}
	return e.memberFailed(ctx, err)
}

// movePeer tells etcd that a member is reached by others at another address.
func (e *Client) movePeer(ctx context.Context, id MemberID, peer string) error {
	cctx, cancel := e.call(ctx)
	defer cancel()
	_, err := e.client.MemberUpdate(cctx, uint64(id), []string{"http://" + peer})
	return e.memberFailed(ctx, err)
}

// Why etcd does not change its members yet.
var (
	errUnhealthy = errors.New("waiting until etcd's voters have been connected for 5 s")
	errNotReady  = errors.New("waiting until it has caught up with the records")
	// etcd makes a member's number from its address and the second, and gives the
	// number of a removed one to nobody.
	errSameSecond = errors.New("waiting for the next second, since etcd has just removed a member of this address")
)

// memberFailed maps the error of a membership change. Whatever it is, the change
// may have been done: who goes on looks at Members first.
func (e *Client) memberFailed(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	for text, is := range memberErrors {
		if strings.Contains(err.Error(), text) {
			return is
		}
	}
	return e.failed(ctx, err)
}

// memberErrors is by text, as etcd's own errors of members come without identity
// when a follower has passed the call on to the leader.
var memberErrors = map[string]error{
	"unhealthy cluster": errUnhealthy, "not enough started members": errUnhealthy,
	"in sync with leader": errNotReady,
}
