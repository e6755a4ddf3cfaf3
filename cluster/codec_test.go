package cluster

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"torus/ring"
	"torus/store"
)

// newRecords returns an empty record of each kind.
func newRecords() []record {
	return []record{
		&infoRecord{}, &nodeRecord{}, &aliveRecord{}, &ringRecord{}, &lineageRecord{},
		&volumeRecord{}, &layerRecord{}, &attachedRecord{}, &incarnationRecord{},
		&staleRecord{}, &reportRecord{},
		&scrubRecord{}, &scrubEveryRecord{}, &lossRecord{},
		&recoveryRecord{}, &uncomparedRecord{},
		&stoppingRecord{}, &stopRecord{}, &wantedRecord{}, &limitsRecord{}, &placedRecord{},
	}
}

// What a record looks like to an operator, and that it comes back as it was.
func TestRecordsAsStored(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	testRing := newTestRing(t, 1, 1, 2)
	ringText, err := json.Marshal(testRing)
	if err != nil {
		t.Fatal(err)
	}
	ringJSON := string(ringText) // package ring's tests look at it
	for i, c := range []struct {
		r    record
		want string
	}{
		{&infoRecord{ID: testID, Created: at, Replicas: 2}, `{"format":1,"id":"00000000000000c1","created":"2026-01-02T03:04:05Z","replicas":2}`},
		{newNodeRecord(Node{Name: "n1", Addresses: Addresses{API: "127.0.0.1:7480"}, Zone: "z", Host: "h",
			Roles: []Role{RoleEtcd}, Capacity: 7, Identity: 0xab, State: NodeActive}),
			`{"format":1,"name":"n1","addresses":{"api":"127.0.0.1:7480"},"zone":"z","host":"h","roles":["etcd"],"capacity":7,"identity":"00000000000000ab","state":"active"}`},
		{newAliveRecord(Usage{Used: 1, Live: 2, Corrupt: 3, NoSpace: true, Failed: "x"}),
			`{"format":1,"used":1,"live":2,"corrupt":3,"no_space":true,"failed":"x"}`},
		{newRingRecord(Ring{1, testRing}), `{"format":1,"ring":` + ringJSON + `}`},
		{newLineageRecord(Lineage{Replicas: 2, MinCopies: 1, Epoch: 9, Ring: 1, Target: 2}),
			`{"format":1,"replicas":2,"min_copies":1,"epoch":9,"ring":"0000000000000001","target":"0000000000000002"}`},
		{newVolumeRecord(Volume{ID: 1, Size: 4096, Lineage: 2, Head: 3, Clean: true, Epoch: 4, Created: at}),
			`{"format":1,"id":"0000000000000001","size":4096,"lineage":"0000000000000002","head":"0000000000000003","clean":true,"epoch":4,"created":"2026-01-02T03:04:05Z"}`},
		{newLayerRecord(Layer{Lineage: 1, Parent: 2, Sealed: true, Deleted: true, Forget: 3, Pending: []ring.NodeID{4}}),
			`{"format":1,"lineage":"0000000000000001","parent":"0000000000000002","sealed":true,"deleted":true,"forget":"0000000000000003","pending":["0000000000000004"]}`},
		{newAttachedRecord(Attached{Epoch: 1, Holder: holder(1), Purpose: ForExport, Since: at}),
			`{"format":1,"epoch":1,"holder":{"node":"0000000000000001","name":"n1","boot_id":"boot","pid_namespace":"pid:[1]","pid":1,"start_time":7},"purpose":"export","since":"2026-01-02T03:04:05Z"}`},
		{newIncarnationRecord(Incarnation{Identity: 1, Incarnation: 2}), `{"format":1,"identity":"0000000000000001","incarnation":"0000000000000002"}`},
		{newStaleRecord(Stale{Since: store.NewVersion(3, 17), Epoch: 4, At: at, Why: "no answer"}),
			`{"format":1,"since":"3.17","epoch":4,"at":"2026-01-02T03:04:05Z","why":"no answer"}`},
		{newReportRecord(Report{Waiting: "for n2", At: at, Copies: []CopyReport{{Node: 2, State: "away", Why: "w", Since: at, Done: 1, Total: 2, Left: time.Minute}}}),
			`{"format":1,"waiting":"for n2","copies":[{"node":"0000000000000002","state":"away","why":"w","since":"2026-01-02T03:04:05Z","done":1,"total":2,"left":60}],"at":"2026-01-02T03:04:05Z"}`},
		{newScrubRecord(Scrub{Asked: 3, Answered: 2, Began: at, Idle: true, Done: 4096, Total: 8192, Bytes: 5, Corrupt: 6, Unlike: 7, Lost: 8}),
			`{"format":1,"asked":3,"answered":2,"began":"2026-01-02T03:04:05Z","ended":"0001-01-01T00:00:00Z","idle":true,"done":4096,"total":8192,"bytes":5,"corrupt":6,"unlike":7,"lost":8}`},
		{&scrubEveryRecord{Seconds: 60}, `{"format":1,"seconds":60}`},
		{&lossRecord{Epoch: 4, At: at}, `{"format":1,"epoch":4,"at":"2026-01-02T03:04:05Z"}`},
		{newRecoveryRecord(Recovered{Recovery: Recovery{1, 0xab}, At: at, Node: "n1", From: "a file", Confirmed: true}),
			`{"format":1,"recovery":"1-00000000000000ab","at":"2026-01-02T03:04:05Z","node":"n1","from":"a file","confirmed":true}`},
		{&uncomparedRecord{Served: true}, `{"format":1,"served":true}`},
		{&stoppingRecord{At: at}, `{"format":1,"at":"2026-01-02T03:04:05Z"}`},
		{&stopRecord{By: "process 7", At: at}, `{"format":1,"by":"process 7","at":"2026-01-02T03:04:05Z"}`},
		{&wantedRecord{Holder: newHolderRecord(holder(1)), At: at},
			`{"format":1,"holder":{"node":"0000000000000001","name":"n1","boot_id":"boot","pid_namespace":"pid:[1]","pid":1,"start_time":7},"at":"2026-01-02T03:04:05Z"}`},
		{newLimitsRecord(Limits{RepairRate: 50 << 20, AwayAfter: time.Hour}), `{"format":1,"repair_rate":52428800,"away_after":3600}`},
		{&placedRecord{Epoch: 4, Ring: 1, Target: 2}, `{"format":1,"epoch":4,"ring":"0000000000000001","target":"0000000000000002"}`},
	} {
		if got := string(encode(c.r)); got != c.want {
			t.Errorf("stored as %s\nwant      %s", got, c.want)
		}
		back := newRecords()[i]
		if err := decode("k", []byte(c.want), back); err != nil || !reflect.DeepEqual(back, c.r) {
			t.Errorf("%s comes back as %+v, %v", c.want, back, err)
		}
	}
}

