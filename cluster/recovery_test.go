package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"torus/store"
)

var testRecovered = Recovered{Recovery: Recovery{1, 0xfe}, Node: "n1", At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}

func TestRecoveryText(t *testing.T) {
	for _, r := range []Recovery{{}, {1, 2}, {4294967295, 1 << 63}} {
		text, err := r.MarshalText()
		var back Recovery
		if err == nil {
			err = back.UnmarshalText(text)
		}
		if err != nil || back != r {
			t.Errorf("%+v is %q, and back %+v, %v", r, text, back, err)
		}
	}
	for _, bad := range []string{"1", "-", "01-0000000000000001", "1-1", "0-0000000000000000", "4294967296-0000000000000001", "1-0000000000000001 "} {
		if err := new(Recovery).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// recovered returns the cluster as it is after a recovery from what it has now.
func (b *bench) recovered(t *testing.T, r Recovered) *bench {
	t.Helper()
	pairs, _, err := b.kv.Range(t.Context(), keyRoot, 0)
	if err == nil {
		pairs, err = recoverPairs(pairs, r)
	}
	if err != nil {
		t.Fatal(err)
	}
	again := &bench{clock: b.clock, kv: NewMemory(b.clock.read)}
	t.Cleanup(func() { again.kv.Close() })
	if err := putAll(t.Context(), again.kv, pairs); err != nil {
		t.Fatal(err)
	}
	if again.Cluster, err = Open(t.Context(), again.kv, testID, b.options()); err != nil {
		t.Fatal(err)
	}
	return again
}

// After a recovery nothing that the records say of copies counts: the first
// attachment is told to compare them all; when it serves, that is over.
func TestRecoverRecords(t *testing.T) {
	b := newBench(t, 3)
	b.create(t, "vol1", 3)
	b.create(t, "new", 3)
	gone := b.create(t, "gone", 1)
	if err := b.DeleteVolume(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	a := b.attach(t, "vol1", holder(1))
	if err := a.Serving(t.Context(), []Incarnation{{Node: 1, Identity: 2, Incarnation: 3}}, []Stale{{Layer: a.Volume.Head, Node: 2}}); err != nil {
		t.Fatal(err)
	}
	if err := b.Announce(1).Renew(t.Context(), Usage{}); err != nil {
		t.Fatal(err)
	}

	r := b.recovered(t, testRecovered)
	if r.Info().ID != testID || r.Info().Recovery != testRecovered.Recovery {
		t.Fatalf("opened as %+v", r.Info())
	}
	stale, err := r.StaleCopies(t.Context())
	if err != nil || len(stale) != 0 {
		t.Errorf("stale: %v, %v", stale, err)
	}
	if names, err := r.Uncompared(t.Context()); err != nil || !slices.Equal(names, []string{"new", "vol1"}) {
		t.Errorf("to be compared: %v, %v", names, err)
	}
	if dropped, err := r.DroppedLayers(t.Context(), 1); err != nil || len(dropped) != 1 || dropped[0].ID != gone.Head {
		t.Errorf("deleted: %v, %v: it stays so", dropped, err)
	}
	nodes, err := r.Nodes(t.Context())
	if err != nil || len(nodes) != 3 || nodes[0].Alive {
		t.Errorf("%+v, %v", nodes, err)
	}
	n := r.attach(t, "new", holder(2))
	if !n.Uncompared || n.Served || !n.Unconfirmed {
		t.Errorf("a volume that was never served is attached as %+v", n)
	}
	first := r.attach(t, "vol1", holder(2)) // whoever holds it by the old records
	if !first.Uncompared || !first.Served || !first.Unconfirmed || first.Volume.Clean || len(first.Incarnations)+len(first.Stale) != 0 || first.Epoch != 2 {
		t.Fatalf("attached as %+v", first)
	}
	if err := first.Serving(t.Context(), []Incarnation{{Node: 1, Identity: 2, Incarnation: 3}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := first.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := r.MayCollect(t.Context()); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("before it is confirmed: %v", err)
	}
	if err := r.ConfirmRecovery(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.MayCollect(t.Context()); err != nil {
		t.Error(err)
	}
	if second := r.attach(t, "vol1", holder(2)); second.Uncompared || second.Unconfirmed || !second.Volume.Clean || len(second.Incarnations) != 1 {
		t.Errorf("attached the second time as %+v", second)
	}
	if is, err := r.Recovered(t.Context()); err != nil || !is.Confirmed || is.Node != "n1" {
		t.Errorf("%+v, %v", is, err)
	}
	if err := r.DeleteVolume(t.Context(), "new"); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	// Recovered once more: that somebody has tried to attach it does not mean that it was served.
	twice := r.recovered(t, Recovered{Recovery: Recovery{2, 0xff}})
	if n := twice.attach(t, "new", holder(3)); !n.Uncompared || n.Served {
		t.Errorf("attached after a second recovery as %+v", n)
	}
	if err := twice.DeleteVolume(t.Context(), "vol1"); err != nil {
		t.Fatal(err)
	}
	if names, err := twice.Uncompared(t.Context()); err != nil || !slices.Equal(names, []string{"new"}) {
		t.Errorf("to be compared: %v, %v", names, err)
	}
}

// An attachment, and a process, of the records before say nothing in those after.
func TestRecoveryEndsAttachments(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	r := b.recovered(t, testRecovered)
	old := b.attach(t, "vol1", holder(1)) // epoch 1
	r.attach(t, "vol1", holder(2))        // epoch 1 as well
	old.c.kv = r.kv                       // the same addresses lead to the new records
	wantErr(t, old.MarkStale(t.Context(), []Stale{{Layer: old.Volume.Head, Node: 1}}), ErrLost,
		"volume vol1: attachment lost: the cluster's records are of another recovery: they are of recovery 1-00000000000000fe, and not of the first founding")
	if stale, err := r.StaleCopies(t.Context()); err != nil || len(stale) != 0 {
		t.Errorf("stale: %v, %v", stale, err)
	}
	_, err := old.c.Attach(t.Context(), "vol1", holder(1), AttachOptions{Force: true})
	if !errors.Is(err, ErrRecovered) {
		t.Errorf("attached: %v", err)
	}
	if err := old.c.CheckRecovery(t.Context()); !errors.Is(err, ErrRecovered) {
		t.Error(err)
	}
	if err := r.CheckRecovery(t.Context()); err != nil {
		t.Error(err)
	}
}

// The nodes know higher epochs than the records.
func TestRaiseEpoch(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	a := b.attach(t, "vol1", holder(1))
	for _, known := range []store.Epoch{9, 4} {
		if err := a.RaiseEpoch(t.Context(), known); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Detach(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if a := b.attach(t, "vol1", holder(1)); a.Epoch != 10 {
		t.Errorf("the next has epoch %v, want 10", a.Epoch)
	}
	if err := a.RaiseEpoch(t.Context(), 20); !errors.Is(err, ErrLost) {
		t.Errorf("raised by one that is over: %v", err)
	}
}

func TestGiveUpCopies(t *testing.T) {
	b := newBench(t, 3)
	v := b.create(t, "vol1", 3)
	b.create(t, "vol2", 3)
	a := b.attach(t, "vol2", holder(1))
	r := b.recovered(t, testRecovered)
	_ = a
	if err := r.attach(t, "vol2", holder(2)).Serving(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.GiveUpCopies(t.Context(), "n9"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	names, err := r.GiveUpCopies(t.Context(), "n3")
	if err != nil || !slices.Equal(names, []string{"vol1"}) {
		t.Fatalf("%v, %v: vol2 was compared with that copy", names, err)
	}
	stale, err := r.StaleCopies(t.Context())
	if err != nil || len(stale) != 1 || stale[0].Layer != v.Head || stale[0].Node != 3 || stale[0].Since != 0 {
		t.Errorf("%+v, %v", stale, err)
	}
	if a := r.attach(t, "vol1", holder(2)); len(a.Stale) != 1 || !a.Uncompared {
		t.Errorf("attached as %+v", a)
	}
}

// Founded anew from a snapshot, etcd is another one to its former members, with the
// records of the snapshot; killed amid, it begins again.
func TestRefound(t *testing.T) {
	o := testServerOptions(t)
	s, c := foundServer(t, o)
	if _, err := c.CreateVolume(t.Context(), VolumeSpec{Name: "vol1", Size: 4096}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "saved")
	if _, err := s.Save(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateVolume(t.Context(), VolumeSpec{Name: "later", Size: 4096}); err != nil {
		t.Fatal(err)
	}
	before := s.etcd.Server.Cluster().ID()
	s.Close()

	saved, err := ReadSaved(path)
	if err != nil || saved.Info.ID != testID || saved.Volumes() != 1 {
		t.Fatalf("%+v, %v", saved, err)
	}
	again := o
	again.Dir, again.Recovery = o.Dir+"-1", testRecovered.Recovery
	if err := os.MkdirAll(memberDir(again.Dir), 0o700); err != nil { // of one that was killed
		t.Fatal(err)
	}
	other := again
	other.Cluster = "00000000000000c2"
	if err := Refound(t.Context(), other, saved, testRecovered); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("with the records of another cluster: %v", err)
	}
	if err := Refound(t.Context(), again, saved, testRecovered); err != nil {
		t.Fatal(err)
	}
	s2 := startServer(t, again)
	if s2.etcd.Server.Cluster().ID() == before {
		t.Error("its former members take it for the same etcd")
	}
	kv := dialled(t, s2.Endpoint())
	c2, err := Open(t.Context(), kv, testID, Options{})
	if err != nil || c2.Info().Recovery != testRecovered.Recovery {
		t.Fatalf("opened as %+v, %v", c2.Info(), err)
	}
	vols, err := c2.Volumes(t.Context())
	if err != nil || len(vols) != 1 || vols[0].Name != "vol1" {
		t.Errorf("%+v, %v", vols, err)
	}
	if is, err := c2.Recovered(t.Context()); err != nil || is.From != "snapshot "+path || is.Confirmed {
		t.Errorf("%+v, %v", is, err)
	}
}

// putAll writes more than a transaction takes, and every pair.
func TestPutAll(t *testing.T) {
	b := newBench(t, 0)
	var pairs []Pair
	for i := range 3000 {
		pairs = append(pairs, Pair{Key: fmt.Sprintf("%snodes/%05d", keyRoot, i), Value: []byte(strings.Repeat("x", i%1000))})
	}
	if err := putAll(t.Context(), b.kv, pairs); err != nil {
		t.Fatal(err)
	}
	got, _, err := b.kv.Range(t.Context(), keyRoot+"nodes/", 0)
	if err != nil || !slices.EqualFunc(got, pairs, func(a, b Pair) bool { return a.Key == b.Key && string(a.Value) == string(b.Value) }) {
		t.Errorf("%d pairs of %d, or others, %v", len(got), len(pairs), err)
	}
}

// What a member has in its log, others may have acknowledged with it, though it has
// not heard of that yet.
func TestCommitLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "wal")
	w, err := wal.Create(zap.NewNop(), dir, []byte("m"))
	if err != nil {
		t.Fatal(err)
	}
	at := func(n uint64) *uint64 { return &n }
	entries := []*raftpb.Entry{{Term: at(2), Index: at(1)}, {Term: at(2), Index: at(2)}, {Term: at(2), Index: at(3)}}
	if err := errors.Join(w.Save(&raftpb.HardState{Term: at(2), Vote: at(7), Commit: at(1)}, entries), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := commitLog(dir); err != nil {
		t.Fatal(err)
	}
	state, err := wal.Verify(zap.NewNop(), dir, &walpb.Snapshot{Index: at(0), Term: at(0)})
	if err != nil || state.GetCommit() != 3 || state.GetTerm() != 2 || state.GetVote() != 7 {
		t.Errorf("%v, %v", state, err)
	}
	if err := commitLog(t.TempDir()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("without a log: %v", err)
	}
}

// Of three voters one is left: its records are there, and its directory as it was.
func TestReadSurvivor(t *testing.T) {
	n1, n2, n3 := threeVoters(t)
	if _, err := n1.CreateVolume(t.Context(), VolumeSpec{Name: "vol1", Size: 4096}); err != nil {
		t.Fatal(err)
	}
	if pairs, _, err := n3.seat.Server().KV().Range(t.Context(), keyVolumes, 0); err != nil || len(pairs) != 1 { // by now there too
		t.Fatalf("%v, %v", pairs, err)
	}
	for _, n := range []*machine{n1, n2, n3} {
		n.kill()
	}
	before := mustRead(t, filepath.Join(memberDir(n3.opts.Dir), "snap", "db"))
	saved, err := ReadSurvivor(t.Context(), n3.opts, filepath.Join(t.TempDir(), "scratch"))
	if err != nil || saved.Info.ID != testID || saved.Volumes() != 1 {
		t.Fatalf("%+v, %v", saved, err)
	}
	if string(before) != string(mustRead(t, filepath.Join(memberDir(n3.opts.Dir), "snap", "db"))) {
		t.Error("its database has changed")
	}
	if _, err := ReadSurvivor(t.Context(), testServerOptions(t), t.TempDir()); !errors.Is(err, ErrNotFound) {
		t.Errorf("without a member: %v", err)
	}
}
