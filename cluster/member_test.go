package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"torus/ring"
)

// machine is a node as far as etcd is concerned: record, presence, keeper, seat.
type machine struct {
	t        *testing.T
	opts     ServerOptions
	node     Node
	patience Patience
	log      *slog.Logger

	client *Client
	*Cluster
	seat     *Seat
	presence *Presence
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// newMachine prepares node n<id>, whose host and zone are its own.
func newMachine(t *testing.T, id ring.NodeID) *machine {
	t.Helper()
	o := testServerOptions(t)
	o.Node = id
	m := &machine{t: t, opts: o, node: testNode(id), log: testLog(t, id), patience: Patience{Gone: 10 * time.Minute}}
	m.readdress()
	m.opts.Log = m.log
	return m
}

// readdress puts the member's addresses into the node's record.
func (m *machine) readdress() {
	m.node.Addresses.Client, m.node.Addresses.Peer = m.opts.addr(m.opts.ClientPort), m.opts.addr(m.opts.PeerPort)
}

// testLog keeps a node's log for the case that the test fails.
func testLog(t *testing.T, id ring.NodeID) *slog.Logger {
	var b lockedBuffer
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of n%d:\n%s", id, b.String())
		}
	})
	return slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo})).With("node", id)
}

// found founds the cluster on the machine.
func (m *machine) found() *machine {
	m.t.Helper()
	server, err := StartServer(m.t.Context(), m.opts)
	if err != nil {
		m.t.Fatal(err)
	}
	m.dial([]string{server.Endpoint()})
	m.Cluster, err = Found(m.t.Context(), m.client, Founding{ID: testID, Replicas: 1}, Options{Log: m.log})
	if err != nil {
		m.t.Fatal(err)
	}
	m.live(server)
	return m
}

// join joins the machine to the cluster at the endpoints.
func (m *machine) join(endpoints ...string) *machine {
	m.t.Helper()
	m.dial(endpoints)
	m.open()
	m.live(nil)
	return m
}

// restart runs the machine again, as its directory says.
func (m *machine) restart() *machine {
	m.t.Helper()
	endpoints := m.client.Endpoints() // as it knew them last
	var server *Server
	if has, err := HasMember(m.opts.Dir); err != nil {
		m.t.Fatal(err)
	} else if has {
		if server, err = StartServer(m.t.Context(), m.opts); err != nil {
			m.t.Fatal(err)
		}
		endpoints = append(endpoints, server.Endpoint())
	}
	m.dial(endpoints)
	m.open()
	m.live(server)
	return m
}

func (m *machine) dial(endpoints []string) {
	m.t.Helper()
	var err error
	if m.client, err = Dial(endpoints); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) open() {
	m.t.Helper()
	var err error
	if m.Cluster, err = Open(m.t.Context(), m.client, testID, Options{Log: m.log}); err != nil {
		m.t.Fatal(err)
	}
}

// live registers the node and runs its background.
func (m *machine) live(server *Server) {
	m.t.Helper()
	if err := m.RegisterNode(m.t.Context(), m.node); err != nil {
		m.t.Fatal(err)
	}
	m.presence = m.Announce(m.node.ID)
	if err := m.presence.Renew(m.t.Context(), Usage{}); err != nil {
		m.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	m.running.Go(func() { m.KeepMembers(ctx, m.client, MembersOptions{Node: m.node.ID, Patience: m.patience}) })
	m.running.Go(func() {
		for tick := time.NewTicker(3 * time.Second); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				m.presence.Renew(ctx, Usage{}) // the next does
			}
		}
	})
	m.seat = m.TakeSeat(m.client, SeatOptions{Server: m.opts, Running: server})
	m.t.Cleanup(m.kill)
}

// kill stops the machine without a word to the others.
func (m *machine) kill() {
	if m.stop == nil {
		return
	}
	m.stop()
	m.client.Close() // ends what waits for a quorum
	m.running.Wait()
	m.stop = nil
	m.seat.Close()
}

// close stops the machine. It says that it is gone, or the others would see it alive for
// ten more seconds.
func (m *machine) close() {
	if m.stop == nil {
		return
	}
	m.stop()
	m.running.Wait()
	m.stop = nil
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	m.presence.Close(ctx) // in vain without a quorum
	m.seat.Close()
	m.client.Close()
}

