package cluster

import (
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"torus/ring"
)

// bench is a cluster over memory with a clock of its own.
type bench struct {
	*Cluster
	kv    *Memory
	clock *testClock
}

type testClock struct {
	mu  sync.Mutex
	now time.Duration
}

func (c *testClock) read() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// newBench founds a cluster with so many storage nodes: n1, n2, ...
func newBench(t *testing.T, nodes int) *bench {
	t.Helper()
	b := &bench{clock: &testClock{}}
	b.kv = NewMemory(b.clock.read)
	t.Cleanup(func() { b.kv.Close() })
	c, err := Found(t.Context(), b.kv, Founding{ID: testID, Replicas: 2}, b.options())
	if err != nil {
		t.Fatal(err)
	}
	b.Cluster = c
	for i := range nodes {
		b.register(t, ring.NodeID(i+1))
	}
	return b
}

func (b *bench) options() Options {
	return Options{
		Now: b.clock.read, Random: seededReader(1), ManualRenewal: true, Patience: 5 * time.Second,
		Wall: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) },
	}
}

// pass lets time pass, on the clock of leases.
func (b *bench) pass(d time.Duration) {
	b.clock.mu.Lock()
	b.clock.now += d
	b.clock.mu.Unlock()
	b.kv.Expire()
}

func testNode(id ring.NodeID) Node {
	name := "n" + string('0'+byte(id))
	return Node{
		ID: id, Name: name, Host: name, Roles: []Role{RoleEtcd, RoleStorage, RoleNBD},
		Addresses: Addresses{API: "10.0.0." + string('0'+byte(id)) + ":7480"}, Capacity: 1 << 40, Identity: 0x1d,
	}
}

func (b *bench) register(t *testing.T, id ring.NodeID) {
	t.Helper()
	if err := b.RegisterNode(t.Context(), testNode(id)); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) create(t *testing.T, name string, replicas int) Volume {
	t.Helper()
	v, err := b.CreateVolume(t.Context(), VolumeSpec{Name: name, Size: 1 << 30, Replicas: replicas})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func holder(pid int) Holder {
	return Holder{Node: ring.NodeID(pid), Name: "n1", Process: Process{BootID: "boot", PIDNamespace: "pid:[1]", PID: pid, StartTime: 7}}
}

func (b *bench) attach(t *testing.T, name string, h Holder) *Attachment {
	t.Helper()
	a, err := b.Attach(t.Context(), name, h, AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

type seeded struct{ r *rand.Rand }

func seededReader(seed uint64) io.Reader { return &seeded{rand.New(rand.NewPCG(seed, 0))} }

func (s *seeded) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(s.r.Uint32())
	}
	return len(p), nil
}

func TestLifeOfAVolume(t *testing.T) {
	b := newBench(t, 1)
	v := b.create(t, "vol1", 1)
	a := b.attach(t, "vol1", holder(1))
	if a.Epoch != 1 || a.Volume.ID != v.ID || len(a.Chain) != 1 || a.Chain[0] != v.Head || !a.Volume.Clean || a.MinCopies() != 1 {
		t.Fatalf("attached as %+v", a)
	}
	if err := a.Serving(t.Context(), []Incarnation{{Node: 1, Identity: 2, Incarnation: 3}}, nil); err != nil {
		t.Fatal(err)
	}
	info, err := b.Volume(t.Context(), "vol1")
	if err != nil || info.Clean || info.Attached == nil || info.Attached.Holder != holder(1) {
		t.Fatalf("%+v, %v", info, err)
	}
	if err := a.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	info, err = b.Volume(t.Context(), "vol1")
	if err != nil || !info.Clean || info.Attached != nil {
		t.Fatalf("%+v, %v", info, err)
	}
	again := b.attach(t, "vol1", holder(2))
	if again.Epoch != 2 || len(again.Incarnations) != 1 || again.Incarnations[0].Incarnation != 3 {
		t.Fatalf("attached again as %+v", again)
	}
}
