package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"
)

// joining is a member that was founded, and the options of one to join it.
type joining struct {
	first *Server
	etcd  *Client
	o     ServerOptions
}

func newJoining(t *testing.T) *joining {
	t.Helper()
	first := startServer(t, testServerOptions(t))
	j := &joining{first: first, etcd: dialled(t, first.Endpoint()), o: testServerOptions(t)}
	j.o.Node, j.o.Join = 0xa2, j.etcd
	return j
}

func dialled(t *testing.T, endpoints ...string) *Client {
	t.Helper()
	etcd, err := Dial(endpoints)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { etcd.Close() })
	return etcd
}

// add keeps a place for the joining member, as the keeper does.
func (j *joining) add(t *testing.T) MemberID {
	t.Helper()
	var id MemberID
	eventually(t, 5*time.Second, func() (err error) {
		if id, err = j.etcd.addLearner(t.Context(), j.o.addr(j.o.PeerPort)); err != nil && !errors.Is(err, errSameSecond) {
			t.Fatal(err)
		}
		return err
	})
	return id
}

func (j *joining) record(t *testing.T) dirRecord {
	t.Helper()
	r, err := readDirRecord(recordPath(j.o.Dir))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// killedBeforeItWasSure makes the directory that of a start that was killed when etcd ran,
// and before that was written down.
func (j *joining) killedBeforeItWasSure(t *testing.T) {
	t.Helper()
	r := j.record(t)
	r.Founded = false
	if err := writeDirRecord(recordPath(j.o.Dir), r); err != nil {
		t.Fatal(err)
	}
}

func (j *joining) promoted(t *testing.T, id MemberID) {
	t.Helper()
	eventually(t, 10*time.Second, func() error { return j.etcd.promote(t.Context(), id) })
}

// A join goes on wherever it was interrupted, as the same member.
func TestJoinResumed(t *testing.T) {
	t.Parallel()
	j := newJoining(t)
	_, err := StartServer(t.Context(), j.o)
	wantErr(t, err, ErrNotMember, "etcd: not a member of etcd: cluster 00000000000000c1 has kept no place for node 00000000000000a2 at "+j.o.addr(j.o.PeerPort))
	id := j.add(t) // killed between add and start, and as often as it likes
	s := startServer(t, j.o)
	if s.ID() != id {
		t.Fatalf("member %v, was added as %v", s.ID(), id)
	}
	s.Close()
	j.killedBeforeItWasSure(t)
	s = startServer(t, j.o)
	if r := j.record(t); s.ID() != id || !r.Founded || r.Member != hexID(id) {
		t.Fatalf("member %v, was %v: %+v", s.ID(), id, r)
	}
	s.Close() // before its promotion
	s = startServer(t, j.o)
	j.promoted(t, id)
	mustCommit(t, j.etcd, put("k", "x"))
	eventually(t, 10*time.Second, func() error {
		p, _, err := s.KV().Get(t.Context(), "k", 0)
		if err == nil && string(p.Value) != "x" {
			err = errors.New("not there")
		}
		return err
	})
}

// Removed while it was stopped in the middle of its join, and added again: another
// member, that begins anew.
func TestJoinAnotherMember(t *testing.T) {
	t.Parallel()
	j := newJoining(t)
	first := j.add(t)
	startServer(t, j.o).Close()
	j.killedBeforeItWasSure(t)
	if err := j.etcd.remove(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	second := j.add(t)
	s := startServer(t, j.o)
	if s.ID() != second || first == second {
		t.Fatalf("member %v, was added as %v, then %v", s.ID(), first, second)
	}
	j.promoted(t, second)
}

// A list of members that is out of date is noticed by etcd, and read again.
func TestJoinMembersChange(t *testing.T) {
	t.Parallel()
	j := newJoining(t)
	j.add(t)
	stale, err := j.etcd.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := testServerOptions(t)
	if _, err := j.etcd.addLearner(t.Context(), other.addr(other.PeerPort)); err != nil {
		t.Fatal(err)
	}
	record, err := claimDir(j.o)
	if err != nil {
		t.Fatal(err)
	}
	j.o.Log = discardLog()
	j.o.Advertise = j.o.advertised()
	if s, err := joinOnce(j.o, &record, stale); !errors.Is(err, errOtherMembers) {
		t.Fatalf("started with a stale list: %v, %v", s, err)
	}
	startServer(t, j.o) // on top of what the failed start has left
}

// A member whose directory was lost must not start empty under its old number: with a vote or
// without, refused before etcd would panic.
func TestJoinWithoutItsRecords(t *testing.T) {
	t.Parallel()
	j := newJoining(t)
	id := j.add(t)
	s := startServer(t, j.o)
	j.promoted(t, id)
	select {
	case <-s.Ready():
	case <-time.After(15 * time.Second):
		t.Fatal("not made known")
	}
	s.Close()
	if err := os.RemoveAll(j.o.Dir); err != nil {
		t.Fatal(err)
	}
	members := []Member{{ID: id, Node: j.o.Node, Peer: j.o.addr(j.o.PeerPort)}, {ID: j.first.ID(), Node: 0xa1, Peer: j.first.opts.addr(j.first.opts.PeerPort)}}
	for _, learner := range []bool{false, true} {
		members[0].Learner = learner
		record, err := claimDir(j.o)
		if err != nil {
			t.Fatal(err)
		}
		_, err = joinOnce(j.o, &record, members)
		wantErr(t, err, ErrCorrupt, "corrupt record: node 00000000000000a2 is a member of etcd already, but its records are not in directory "+
			j.o.Dir+`: remove the node with "torus node remove", then join anew with an empty data directory`)
	}
	members[0].Node = 0xa9
	record := j.o.dirRecord()
	_, err := joinOnce(j.o, &record, members)
	wantErr(t, err, ErrExists, "exists already: peer address "+members[0].Peer+
		` belongs to node 00000000000000a9: if that one is gone, remove it with "torus node remove"`)
}

// Two voters that stop at the same time don't wait for each other to take over.
func TestServersCloseTogether(t *testing.T) {
	t.Parallel()
	j := newJoining(t)
	id := j.add(t)
	s := startServer(t, j.o)
	j.promoted(t, id)
	began := time.Now()
	s.Close()
	j.first.Close()
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("closed after %v", took)
	}
}

// A directory that was to join does not go on alone, nor does it found.
func TestJoinNeedsACluster(t *testing.T) {
	t.Parallel()
	j := newJoining(t)
	if _, err := StartServer(t.Context(), j.o); !errors.Is(err, ErrNotMember) {
		t.Fatal(err)
	}
	j.o.Join = nil
	_, err := StartServer(t.Context(), j.o)
	wantErr(t, err, ErrInvalid, "etcd: invalid: directory "+j.o.Dir+" has not finished joining cluster 00000000000000c1: that goes on only with a client of it")
}

// A member that is removed while it runs says so, and its directory can be used again.
func TestServerRemoved(t *testing.T) {
	t.Parallel()
	j := newJoining(t)
	id := j.add(t)
	s := startServer(t, j.o)
	if err := j.etcd.remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Removed():
	case <-s.Failed():
		t.Fatal(s.Err())
	case <-time.After(15 * time.Second):
		t.Fatal("not told")
	}
	s.Close()
	if has, err := HasMember(j.o.Dir); err != nil || !has {
		t.Errorf("before it is cleared: %v, %v", has, err)
	}
	if err := ClearServer(j.o.Dir); err != nil {
		t.Fatal(err)
	}
	if has, err := HasMember(j.o.Dir); err != nil || has || exists(memberDir(j.o.Dir)) {
		t.Errorf("cleared: %v, %v", has, err)
	}
	id = j.add(t)
	if s = startServer(t, j.o); s.ID() != id {
		t.Errorf("member %v, want %v", s.ID(), id)
	}
	s.Close()
	select {
	case <-s.Removed():
		t.Error("closed, and says that it was removed")
	default:
	}
}

// A member listens on one address and is reached at another.
func TestServerAdvertises(t *testing.T) {
	t.Parallel()
	o := testServerOptions(t)
	o.Listen, o.Advertise, o.Insecure = netip.IPv4Unspecified(), netip.MustParseAddr("127.0.0.2"), true
	s := startServer(t, o)
	etcd := dialled(t, s.Endpoint())
	members, err := etcd.Members(t.Context())
	want := Member{ID: s.ID(), Node: o.Node, Peer: fmt.Sprint("127.0.0.2:", o.PeerPort), Client: fmt.Sprint("127.0.0.2:", o.ClientPort)}
	if err != nil || len(members) != 1 || members[0] != want {
		t.Errorf("%+v, %v, want %+v", members, err, want)
	}
	o.Insecure = false
	s.Close()
	_, err = StartServer(t.Context(), o)
	wantErr(t, err, ErrInvalid, "etcd: invalid: listen address 0.0.0.0: connections are not encrypted yet: "+
		"whoever can reach them can read and change all data, so any address but loopback needs --insecure")
}