// unregister removes the machine's record, as "torus node remove" does.
func (m *machine) unregister(id ring.NodeID) {
	m.t.Helper()
	mustCommit(m.t, m.client, Op{Kind: OpDelete, Key: idKey(keyNodes, id)})
}

// long skips a test that takes ten seconds, unless those are asked for.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("TORUS_LONG_TESTS") == "" {
		t.Skip("with TORUS_LONG_TESTS=1")
	}
}

// eventually waits until check returns nil.
func eventually(t *testing.T, within time.Duration, check func() error) time.Duration {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for pause := firstPause; ; {
		err := check()
		if err == nil {
			return time.Since(began)
		}
		if !wait(ctx, &pause) {
			t.Fatalf("not within %v: %v", within, err)
		}
	}
}

// wantMembers waits until etcd's members are those of the nodes: "1 2 3" are
// voters, "2-" is a learner.
func (m *machine) wantMembers(within time.Duration, want string) time.Duration {
	m.t.Helper()
	return eventually(m.t, within, func() error {
		members, err := m.client.Members(m.t.Context())
		if err != nil {
			return err
		}
		nodes, err := m.Nodes(m.t.Context())
		if err != nil {
			return err
		}
		if got := memberList(members, nodes); got != want {
			return fmt.Errorf("members %q, want %q", got, want)
		}
		return nil
	})
}

