package node

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"torus/cluster"
	"torus/nbd"
	"torus/ring"
	"torus/store"
	"torus/store/memstore"
)

// newTestNode returns a node without listeners: records and pages in memory,
// with the volumes vol1 and vol2, and real exports.
func newTestNode(t *testing.T) (*Node, *cluster.Memory) {
	t.Helper()
	ctx := t.Context()
	kv := cluster.NewMemory(nil)
	c, err := cluster.Found(ctx, kv, cluster.Founding{Replicas: 1}, cluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	process, err := cluster.ThisProcess()
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{
		scrubs:   newScrubs(),
		repairs:  newRepairs(),
		settings: New(Settings{Name: "n1"}), log: slog.New(slog.DiscardHandler), process: process,
		cluster: c, store: memstore.New(), failed: make(chan struct{}),
	}
	n.exports = newExports(n, nil)
	register(t, n)
	for _, name := range []string{"vol1", "vol2"} {
		if _, err := c.CreateVolume(ctx, cluster.VolumeSpec{Name: name, Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		n.exports.close()
		if err := errors.Join(n.store.Close(), kv.Close()); err != nil {
			t.Error(err)
		}
	})
	return n, kv
}

// register writes the node's record.
func register(t *testing.T, n *Node) {
	t.Helper()
	st, err := n.store.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = n.cluster.RegisterNode(t.Context(), cluster.Node{
		ID: n.settings.ID, Name: n.settings.Name, Roles: n.settings.Roles, Identity: st.Identity,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// mustOpen opens a volume as a client does.
func mustOpen(t *testing.T, n *Node, name string) (nbd.Device, func()) {
	t.Helper()
	d, release, err := n.exports.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return d, release
}

// info returns a volume's record.
func info(t *testing.T, n *Node, name string) cluster.VolumeInfo {
	t.Helper()
	v, err := n.cluster.Volume(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestListAndInfoAttachNothing(t *testing.T) {
	n, _ := newTestNode(t)
	list, err := n.exports.List(t.Context())
	if err != nil || len(list) != 2 || list[0].Name != "vol1" || list[1].Size != 1<<20 {
		t.Fatalf("List: %+v, %v", list, err)
	}
	if e, err := n.exports.Info(t.Context(), "vol2"); err != nil || e.Size != 1<<20 || e.Name != "vol2" {
		t.Fatalf("Info: %+v, %v", e, err)
	}
	for _, name := range []string{"nope", "", "Not a name", "../vol1"} {
		if _, err := n.exports.Info(t.Context(), name); !errors.Is(err, nbd.ErrNotFound) {
			t.Errorf("Info(%q): %v, want ErrNotFound", name, err)
		}
	}
	if a := info(t, n, "vol1").Attached; a != nil {
		t.Errorf("attached by %v", a.Holder)
	}
}

// TestShare: clients share one attachment, and what one wrote the other reads.
func TestShare(t *testing.T) {
	n, _ := newTestNode(t)
	devices := make([]nbd.Device, 8)
	var wg sync.WaitGroup
	for i := range devices {
		wg.Go(func() {
			var err error
			if devices[i], _, err = n.exports.Open(t.Context(), "vol1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, d := range devices[1:] {
		if d != devices[0] {
			t.Fatal("two clients have two devices")
		}
	}
	if v := info(t, n, "vol1"); v.Attached == nil || v.Attached.Holder.Name != "n1" || v.Epoch != 1 || v.Clean {
		t.Errorf("attached: %+v, epoch %v, clean %v", v.Attached, v.Epoch, v.Clean)
	}
	if _, err := devices[0].WriteAt([]byte("hello"), 1000); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	if _, err := devices[7].ReadAt(p, 1000); err != nil || string(p) != "hello" {
		t.Errorf("read %q, %v", p, err)
	}
}

// TestLinger: a volume stays attached 10 s after its last client, no less if
// another comes meanwhile, and is then detached clean.
func TestLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := newTestNode(t)
		d, release := mustOpen(t, n, "vol1")
		release()
		time.Sleep(lingering - time.Second)
		again, release := mustOpen(t, n, "vol1")
		if again != d {
			t.Error("attached anew while lingering")
		}
		time.Sleep(2 * lingering)
		synctest.Wait()
		if info(t, n, "vol1").Attached == nil {
			t.Fatal("detached with a client")
		}
		release()
		release() // the second counts for nothing
		time.Sleep(lingering - time.Second)
		if info(t, n, "vol1").Attached == nil {
			t.Error("detached too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if v := info(t, n, "vol1"); v.Attached != nil || !v.Clean {
			t.Errorf("after lingering: attached %v, clean %v", v.Attached, v.Clean)
		}
		if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, nbd.ErrShutdown) {
			t.Errorf("a read after that: %v", err)
		}
		d, _ = mustOpen(t, n, "vol1")
		if v := info(t, n, "vol1"); v.Epoch != 2 || d == again {
			t.Errorf("opened anew under epoch %v", v.Epoch)
		}
	})
}

// TestCloseDetaches: stopping ends what is open, clean, and refuses what comes.
func TestCloseDetaches(t *testing.T) {
	n, _ := newTestNode(t)
	d, release := mustOpen(t, n, "vol1")
	if _, err := d.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	release()
	mustOpen(t, n, "vol2")
	n.exports.close()
	for _, name := range []string{"vol1", "vol2"} {
		if v := info(t, n, name); v.Attached != nil || !v.Clean {
			t.Errorf("%s: attached %v, clean %v", name, v.Attached, v.Clean)
		}
	}
	if _, _, err := n.exports.Open(t.Context(), "vol1"); !errors.Is(err, nbd.ErrShutdown) {
		t.Errorf("open after close: %v", err)
	}
}

// TestTakenAway: when another holder takes the volume by force, our clients
// are cut off, and what they do from then on fails.
func TestTakenAway(t *testing.T) {
	n, _ := newTestNode(t)
	d, release := mustOpen(t, n, "vol1")
	defer release()
	other, err := n.cluster.Attach(t.Context(), "vol1", cluster.Holder{Name: "other", Process: cluster.Process{BootID: "another machine"}}, cluster.AttachOptions{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.store.Attach(t.Context(), other.Volume.ID, other.Epoch); err != nil { // the other fences
		t.Fatal(err)
	}
	if _, err := d.WriteAt(make([]byte, 4096), 0); !errors.Is(err, nbd.ErrShutdown) {
		t.Errorf("a write under a fenced epoch: %v, want ErrShutdown", err)
	}
	select {
	case <-d.(*device).Done():
	case <-time.After(10 * time.Second):
		t.Error("the device does not say that it has ended")
	}
	if _, _, err := n.exports.Open(t.Context(), "vol1"); !errors.Is(err, nbd.ErrBusy) {
		t.Errorf("open while another holds it: %v, want ErrBusy", err)
	}
	if v := info(t, n, "vol1"); v.Attached == nil || v.Attached.Holder.Name != "other" {
		t.Errorf("our end took the other's attachment away: %+v", v.Attached)
	}
	if err := other.Detach(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	d, release = mustOpen(t, n, "vol1")
	defer release()
	if _, err := d.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("a write when we have it again: %v", err)
	}
}

// TestOtherStore: the store that had the only copy is gone (N3); another in its
// place must not be served as if it had the volume.
func TestOtherStore(t *testing.T) {
	n, _ := newTestNode(t)
	mustOpen(t, n, "vol1")
	n.exports.close()
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
	n.store, n.exports = memstore.New(), newExports(n, nil)
	if _, _, err := n.exports.Open(t.Context(), "vol1"); err == nil {
		t.Fatal("an empty store is served in place of the one that had the volume")
	}
	if v := info(t, n, "vol1"); v.Attached != nil || !v.Clean {
		t.Errorf("after the refusal: attached %v, clean %v", v.Attached, v.Clean)
	}
	mustOpen(t, n, "vol2") // which was never served
}

// TestRenamed: an attached volume is found under its new name, and is the same.
func TestRenamed(t *testing.T) {
	n, _ := newTestNode(t)
	d, release := mustOpen(t, n, "vol1")
	defer release()
	if err := n.cluster.RenameVolume(t.Context(), "vol1", "data"); err != nil {
		t.Fatal(err)
	}
	again, release := mustOpen(t, n, "data")
	defer release()
	if again != d {
		t.Error("attached twice")
	}
	if _, _, err := n.exports.Open(t.Context(), "vol1"); !errors.Is(err, nbd.ErrNotFound) {
		t.Errorf("the old name: %v", err)
	}
}

// TestOpenCancelled: a client that goes while the volume is being attached
// leaves nothing behind.
func TestOpenCancelled(t *testing.T) {
	n, _ := newTestNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := n.exports.Open(ctx, "vol1"); err == nil {
		t.Fatal("opened with a context that has ended")
	}
	if n.exports.count() != 0 {
		t.Error("it is still there")
	}
	mustOpen(t, n, "vol1")
}

// TestDrop: a deleted volume's layer and fence go from the store, confirmed in
// the records; whatever is not recorded as deleted stays (I8).
func TestDrop(t *testing.T) {
	n, _ := newTestNode(t)
	ctx := t.Context()
	for _, name := range []string{"vol1", "vol2"} {
		d, _ := mustOpen(t, n, name)
		if _, err := d.WriteAt(make([]byte, 1<<20), 0); err != nil {
			t.Fatal(err)
		}
	}
	n.exports.close()
	kept := info(t, n, "vol2")
	deleted := info(t, n, "vol1")
	unrecorded := store.LayerID(0x77)
	r, err := n.store.Attach(ctx, 0x77, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Create(ctx, unrecorded, 0); err != nil {
		t.Fatal(err)
	}
	if err := dropDeleted(ctx, n.cluster, n.settings, n.store); err != nil {
		t.Fatal(err)
	}
	if got := layers(t, n); !got[deleted.Head] {
		t.Fatal("dropped before it was deleted")
	}
	if err := n.cluster.DeleteVolume(ctx, "vol1"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second time changes nothing
		if err := dropDeleted(ctx, n.cluster, n.settings, n.store); err != nil {
			t.Fatal(err)
		}
	}
	if got := layers(t, n); got[deleted.Head] || !got[kept.Head] || !got[unrecorded] {
		t.Errorf("layers left: %v; vol1 had %v, vol2 has %v", got, deleted.Head, kept.Head)
	}
	for f, err := range n.store.Fences(ctx) {
		if err != nil || f.Volume == deleted.ID {
			t.Errorf("fence of %v, %v", f.Volume, err)
		}
	}
	if _, err := n.cluster.Layer(ctx, deleted.Head); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("the layer's record: %v, want ErrNotFound after the confirmation", err)
	}
}

func layers(t *testing.T, n *Node) map[store.LayerID]bool {
	t.Helper()
	all := map[store.LayerID]bool{}
	for l, err := range n.store.Layers(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all[l.ID] = true
	}
	return all
}

// TestOtherNodes: what lies elsewhere is not served from here.
func TestOtherNodes(t *testing.T) {
	n, _ := newTestNode(t)
	n.settings.ID = ring.NodeID(99)
	n.peers = newPeers("", n.log)
	defer n.peers.close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // its node may be about to start
	defer cancel()
	if _, _, err := n.exports.Open(ctx, "vol1"); err == nil {
		t.Error("a volume of another node was opened")
	}
	if a := info(t, n, "vol1").Attached; a != nil {
		t.Errorf("left attached by %v", a.Holder)
	}
}
