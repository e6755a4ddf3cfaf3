package cli

import (
	"reflect"
	"testing"
	"time"

	"torus/cluster"
	"torus/node"
	"torus/ring"
)

// What people read of a volume whose copies are not all in sync.
func TestDegraded(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	nodes := []cluster.NodeInfo{
		{Node: cluster.Node{ID: 1, Name: "n1"}, Alive: true},
		{Node: cluster.Node{ID: 2, Name: "n2"}, Alive: true},
		{Node: cluster.Node{ID: 3, Name: "n3"}},
	}
	held := &cluster.Attached{Holder: cluster.Holder{Node: 1, Name: "n1", Process: cluster.Process{PID: 7}}}
	report := func(waiting string, c cluster.CopyReport) *cluster.Report {
		return &cluster.Report{Waiting: waiting, Copies: []cluster.CopyReport{{Node: 1, State: cluster.CopyInSync}, c}}
	}
	for _, c := range []struct {
		name     string
		v        cluster.VolumeInfo
		state    string
		problems []string
	}{
		{"well", cluster.VolumeInfo{Attached: held, Report: report("", cluster.CopyReport{Node: 2, State: cluster.CopyInSync})},
			"attached by node n1 (process 7)", nil},
		{"away", cluster.VolumeInfo{Attached: held, Report: report("", cluster.CopyReport{Node: 3, State: "away", Why: "no answer", Since: at})},
			"attached by node n1 (process 7), 1 node lacks writes",
			[]string{`volume vol1: node n3 lacks writes since 2026-01-02T03:04:05Z: start it with "torus start"`}},
		{"waiting", cluster.VolumeInfo{Attached: held, Report: report("2 copies in sync, node "+ring.NodeID(3).String(), cluster.CopyReport{Node: 2, State: "away", Why: "disk full", Since: at})},
			"attached by node n1 (process 7), 1 node lacks writes, requests wait",
			[]string{"volume vol1: requests wait for 2 copies in sync, node n3: start the nodes that do not answer",
				"volume vol1: node n2 lacks writes: disk full"}},
		{"resync", cluster.VolumeInfo{Attached: held, Report: report("", cluster.CopyReport{Node: 2, State: "catching", Done: 1 << 20, Total: 4 << 20, Left: 90 * time.Second})},
			"attached by node n1 (process 7), 1 node lacks writes, resync 25%",
			[]string{"volume vol1: node n2 is brought up to date, 25%, 1 MiB of 4 MiB, 1m30s left"}},
		{"recorded", cluster.VolumeInfo{Volume: cluster.Volume{Clean: true}, Stale: []cluster.Stale{{Node: 2, Why: "no answer", At: at}}},
			"not attached, 1 node lacks writes",
			[]string{"volume vol1: node n2 lacks writes: it is brought up to date soon, or when the volume is attached"}},
		{"pages lost", cluster.VolumeInfo{Volume: cluster.Volume{Clean: true}, Scrub: cluster.Scrub{Lost: 2}}, "not attached",
			[]string{`volume vol1 has 2 pages of which no copy is whole: restore them from a backup, then run "torus scrub vol1"`}},
		{"writes lost", cluster.VolumeInfo{Volume: cluster.Volume{Clean: true, Epoch: 7}, Loss: &cluster.Loss{Epoch: 7, At: at}}, "not attached",
			[]string{"volume vol1: what was written before 2026-01-02T03:04:05Z and not flushed may be gone: no node had all of it any more"}},
		{"writes lost before", cluster.VolumeInfo{Volume: cluster.Volume{Clean: true, Epoch: 8}, Loss: &cluster.Loss{Epoch: 7, At: at}}, "not attached", nil},
	} {
		c.v.Name = "vol1"
		view := newVolumeView(c.v, node.About{})
		if got := view.state(); got != c.state {
			t.Errorf("%s: state %q", c.name, got)
		}
		if got := view.problems(nodes); !reflect.DeepEqual(got, c.problems) {
			t.Errorf("%s: problems %q", c.name, got)
		}
	}
}
