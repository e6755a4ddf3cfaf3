package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"torus/cluster"
	"torus/nbd"
	"torus/ring"
	"torus/store"
)

// moved has a volume's export told that its lineage is another by now.
func moved(t *testing.T, n *Node, name string) {
	t.Helper()
	x, v := n.exports, info(t, n, name)
	x.mu.Lock()
	defer x.mu.Unlock()
	l := v.Lineage
	l.MinCopies = 7
	l.Epoch = 1 << 20
	if x.lineages == nil {
		x.lineages = map[ring.LineageID]cluster.Lineage{}
	}
	x.lineages[l.ID] = l
	signal(x.open[v.ID].changed)
}

// soon waits until a condition holds.
func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestReload: clients write, flush and read on while their volume is attached anew,
// and find all they wrote.
func TestReload(t *testing.T) {
	const reloads, blocks, size = 50, 8, 4096
	n, _ := newTestNode(t)
	d, release := mustOpen(t, n, "vol1")
	first := info(t, n, "vol1").Epoch
	var stop atomic.Bool
	var requests, longest atomic.Int64
	var clients sync.WaitGroup
	for i := range int64(blocks) {
		clients.Go(func() {
			var last uint64
			p, want := make([]byte, size), make([]byte, size)
			for !stop.Load() {
				begun := time.Now()
				last++
				binary.BigEndian.PutUint64(want, last)
				_, err := d.WriteAt(want, i*size)
				if err == nil && last%3 == 0 {
					err = d.Sync()
				}
				if err == nil && last%5 == 0 {
					err = d.Zero((blocks+i)*size, size, false, false)
				}
				if err == nil {
					_, err = d.ReadAt(p, i*size)
				}
				if err != nil || !bytes.Equal(p, want) {
					t.Errorf("client %d: %v, has %d, wrote %d", i, err, binary.BigEndian.Uint64(p), last)
					return
				}
				requests.Add(1)
				for took := int64(time.Since(begun)); took > longest.Load(); {
					longest.Store(took)
				}
			}
		})
	}
	for i := range reloads {
		before := requests.Load()
		soon(t, "requests", func() bool { return requests.Load() >= before+blocks || t.Failed() })
		moved(t, n, "vol1")
		soon(t, "the next attachment", func() bool { return int(info(t, n, "vol1").Epoch) > int(first)+i })
	}
	stop.Store(true)
	clients.Wait()
	t.Logf("%d requests beside %d reloads, the longest took %v", requests.Load(), reloads, time.Duration(longest.Load()))
	release()
	if err := n.exports.close(); err != nil {
		t.Error(err)
	}
	if v := info(t, n, "vol1"); !v.Clean || v.Attached != nil {
		t.Errorf("%+v", v)
	}
}

// TestReloadTakenAway: who finds the volume taken when it attaches it anew has its clients
// cut off, with what they asked for.
func TestReloadTakenAway(t *testing.T) {
	n, _ := newTestNode(t)
	d, release := mustOpen(t, n, "vol1")
	defer release()
	h := cluster.Holder{Name: "x", Process: cluster.Process{BootID: "boot", PID: 7}}
	att, err := n.cluster.Attach(t.Context(), "vol1", h, cluster.AttachOptions{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	defer att.Detach(t.Context(), false)
	moved(t, n, "vol1")
	select {
	case <-d.(*device).Done():
	case <-time.After(20 * time.Second):
		t.Fatal("its clients are not cut off")
	}
	soon(t, "requests to fail", func() bool {
		_, err := d.WriteAt(make([]byte, 4096), 0)
		return errors.Is(err, nbd.ErrShutdown)
	})
}

// TestEndAmidReload: an export that ends while its volume is attached anew ends well.
func TestEndAmidReload(t *testing.T) {
	for range 20 {
		n, _ := newTestNode(t)
		d, release := mustOpen(t, n, "vol1")
		want, got := []byte("there"), make([]byte, 5)
		if _, err := d.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		moved(t, n, "vol1")
		release()
		if err := n.exports.close(); err != nil {
			t.Fatal(err)
		}
		if v := info(t, n, "vol1"); !v.Clean || v.Attached != nil {
			t.Fatalf("%+v", v)
		}
		n.exports = newExports(n, nil)
		d, release = mustOpen(t, n, "vol1")
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q, %v", got, err)
		}
		release()
		if err := n.exports.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// gatedStore is a store where volumes are attached when the gate is open.
type gatedStore struct {
	store.Store
	gate atomic.Pointer[chan struct{}]
}

func (g *gatedStore) Attach(ctx context.Context, vol store.VolumeID, e store.Epoch) (store.Replica, error) {
	if gate := g.gate.Load(); gate != nil {
		select {
		case <-*gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return g.Store.Attach(ctx, vol, e)
}

// TestEndAmidOpening: an export that ends when its volume has been attached anew, and is
// not open yet, ends as well; it waits for that, and not for ever.
func TestEndAmidOpening(t *testing.T) {
	for _, opens := range []bool{true, false} {
		n, _ := newTestNode(t)
		gated := &gatedStore{Store: n.store}
		n.store = gated
		_, release := mustOpen(t, n, "vol1")
		gate := make(chan struct{})
		gated.gate.Store(&gate)
		first := info(t, n, "vol1").Epoch
		moved(t, n, "vol1")
		soon(t, "the next attachment", func() bool { return info(t, n, "vol1").Epoch > first })
		release()
		ended := make(chan error, 1)
		go func() { ended <- n.exports.close() }()
		if opens {
			soon(t, "the export to end", func() bool {
				n.exports.mu.Lock()
				defer n.exports.mu.Unlock()
				return n.exports.closed
			})
			close(gate)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if v := info(t, n, "vol1"); v.Clean != opens || v.Attached != nil {
			t.Errorf("opens %v: %+v", opens, v)
		}
	}
}
