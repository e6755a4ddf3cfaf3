package node

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"torus/cluster"
	"torus/ring"
	"torus/store"
	"torus/volume"
)

// TestToRepair: each volume has one node whose turn is first, the others come if
// that one does not.
func TestToRepair(t *testing.T) {
	nodes := []cluster.NodeInfo{
		{Node: cluster.Node{ID: 1, Roles: []cluster.Role{cluster.RoleStorage}}, Alive: true},
		{Node: cluster.Node{ID: 2, Roles: []cluster.Role{cluster.RoleStorage}}, Alive: true},
		{Node: cluster.Node{ID: 3, Roles: []cluster.Role{cluster.RoleStorage}}},
		{Node: cluster.Node{ID: 4, Roles: []cluster.Role{cluster.RoleEtcd}}, Alive: true},
		{Node: cluster.Node{ID: 5, Roles: []cluster.Role{cluster.RoleStorage}}, Alive: true, Stopping: true},
	}
	stale := func(id ring.NodeID) []cluster.Stale { return []cluster.Stale{{Node: id}} }
	m, begun := maintenance{needed: needsRepair, grace: repairTurn}, time.Now()
	for _, c := range []struct {
		what  string
		v     cluster.VolumeInfo
		needs bool
	}{
		{"a copy lacks writes", cluster.VolumeInfo{Volume: cluster.Volume{Clean: true}, Stale: stale(2)}, true},
		{"its node does not answer", cluster.VolumeInfo{Volume: cluster.Volume{Clean: true}, Stale: stale(3)}, false},
		{"its node stops", cluster.VolumeInfo{Volume: cluster.Volume{Clean: true}, Stale: stale(5)}, false},
		{"somebody has it", cluster.VolumeInfo{Attached: &cluster.Attached{}, Stale: stale(2)}, false},
		{"its holder is gone", cluster.VolumeInfo{}, true},
		{"all is well", cluster.VolumeInfo{Volume: cluster.Volume{Clean: true}}, false},
	} {
		c.v.ID = 7
		first := 0
		for _, self := range []ring.NodeID{1, 2} {
			since := map[store.VolumeID]time.Time{}
			due := func(after time.Duration) bool {
				return len(m.inTurn([]cluster.VolumeInfo{c.v}, nodes, self, since, begun.Add(after))) == 1
			}
			if due(0) || due(repairTurn-1) {
				t.Errorf("%s: repaired at once", c.what)
			}
			if due(repairTurn) {
				first++
			}
			if late := due(2 * repairTurn); late != c.needs {
				t.Errorf("%s: node %v repairs it in the end: %v, want %v", c.what, self, late, c.needs)
			}
			m.inTurn(nil, nodes, self, since, begun)
			if len(since) != 0 {
				t.Errorf("%s: it is still thought of", c.what)
			}
		}
		if want := map[bool]int{true: 1}[c.needs]; first != want {
			t.Errorf("%s: %d nodes come first, want %d", c.what, first, want)
		}
	}
}

// TestMayCatchUp: a repair goes on only for copies on nodes that live.
func TestMayCatchUp(t *testing.T) {
	live := map[ring.NodeID]bool{1: true, 2: true}
	for _, c := range []struct {
		states string // of the copies on nodes 1, 2, 3
		want   bool
	}{{"in sync,in sync,away", false}, {"in sync,away,in sync", true}, {"in sync,catching,away", true}, {"in sync,in sync,in sync", false}} {
		var all []volume.CopyStatus
		for i, state := range strings.Split(c.states, ",") {
			all = append(all, volume.CopyStatus{Node: ring.NodeID(i + 1), State: state})
		}
		if got := mayCatchUp(all, copiesOf{}, live); got != c.want {
			t.Errorf("%s: %v", c.states, got)
		}
	}
}

// TestRepairGivesWay: a volume that is being repaired here is a client's in a
// moment, and not taken from the repair before that has ended.
func TestRepairGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := newTestNode(t)
		n.startRepairs()
		defer func() { n.closers[0].close() }()
		v := info(t, n, "vol1")
		ended := make(chan struct{})
		n.repairs.begin(v.Volume, func() { close(ended) })
		a, err := n.attach(t.Context(), "vol1", cluster.AttachOptions{Purpose: cluster.ForMaintenance}, nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			<-ended
			if err := n.end(a); err != nil {
				t.Error(err)
			}
			n.repairs.end(v.ID)
		}()
		begun := time.Now()
		_, release := mustOpen(t, n, "vol1")
		if took := time.Since(begun); took > time.Second {
			t.Errorf("it took %v", took)
		}
		release()
	})
}