// memberList writes members as wantMembers reads them; "?" is one of no node.
func memberList(members []Member, nodes []NodeInfo) string {
	var all []string
	for _, m := range members {
		name := "?"
		for _, n := range nodes {
			if (Seated{Member: m}).of(Candidate{ID: n.ID, Peer: n.Addresses.Peer}) {
				name = fmt.Sprintf("%d", n.ID)
			}
		}
		if m.Learner {
			name += "-"
		}
		all = append(all, name)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// threeVoters returns a cluster of three machines.
func threeVoters(t *testing.T) (n1, n2, n3 *machine) {
	t.Helper()
	n1 = newMachine(t, 1).found()
	n2 = newMachine(t, 2).join(n1.client.Endpoints()...)
	n3 = newMachine(t, 3).join(n1.client.Endpoints()...)
	n1.wantMembers(30*time.Second, "1 2 3") // 3-6 s, more where much else runs
	return n1, n2, n3
}

// knows waits until the machine's client knows so many voters.
func (m *machine) knows(voters int) {
	m.t.Helper()
	eventually(m.t, 15*time.Second, func() error {
		if all := m.client.Endpoints(); len(all) != voters {
			return fmt.Errorf("%s knows %v, want %d voters", m.node.Name, all, voters)
		}
		return nil
	})
}

// writes commits a record, patiently, and says how long it took.
func (m *machine) writes(key string) time.Duration {
	m.t.Helper()
	return eventually(m.t, 15*time.Second, func() error {
		_, err := m.client.Commit(m.t.Context(), Txn{Then: []Op{put(key, "x")}})
		return err
	})
}

// Machines that join one after the other: a learner, then three voters.
func TestMembersJoin(t *testing.T) {
	t.Parallel()
	began := time.Now()
	n1 := newMachine(t, 1).found()
	n2 := newMachine(t, 2).join(n1.client.Endpoints()...)
	n1.wantMembers(10*time.Second, "1 2-")
	t.Logf("a learner after %v", time.Since(began))
	newMachine(t, 3).join(n1.client.Endpoints()...)
	n2.wantMembers(10*time.Second, "1 2 3")
	t.Logf("three voters after %v", time.Since(began))
	if all := time.Since(began); all > 15*time.Second {
		t.Errorf("three voters only after %v", all)
	}
	newMachine(t, 4).join(n1.client.Endpoints()...)
	eventually(t, 5*time.Second, func() error {
		k, err := n2.Keeping(t.Context())
		if err == nil && (k.Node != 1 || k.Doing != "") {
			err = fmt.Errorf("%+v", k)
		}
		return err
	})
	n2.wantMembers(0, "1 2 3") // the fourth runs no etcd
}

// The machine that was founded, whose address alone the others were given, and which is keeper and
// leader, is stopped: the others go on, and it comes back.
func TestMembersSurviveTheFirst(t *testing.T) {
	t.Parallel()
	n1, n2, n3 := threeVoters(t)
	n2.knows(3)
	n3.knows(3)
	n1.close()
	t.Logf("writes paused for %v", n3.writes("k"))
	eventually(t, 15*time.Second, func() error {
		k, err := n2.Keeping(t.Context())
		if err == nil && k.Node != 2 && k.Node != 3 {
			err = fmt.Errorf("kept by %v", k.Node)
		}
		return err
	})
	n1.restart()
	wantPair(t, n1.client, "k", 0, "x")
	n1.knows(3)
	n1.wantMembers(0, "1 2 3")

	leader := n1.seat.Server().etcd.Server
	for _, m := range []*machine{n1, n2, n3} {
		if s := m.seat.Server().etcd.Server; s.Leader() == s.MemberID() {
			leader = s
		}
	}
	for _, m := range []*machine{n1, n2, n3} {
		to := m.seat.Server().etcd.Server
		if to == leader {
			continue
		}
		if err := leader.MoveLeader(t.Context(), uint64(leader.MemberID()), uint64(to.MemberID())); err != nil {
			t.Fatal(err)
		}
		break
	}
	t.Logf("after the leader moved, a write took %v", n2.writes("k2"))
}

// All stopped and started again, one after the other: the first waits for the second.
func TestMembersAllRestart(t *testing.T) {
	t.Parallel()
	n1, n2, n3 := threeVoters(t)
	n1.writes("k")
	for _, m := range []*machine{n1, n2, n3} {
		m.knows(3)
		m.kill()
	}
	var all sync.WaitGroup
	for _, m := range []*machine{n1, n2, n3} {
		all.Go(func() { m.restart() })
	}
	all.Wait()
	n3.wantMembers(0, "1 2 3")
	wantPair(t, n2.client, "k", 0, "x")
}

// Two that join at the same moment both get in.
func TestMembersJoinAtOnce(t *testing.T) {
	t.Parallel()
	n1 := newMachine(t, 1).found()
	n2, n3 := newMachine(t, 2), newMachine(t, 3)
	var both sync.WaitGroup
	both.Go(func() { n2.join(n1.client.Endpoints()...) })
	both.Go(func() { n3.join(n1.client.Endpoints()...) })
	both.Wait()
	t.Logf("three voters after %v more", n1.wantMembers(15*time.Second, "1 2 3"))
}

// A voter's node is removed: with two left there is one voter, and the other is a learner
// again, in the directory that it had; a third takes the vote of the removed one.
func TestMembersRemoved(t *testing.T) {
	long(t)
	t.Parallel()
	n1, n2, n3 := threeVoters(t)
	if err := n3.seat.Leave(t.Context()); !errors.Is(err, ErrInvalid) {
		t.Errorf("left without being removed: %v", err)
	}
	n1.unregister(3)
	if err := n3.seat.Leave(t.Context()); err != nil {
		t.Error(err)
	}
	eventually(t, 10*time.Second, func() error {
		if has, err := HasMember(n3.opts.Dir); err != nil || has || n3.seat.Server() != nil {
			return fmt.Errorf("the removed one has its member still: %v, %v", has, err)
		}
		return nil
	})
	n3.close()
	n1.wantMembers(20*time.Second, "1 2-")
	n2.writes("k")
	newMachine(t, 4).join(n1.client.Endpoints()...)
	n1.wantMembers(20*time.Second, "1 2 4")
}

// A voter that is dead for too long is replaced by a node that has no member, and finds
// when it comes back that its own was removed.
func TestMembersReplaced(t *testing.T) {
	long(t)
	t.Parallel()
	n1, n2, n3 := threeVoters(t)
	for _, m := range []*machine{n1, n2} {
		m.close()
		m.patience.Gone = 2 * time.Second
		m.restart()
		m.knows(3)
	}
	n3.close()
	n1.wantMembers(0, "1 2 3")
	n4 := newMachine(t, 4).join(n1.client.Endpoints()...)
	n1.wantMembers(25*time.Second, "1 2 4")
	n3.restart()
	eventually(t, 10*time.Second, func() error {
		if has, err := HasMember(n3.opts.Dir); err != nil || has || n3.seat.Server() != nil {
			return fmt.Errorf("the replaced one has its member still: %v, %v", has, err)
		}
		return nil
	})
	n3.wantMembers(0, "1 2 4")
	n4.writes("k")
}

// A node that was added and does not start its member loses its place, and gets another
// when it comes; nobody waits for it meanwhile.
func TestMembersNeverStarted(t *testing.T) {
	t.Parallel()
	n1 := newMachine(t, 1)
	n1.patience.Started = time.Second
	n1.found()
	n2 := newMachine(t, 2)
	n2.dial(n1.client.Endpoints())
	n2.open()
	if err := n2.RegisterNode(t.Context(), n2.node); err != nil {
		t.Fatal(err)
	}
	alive := n2.Announce(2)
	if err := alive.Renew(t.Context(), Usage{}); err != nil {
		t.Fatal(err)
	}
	n1.wantMembers(10*time.Second, "1 2-")
	first, err := n1.client.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		now, err := n1.client.Members(t.Context())
		if err == nil && slices.Equal(now, first) {
			err = errors.New("the place is kept")
		}
		return err
	})
	n2.client.Close()
	n2.join(n1.client.Endpoints()...)
	eventually(t, 10*time.Second, func() error {
		if n2.seat.Server() == nil {
			return errors.New("n2 runs no member")
		}
		return n2.seat.Err()
	})
	n1.wantMembers(10*time.Second, "1 2-")
}

