package volume_test

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"torus/ring"
	"torus/store"
	"torus/store/memstore"
	"torus/store/remote"
	"torus/volume"
)

// A volume over one store in this process and two behind connections: writes
// reach all of them, and go on without one that stops answering once that is recorded.
func TestFarCopies(t *testing.T) {
	ctx := t.Context()
	stores := map[ring.NodeID]store.Store{}
	disks := map[ring.NodeID]store.Store{}
	var last *remote.Server
	for id := ring.NodeID(1); id <= 3; id++ {
		disks[id] = memstore.NewDisk(nil).Open()
		if id == 1 {
			stores[id] = disks[id]
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := remote.NewServer(remote.ServerOptions{Store: disks[id], Cluster: "c", Node: uint64(id)})
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
		c := remote.NewClient(remote.ClientOptions{Addr: l.Addr().String(), Cluster: "c", Node: uint64(id), Timeout: 200 * time.Millisecond})
		t.Cleanup(func() { c.Close() })
		stores[id], last = c, s
	}
	all := []ring.NodeID{1, 2, 3}
	r := &farRecords{}
	v, err := volume.Open(ctx, volume.Options{
		ID: 1, Epoch: 1, Chain: []store.LayerID{7}, Size: 1 << 20, Stores: stores, MinCopies: 2, Clean: true, Records: r,
		Place: func(ring.ChunkIndex) []ring.NodeID { return all },
	})
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{5}, 3*4096)
	if _, err := v.WriteAt(want, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt([]byte{9}, 5000); err != nil { // an edge: read, merged, written
		t.Fatal(err)
	}
	want[5000-4096] = 9
	if err := v.Sync(); err != nil {
		t.Fatal(err)
	}
	for id, d := range disks {
		got := make([]byte, len(want))
		if err := d.ReadSealed(ctx, []store.LayerID{7}, 4096, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("node %v has other bytes (%v)", id, err)
		}
	}
	if err := last.Close(); err != nil {
		t.Fatal(err)
	}
	want[0] = 7
	if _, err := v.WriteAt(want, 4096); err != nil {
		t.Errorf("a write that node 3 does not answer: %v", err)
	}
	if !r.stale.Load() {
		t.Error("acknowledged, and not recorded that node 3 lacks it")
	}
	if err := v.Sync(); err != nil {
		t.Errorf("a flush after that: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Errorf("closed: %v", err)
	}
}

// farRecords take every record.
type farRecords struct{ stale atomic.Bool }

func (r *farRecords) Serving(context.Context, volume.Found) error { return nil }

func (r *farRecords) Stale(context.Context, ring.NodeID, string, map[store.LayerID]store.Version) error {
	r.stale.Store(true)
	return nil
}

func (r *farRecords) InSync(context.Context, ring.NodeID, volume.Copy, []store.LayerID) error {
	return nil
}

func (r *farRecords) MayJoin(context.Context, ring.NodeID) (bool, error) { return true, nil }