// newTestRing returns a ring over the nodes.
func newTestRing(t *testing.T, copies int, nodes ...ring.NodeID) *ring.Ring {
	t.Helper()
	var members []ring.Member
	for _, id := range nodes {
		members = append(members, ring.Member{ID: id, Weight: 1 << 30})
	}
	r, err := ring.New(copies, members, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRecordsChecked(t *testing.T) {
	for _, bad := range []string{
		`{"format":1,"lineage":"0000000000000001","parent":"0000000000000000","sealed":false,"deleted":false,"forget":"0000000000000003"}`,
		`{"format":1,"lineage":"0000000000000001","parent":"0000000000000000","sealed":false,"deleted":true,"forget":"0000000000000000","pending":["0000000000000002","0000000000000001"]}`,
		`{"format":1,"lineage":"00000000000000AB","parent":"0000000000000000","sealed":false,"deleted":false,"forget":"0000000000000000"}`,
	} {
		if err := decode("k", []byte(bad), &layerRecord{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, bad := range []string{
		`{"format":1,"replicas":2,"min_copies":3,"epoch":9,"ring":"0000000000000001"}`,
		`{"format":1,"replicas":2,"min_copies":1,"epoch":16777216,"ring":"0000000000000001"}`,
		`{"format":1,"replicas":2,"min_copies":1,"epoch":9,"ring":"0000000000000001","target":"0000000000000000"} {}`,
		`{"format":1,"replicas":2,"min_copies":1,"epoch":9,"ring":"0000000000000001","target":"0000000000000001"}`,
	} {
		if err := decode("k", []byte(bad), &lineageRecord{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, since := range []string{"", "3", "3.", ".17", "3.017", "16777216.0", "0.1099511627776", "3.17.1", "+3.17"} {
		bad := `{"format":1,"since":"` + since + `","epoch":4,"at":"2026-01-02T03:04:05Z","why":""}`
		if err := decode("k", []byte(bad), &staleRecord{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := decode("k", []byte(`{"format":1,"repair_rate":-1}`), &limitsRecord{}); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	if err := decode("k", []byte(`{"format":1}`), &ringRecord{}); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

// Whatever stands in a record, decoding returns it or a typed error; what it
// returns is encoded to something that decodes to the same.
func FuzzDecodeRecord(f *testing.F) {
	for i, r := range newRecords() {
		f.Add(uint8(i), encode(r))
	}
	f.Add(uint8(1), encode(newNodeRecord(testNode(1))))
	f.Add(uint8(5), encode(newVolumeRecord(Volume{ID: 1, Size: 4096, Lineage: 2, Head: 3})))
	f.Add(uint8(6), encode(newLayerRecord(Layer{Lineage: 1, Deleted: true, Pending: []ring.NodeID{4}})))
	f.Add(uint8(7), encode(newAttachedRecord(Attached{Epoch: 1, Purpose: ForExport})))
	f.Add(uint8(9), encode(newStaleRecord(Stale{Since: store.NewVersion(3, 17), Epoch: 4})))
	f.Add(uint8(10), encode(newReportRecord(Report{Copies: []CopyReport{{Node: 2}}})))
	f.Add(uint8(14), encode(newRecoveryRecord(Recovered{Recovery: Recovery{1, 0xab}})))
	f.Add(uint8(18), encode(&wantedRecord{Holder: newHolderRecord(holder(1))}))
	f.Add(uint8(19), encode(&limitsRecord{RepairRate: 1}))
	f.Add(uint8(0), []byte(`{"format":2}`))
	f.Fuzz(func(t *testing.T, kind uint8, value []byte) {
		i := int(kind) % len(newRecords())
		r := newRecords()[i]
		if err := decode("key", value, r); err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Errorf("error without a type: %v", err)
			}
			return
		}
		again := newRecords()[i]
		if err := decode("key", encode(r), again); err != nil || !equalRecords(r, again) {
			a, _ := json.Marshal(r)
			t.Errorf("%s becomes %s, %v", a, encode(again), err)
		}
	})
}