// Peer ports that change while a machine is stopped: alone, as the only voter with a
// learner, and as one of three.
func TestMembersChangePeerPort(t *testing.T) {
	t.Parallel()
	n1 := newMachine(t, 1).found()
	moved := func(m *machine, want string) {
		t.Helper()
		m.close()
		m.opts.ClientPort, m.opts.PeerPort = freePorts(t)
		m.readdress()
		m.restart()
		eventually(t, 10*time.Second, func() error {
			members, err := m.client.Members(t.Context())
			if err == nil && !slices.ContainsFunc(members, func(x Member) bool { return x.Peer == m.node.Addresses.Peer }) {
				err = fmt.Errorf("%v", members)
			}
			return err
		})
		m.wantMembers(10*time.Second, want)
	}
	moved(n1, "1")
	n2 := newMachine(t, 2).join(n1.client.Endpoints()...)
	n1.wantMembers(10*time.Second, "1 2-")
	n2.writes("k")
	n3 := newMachine(t, 3).join(n1.client.Endpoints()...)
	n1.wantMembers(10*time.Second, "1 2 3")
	for _, m := range []*machine{n1, n2, n3} {
		m.knows(3)
	}
	moved(n2, "1 2 3")
	n1.knows(3)
	n3.writes("k2")
	wantPair(t, n2.client, "k2", 0, "x")
}

// A node whose directory was lost says so and goes on without a member. Removed, and joined
// anew at the same address, it has one again.
func TestSeatOfLostDirectory(t *testing.T) {
	t.Parallel()
	n1 := newMachine(t, 1).found()
	n2 := newMachine(t, 2).join(n1.client.Endpoints()...)
	eventually(t, 20*time.Second, func() error { // known by its name, not only by its address
		members, err := n1.client.Members(t.Context())
		if err == nil && !slices.ContainsFunc(members, func(m Member) bool { return m.Node == 2 && m.Learner }) {
			err = fmt.Errorf("%v", members)
		}
		return err
	})
	n2.kill()
	if err := os.RemoveAll(n2.opts.Dir); err != nil {
		t.Fatal(err)
	}
	n2.join(n1.client.Endpoints()...)
	select {
	case <-n2.seat.Failed():
	case <-time.After(15 * time.Second):
		t.Fatal("the seat has not failed")
	}
	if err := n2.seat.Err(); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), `remove the node with "torus node remove"`) {
		t.Error(err)
	}
	n2.writes("k")
	n1.unregister(2)
	n2.kill()
	again := newMachine(t, 5)
	again.opts.ClientPort, again.opts.PeerPort = n2.opts.ClientPort, n2.opts.PeerPort
	again.readdress()
	again.join(n1.client.Endpoints()...)
	n1.wantMembers(15*time.Second, "1 5-")
	eventually(t, 10*time.Second, func() error {
		if again.seat.Server() == nil {
			return errors.New("runs no member")
		}
		return again.seat.Err()
	})
}
