package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	endpoints, err := KnownEndpoints(m.opts.Dir, testID)
	if err != nil {
		m.t.Fatal(err)
	}
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
	m.t.Cleanup(m.close)
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

// Three machines, one after the other: a learner, then three voters; one is killed and comes
// back; the leader moves; everybody goes on.
func TestMembersJoinOneByOne(t *testing.T) {
	began := time.Now()
	n1 := newMachine(t, 1).found()
	t.Logf("founded after %v", time.Since(began))
	n2 := newMachine(t, 2).join(n1.client.Endpoints()...)
	t.Logf("n2 a learner after %v more", n1.wantMembers(10*time.Second, "1 2-"))
	n3 := newMachine(t, 3).join(n1.client.Endpoints()...)
	t.Logf("three voters after %v more", n1.wantMembers(10*time.Second, "1 2 3"))
	if all := time.Since(began); all > 15*time.Second {
		t.Errorf("three voters only after %v", all)
	}
	t.Logf("in all %v", time.Since(began))
	eventually(t, 20*time.Second, func() error {
		if n := len(n3.client.Endpoints()); n != 3 {
			return fmt.Errorf("n3 knows %d endpoints", n)
		}
		return nil
	})
	_ = n2
}

var _ = errors.Is
var _ = bytes.Equal
