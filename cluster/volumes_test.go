package cluster

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"torus/ring"
)

// wantErr checks what an error is and what it says.
func wantErr(t *testing.T, err, is error, text string) {
	t.Helper()
	if !errors.Is(err, is) || err.Error() != text {
		t.Errorf("got  %v\nwant %s (is %q: %v)", err, text, is, errors.Is(err, is))
	}
}

func TestCreateVolume(t *testing.T) {
	b := newBench(t, 3)
	v, err := b.CreateVolume(t.Context(), VolumeSpec{Name: "vol1", Size: 4096, Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	info, err := b.Volume(t.Context(), "vol1")
	if err != nil || info.Volume != v || info.Lineage.Replicas != 3 || info.Lineage.MinCopies != 2 || !info.Clean {
		t.Errorf("%+v, %v", info, err)
	}
	layer, err := b.Layer(t.Context(), v.Head)
	if err != nil || layer.Lineage != v.Lineage || layer.Parent != 0 || layer.Sealed || layer.Deleted {
		t.Errorf("%+v, %v", layer, err)
	}
	// The cluster's default of two copies; the same nodes and copies share a ring.
	second := b.create(t, "vol2", 0)
	third := b.create(t, "vol3", 2)
	i2, _ := b.Volume(t.Context(), "vol2")
	i3, _ := b.Volume(t.Context(), "vol3")
	if i2.Lineage.Replicas != 2 || i2.Lineage.Ring != i3.Lineage.Ring || i2.Lineage.Ring == info.Lineage.Ring {
		t.Errorf("rings %d, %d, %d", info.Lineage.Ring, i2.Lineage.Ring, i3.Lineage.Ring)
	}
	if second.ID == third.ID || second.Head == third.Head || second.Lineage == third.Lineage {
		t.Errorf("%+v and %+v share an ID", second, third)
	}
	b.register(t, 4)
	b.create(t, "vol4", 2)
	if i4, _ := b.Volume(t.Context(), "vol4"); i4.Lineage.Ring <= i3.Lineage.Ring {
		t.Errorf("ring %d with another node, after ring %d", i4.Lineage.Ring, i3.Lineage.Ring)
	}
	all, err := b.Volumes(t.Context())
	if err != nil || len(all) != 4 || all[0].Name != "vol1" || all[3].Name != "vol4" || all[0].Lineage.Replicas != 3 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestCreateVolumeRefused(t *testing.T) {
	b := newBench(t, 2)
	b.create(t, "vol1", 1)
	long := strings.Repeat("x", 64)
	for _, c := range []struct {
		spec VolumeSpec
		is   error
		text string
	}{
		{VolumeSpec{Name: "vol1", Size: 4096}, ErrExists, "volume vol1: exists already"},
		{VolumeSpec{Name: "Vol", Size: 4096}, ErrInvalid,
			`volume Vol: invalid: name "Vol": use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit`},
		{VolumeSpec{Name: "a/b", Size: 4096}, ErrInvalid,
			`volume a/b: invalid: name "a/b": use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit`},
		{VolumeSpec{Name: "", Size: 4096}, ErrInvalid,
			`volume "": invalid: name "": use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit`},
		{VolumeSpec{Name: long, Size: 4096}, ErrInvalid,
			"volume " + long + `: invalid: name "xxxxxxxxxxxxxxxxxxxx"… has 64 characters, at most 63 are allowed`},
		{VolumeSpec{Name: "v", Size: 0}, ErrInvalid, "volume v: invalid: size 0 is below the smallest, 4096 bytes"},
		{VolumeSpec{Name: "v", Size: 4095}, ErrInvalid, "volume v: invalid: size 4095 is below the smallest, 4096 bytes"},
		{VolumeSpec{Name: "v", Size: 4097}, ErrInvalid, "volume v: invalid: size 4097 is not a multiple of 4096"},
		{VolumeSpec{Name: "v", Size: 1<<50 + 4096}, ErrInvalid,
			"volume v: invalid: size 1125899906846720 is above the largest, 1125899906842624 bytes (1 PiB)"},
		{VolumeSpec{Name: "v", Size: 4096, Replicas: 17}, ErrInvalid, "volume v: invalid: replicas 17, allowed are 1 to 16"},
		{VolumeSpec{Name: "v", Size: 4096, Replicas: -1}, ErrInvalid, "volume v: invalid: replicas -1, allowed are 1 to 16"},
		{VolumeSpec{Name: "v", Size: 4096, Replicas: 2, MinCopies: 3}, ErrInvalid, "volume v: invalid: min-copies 3, allowed are 1 to 2"},
		{VolumeSpec{Name: "v", Size: 4096, Replicas: 3}, ErrTooFewNodes,
			`volume v: 3 replicas need 3 storage nodes, the cluster has 2: add one with "torus join 10.0.0.1:7480", or use --replicas 2`},
	} {
		_, err := b.CreateVolume(t.Context(), c.spec)
		wantErr(t, err, c.is, c.text)
	}
	all, err := b.Volumes(t.Context())
	if err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	for _, size := range []int64{4096, 1 << 50} {
		if _, err := b.CreateVolume(t.Context(), VolumeSpec{Name: fmt.Sprint("v", size), Size: size}); err != nil {
			t.Error(err)
		}
	}
	if err := CheckName("0" + strings.Repeat("._-", 20) + "az"); err != nil {
		t.Error(err)
	}
}

func TestCreateVolumeWithoutNodes(t *testing.T) {
	b := newBench(t, 0)
	_, err := b.CreateVolume(t.Context(), VolumeSpec{Name: "v", Size: 4096, Replicas: 1})
	wantErr(t, err, ErrTooFewNodes, `volume v: 1 replica needs 1 storage node, the cluster has 0: add one with "torus join PEER"`)
	witness := testNode(1)
	witness.Roles = []Role{RoleEtcd}
	draining := testNode(2)
	draining.State = NodeDraining
	for _, n := range []Node{witness, draining} {
		if err := b.RegisterNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	_, err = b.CreateVolume(t.Context(), VolumeSpec{Name: "v", Size: 4096, Replicas: 1})
	wantErr(t, err, ErrTooFewNodes, `volume v: 1 replica needs 1 storage node, the cluster has 0: add one with "torus join 10.0.0.1:7480"`)
}

func TestRenameVolume(t *testing.T) {
	b := newBench(t, 1)
	v := b.create(t, "vol1", 1)
	b.create(t, "vol2", 1)
	a := b.attach(t, "vol1", holder(1))
	wantErr(t, b.RenameVolume(t.Context(), "vol1", "vol2"), ErrExists, "volume vol2: exists already")
	wantErr(t, b.RenameVolume(t.Context(), "none", "vol3"), ErrNotFound, "volume none: not found")
	wantErr(t, b.RenameVolume(t.Context(), "none", "none"), ErrNotFound, "volume none: not found")
	if err := b.RenameVolume(t.Context(), "vol1", "X"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if err := b.RenameVolume(t.Context(), "vol1", "vol1"); err != nil {
		t.Error(err)
	}
	// Attached volumes may be renamed, and the attachment goes on.
	if err := b.RenameVolume(t.Context(), "vol1", "new"); err != nil {
		t.Fatal(err)
	}
	_, err := b.Volume(t.Context(), "vol1")
	wantErr(t, err, ErrNotFound, "volume vol1: not found")
	b.create(t, "vol1", 1) // the old name is free
	if err := a.Serving(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	info, err := b.Volume(t.Context(), "new")
	if err != nil || info.ID != v.ID || info.Clean || info.Attached == nil {
		t.Errorf("%+v, %v", info, err)
	}
	if err := b.RenameVolume(t.Context(), "new", "newer"); err != nil {
		t.Fatal(err)
	}
	if err := a.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if info, err := b.Volume(t.Context(), "newer"); err != nil || !info.Clean || info.Attached != nil {
		t.Errorf("%+v, %v", info, err)
	}
}

// A deleted volume's layer stays on record until every node that may have had
// it has confirmed the drop (I8).
func TestDeleteVolume(t *testing.T) {
	b := newBench(t, 2)
	v := b.create(t, "vol1", 2)
	a := b.attach(t, "vol1", holder(1))
	err := b.DeleteVolume(t.Context(), "vol1")
	wantErr(t, err, ErrBusy, "volume vol1: attached by node n1 (process 1)")
	var busy *BusyError
	if !errors.As(err, &busy) || busy.Holder != holder(1) || busy.Epoch != 1 || busy.Volume != "vol1" {
		t.Errorf("%+v", busy)
	}
	// Node 9 had the volume in an earlier ring; node 8 had, and was removed.
	b.register(t, 9)
	if err := a.Serving(t.Context(), []Incarnation{{Node: 9, Identity: 1, Incarnation: 2}, {Node: 8, Identity: 1, Incarnation: 2}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Detach(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.ConfirmDrop(t.Context(), v.Head, 1), ErrInvalid,
		fmt.Sprintf("layer %v: invalid: node 0000000000000001 confirms the drop of a layer that is not deleted", v.Head))
	if err := b.DeleteVolume(t.Context(), "vol1"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.DeleteVolume(t.Context(), "vol1"), ErrNotFound, "volume vol1: not found")
	if err := b.DeleteVolume(t.Context(), "../x"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	b.create(t, "vol1", 2) // the name is free at once

	for _, node := range []ring.NodeID{1, 2, 9} {
		dropped, err := b.DroppedLayers(t.Context(), node)
		if err != nil || len(dropped) != 1 || dropped[0].ID != v.Head || dropped[0].Forget != v.ID {
			t.Fatalf("node %v: %+v, %v", node, dropped, err)
		}
		for range 2 {
			if err := b.ConfirmDrop(t.Context(), v.Head, node); err != nil {
				t.Fatal(err)
			}
		}
		if dropped, err := b.DroppedLayers(t.Context(), node); err != nil || len(dropped) != 0 {
			t.Fatalf("node %v, confirmed: %+v, %v", node, dropped, err)
		}
	}
	_, err = b.Layer(t.Context(), v.Head)
	wantErr(t, err, ErrNotFound, "layer "+v.Head.String()+": not found")
	pairs, _, err := b.kv.Range(t.Context(), keyIncarnations, 0)
	if err != nil || len(pairs) != 0 {
		t.Errorf("incarnations left: %v, %v", pairs, err)
	}
	var l lineageRecord
	if found, err := b.read(t.Context(), idKey(keyLineages, v.Lineage), 0, &l); !found || err != nil || l.Epoch != 1 {
		t.Errorf("the epoch counter: %+v, %v, %v", l, found, err)
	}
}

func TestRegisterNode(t *testing.T) {
	b := newBench(t, 2)
	n := testNode(1)
	n.Zone = "rack1"
	for range 2 {
		if err := b.RegisterNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	p := b.Announce(1)
	if err := p.Renew(t.Context(), Usage{Used: 10, Live: 5}); err != nil {
		t.Fatal(err)
	}
	nodes, err := b.Nodes(t.Context())
	if err != nil || len(nodes) != 2 || !nodes[0].Alive || nodes[0].Usage.Used != 10 || nodes[1].Alive ||
		nodes[0].Zone != "rack1" || nodes[1].Name != "n2" || nodes[0].State != NodeActive {
		t.Errorf("%+v, %v", nodes, err)
	}
	one, err := b.Node(t.Context(), "n2")
	if err != nil || one.ID != 2 {
		t.Errorf("%+v, %v", one, err)
	}
	_, err = b.Node(t.Context(), "n9")
	wantErr(t, err, ErrNotFound, "node n9: not found")

	same := testNode(3)
	same.Name = "n2"
	wantErr(t, b.RegisterNode(t.Context(), same), ErrExists,
		"node n2: exists already: the name belongs to node 0000000000000002; choose another with --name")
	for text, change := range map[string]func(*Node){
		"node n1: invalid: no ID":                                        func(n *Node) { n.ID = 0 },
		"node n1: invalid: no roles":                                     func(n *Node) { n.Roles = nil },
		"node n1: invalid: capacity -1":                                  func(n *Node) { n.Capacity = -1 },
		`node n1: invalid: state "asleep"`:                               func(n *Node) { n.State = "asleep" },
		`node n1: invalid: role "cook": there are etcd, storage and nbd`: func(n *Node) { n.Roles = []Role{"cook"} },
	} {
		bad := testNode(1)
		change(&bad)
		wantErr(t, b.RegisterNode(t.Context(), bad), ErrInvalid, text)
	}
}

func TestPresence(t *testing.T) {
	b := newBench(t, 1)
	p := b.Announce(1)
	alive := func() (bool, Usage, Revision) {
		t.Helper()
		nodes, err := b.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pair, _, err := b.kv.Get(t.Context(), idKey(keyAlive, ring.NodeID(1)), 0)
		if err != nil {
			t.Fatal(err)
		}
		return nodes[0].Alive, nodes[0].Usage, pair.Mod
	}
	renew := func(u Usage) {
		t.Helper()
		if err := p.Renew(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	if ok, _, _ := alive(); ok {
		t.Error("alive before the first sign")
	}
	renew(Usage{Used: 1})
	_, _, first := alive()
	for range 5 { // 15 s in all: longer than the lease; too little change to be written
		b.pass(presenceTTL / 3)
		renew(Usage{Used: 2})
	}
	if ok, u, mod := alive(); !ok || u.Used != 1 || mod != first {
		t.Errorf("%v, %+v, written at %d, first at %d", ok, u, mod, first)
	}
	renew(Usage{Used: 2, NoSpace: true})
	if _, u, _ := alive(); !u.NoSpace {
		t.Error("a full disk is not told at once")
	}
	for range 10 {
		b.pass(presenceTTL / 3)
		renew(Usage{Used: 3, NoSpace: true})
	}
	if _, u, _ := alive(); u.Used != 3 {
		t.Errorf("a small change is never told: %+v", u)
	}
	b.pass(presenceTTL)
	if ok, _, _ := alive(); ok {
		t.Error("alive without a sign")
	}
	renew(Usage{Used: 4})
	if ok, u, _ := alive(); !ok || u.Used != 4 {
		t.Errorf("not back: %v, %+v", ok, u)
	}
	for range 2 {
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if ok, _, _ := alive(); ok {
		t.Error("alive after Close")
	}
}

func TestFoundAndOpen(t *testing.T) {
	b := newBench(t, 0)
	if b.Info().ID != testID || b.Info().Replicas != 2 {
		t.Errorf("%+v", b.Info())
	}
	again, err := Found(t.Context(), b.kv, Founding{ID: testID, Replicas: 3}, b.options())
	if err != nil || again.Info() != b.Info() {
		t.Errorf("%+v, %v", again.Info(), err)
	}
	_, err = Found(t.Context(), b.kv, Founding{ID: "00000000000000c2", Replicas: 3}, b.options())
	wantErr(t, err, ErrOtherCluster, "found cluster 00000000000000c2: the records are those of another cluster: 00000000000000c1")
	_, err = Open(t.Context(), b.kv, "00000000000000c2", b.options())
	wantErr(t, err, ErrOtherCluster, "open cluster 00000000000000c2: the records are those of another cluster: 00000000000000c1")
	for _, want := range []ID{"", testID} {
		if c, err := Open(t.Context(), b.kv, want, b.options()); err != nil || c.Info() != b.Info() {
			t.Error(err)
		}
	}
	empty := NewMemory(b.clock.read)
	_, err = Open(t.Context(), empty, "", b.options())
	wantErr(t, err, ErrNotFound, "open cluster: record /torus/cluster: not found: no cluster was founded here")
	_, err = Found(t.Context(), empty, Founding{ID: "x", Replicas: 1}, b.options())
	wantErr(t, err, ErrInvalid, `found cluster: invalid: cluster "x" is not an ID of 16 hexadecimal digits`)
	_, err = Found(t.Context(), empty, Founding{Replicas: 0}, b.options())
	wantErr(t, err, ErrInvalid, `found cluster: invalid: replicas 0, allowed are 1 to 16`)
	drawn, err := Found(t.Context(), empty, Founding{Replicas: 1}, b.options())
	if err != nil || drawn.Info().ID.check() != nil {
		t.Errorf("%+v, %v", drawn.Info(), err)
	}
}

// A record of a newer format, or one that can't be understood, is refused by name.
func TestRecordsRefused(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	for _, c := range []struct {
		value, text string
		is          error
	}{
		{`{"format":2,"id":"x"}`, "record /torus/volumes/vol1: unknown format: format 2, this program knows up to 1: it is too old", ErrFormat},
		{`{"format":0}`, "record /torus/volumes/vol1: corrupt record: format 0", ErrCorrupt},
		{`nonsense`, "record /torus/volumes/vol1: corrupt record: invalid character 'o' in literal null (expecting 'u')", ErrCorrupt},
		{`{"format":1,"colour":"red"}`, `record /torus/volumes/vol1: corrupt record: json: unknown field "colour"`, ErrCorrupt},
		{`{"format":1}`, "record /torus/volumes/vol1: corrupt record: id 0000000000000000, lineage 0000000000000000, head 0000000000000000: none may be 0", ErrCorrupt},
		{`{"format":1,"id":"1"}`, `record /torus/volumes/vol1: corrupt record: "1" is not an ID of 16 hexadecimal digits`, ErrCorrupt},
	} {
		mustCommit(t, b.kv, put(keyVolumes+"vol1", c.value))
		_, err := b.Volume(t.Context(), "vol1")
		wantErr(t, err, c.is, c.text)
		_, err = b.Volumes(t.Context())
		wantErr(t, err, c.is, c.text)
		_, err = b.Attach(t.Context(), "vol1", holder(1), AttachOptions{})
		wantErr(t, err, c.is, c.text)
		wantErr(t, b.DeleteVolume(t.Context(), "vol1"), c.is, c.text)
	}
	mustCommit(t, b.kv, put(keyCluster, `{"format":7}`))
	_, err := Open(t.Context(), b.kv, "", b.options())
	wantErr(t, err, ErrFormat, "open cluster: record /torus/cluster: unknown format: format 7, this program knows up to 1: it is too old")
	mustCommit(t, b.kv, put(keyNodes+"n1", `{"format":1}`))
	_, err = b.Nodes(t.Context())
	wantErr(t, err, ErrCorrupt, `record /torus/nodes/n1: corrupt record: key: "n1" is not an ID of 16 hexadecimal digits`)
}
