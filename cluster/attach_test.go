package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"torus/store"
)

func (b *bench) info(t *testing.T, name string) VolumeInfo {
	t.Helper()
	info, err := b.Volume(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (b *bench) serve(t *testing.T, a *Attachment) {
	t.Helper()
	if err := a.Serving(t.Context(), []Incarnation{{Node: 1, Identity: 2, Incarnation: 3}}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestAttachBusy(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	a := b.attach(t, "vol1", holder(1))
	asked := Holder{}
	never := func(h Holder) bool { asked = h; return false }
	_, err := b.Attach(t.Context(), "vol1", holder(2), AttachOptions{Dead: never})
	wantErr(t, err, ErrBusy, "volume vol1: attached by node n1 (process 1)")
	if asked != holder(1) {
		t.Errorf("asked whether %v is dead", asked)
	}
	_, err = b.Attach(t.Context(), "none", holder(2), AttachOptions{})
	wantErr(t, err, ErrNotFound, "volume none: not found")
	_, err = b.Attach(t.Context(), "", holder(2), AttachOptions{})
	if !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	_, err = b.Attach(t.Context(), "vol1", holder(2), AttachOptions{Purpose: "fun"})
	wantErr(t, err, ErrInvalid, `volume vol1: invalid: purpose "fun"`)
	if len(b.kv.leases) != 1 {
		t.Errorf("%d leases for one attachment: refused ones are not revoked", len(b.kv.leases))
	}
	if !a.Held() || isClosed(a.Done()) || isClosed(a.Lost()) || a.Err() != nil {
		t.Error("the holder is disturbed")
	}
}

// Whatever happens between two attachments of a lineage, the epoch grows.
func TestEpochsGrow(t *testing.T) {
	b := newBench(t, 1)
	v := b.create(t, "vol1", 1)
	last := store.Epoch(0)
	attach := func(how string, o AttachOptions) *Attachment {
		t.Helper()
		a, err := b.Attach(t.Context(), "vol1", holder(1), o)
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		if a.Epoch <= last {
			t.Fatalf("%s: epoch %v after %v", how, a.Epoch, last)
		}
		last = a.Epoch
		return a
	}
	a := attach("first", AttachOptions{})
	if err := a.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	a = attach("after a clean detach", AttachOptions{})
	if a.Replaced != nil {
		t.Error("replaced somebody after a detach")
	}
	b.serve(t, a)
	b.pass(10 * time.Second)
	a = attach("after the lease ran out", AttachOptions{})
	if a.Volume.Clean || a.Replaced != nil {
		t.Error("clean after a crash")
	}
	forced := attach("by force", AttachOptions{Force: true})
	if forced.Replaced == nil || forced.Replaced.Epoch != a.Epoch {
		t.Errorf("replaced %+v", forced.Replaced)
	}
	dead := attach("from the dead", AttachOptions{Dead: func(Holder) bool { return true }})
	if dead.Replaced == nil || dead.Replaced.Epoch != forced.Epoch {
		t.Errorf("replaced %+v", dead.Replaced)
	}
	for _, gone := range []*Attachment{a, forced} {
		if err := gone.Serving(t.Context(), nil, nil); !errors.Is(err, ErrLost) {
			t.Errorf("served under epoch %v: %v", gone.Epoch, err)
		}
	}
	if err := dead.Detach(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteVolume(t.Context(), "vol1"); err != nil {
		t.Fatal(err)
	}
	again := b.create(t, "vol1", 1)
	if again.ID == v.ID || again.Lineage == v.Lineage {
		t.Errorf("created again with an old ID: %+v", again)
	}
}

func TestEpochsEnd(t *testing.T) {
	b := newBench(t, 1)
	v := b.create(t, "vol1", 1)
	l := b.info(t, "vol1").Lineage
	l.Epoch = store.MaxEpoch - 1
	mustCommit(t, b.kv, Op{Kind: OpPut, Key: idKey(keyLineages, l.ID), Value: encode(newLineageRecord(l))})
	a := b.attach(t, "vol1", holder(1))
	if a.Epoch != store.MaxEpoch {
		t.Errorf("epoch %v", a.Epoch)
	}
	if err := a.Detach(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	_, err := b.Attach(t.Context(), "vol1", holder(1), AttachOptions{})
	wantErr(t, err, ErrEpochs, fmt.Sprintf("volume vol1: no epochs left: lineage %v has used all 16777215", v.Lineage))
}

// Many attach at once; one gets it each time, under an epoch of its own.
func TestAttachRace(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	raceToAttach(t, b.Cluster, 8, 20)
}

func raceToAttach(t *testing.T, c *Cluster, racers, rounds int) {
	t.Helper()
	var mu sync.Mutex
	var epochs []store.Epoch
	holding := 0
	var wg sync.WaitGroup
	for pid := range racers {
		wg.Go(func() {
			for won := 0; won < rounds; {
				a, err := c.Attach(t.Context(), "vol1", holder(pid+1), AttachOptions{})
				if errors.Is(err, ErrBusy) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				won++
				mu.Lock()
				epochs = append(epochs, a.Epoch)
				holding++
				if holding != 1 {
					t.Errorf("%d hold the volume", holding)
				}
				mu.Unlock()
				err = a.Serving(t.Context(), nil, nil)
				mu.Lock()
				holding--
				mu.Unlock()
				if err := errors.Join(err, a.Detach(t.Context(), true)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(epochs) != racers*rounds || !slices.IsSorted(epochs) || len(slices.Compact(epochs)) != racers*rounds {
		t.Errorf("epochs of %d attachments, in order: %v", racers*rounds, epochs)
	}
}

// By its own clock a holder knows before anybody else that its lease may have
// run out: it counts from the sending of the last renewal that was answered.
func TestLeaseJudgedByOwnClock(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	a := b.attach(t, "vol1", holder(1))
	b.serve(t, a)
	b.pass(6 * time.Second)
	if err := a.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.pass(9 * time.Second)
	if !a.Held() || isClosed(a.Done()) {
		t.Fatal("lapsed 9 s after a renewal")
	}
	b.pass(time.Second)
	if a.Held() || !isClosed(a.Done()) || isClosed(a.Lost()) {
		t.Fatal("not lapsed after 10 s")
	}
	if b.info(t, "vol1").Attached != nil {
		t.Fatal("the record outlives its lease")
	}
	// Nobody came: it goes on under the same epoch.
	if err := a.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	info := b.info(t, "vol1")
	if !a.Held() || info.Attached == nil || info.Attached.Epoch != a.Epoch || info.Attached.Holder != holder(1) {
		t.Fatalf("not resumed: %+v", info.Attached)
	}
	b.pass(9 * time.Second)
	if err := a.Renew(t.Context()); err != nil || !a.Held() {
		t.Fatalf("the new lease is not renewed: %v", err)
	}
	// Somebody came: it is over.
	b.pass(10 * time.Second)
	other := b.attach(t, "vol1", holder(2))
	wantErr(t, a.Renew(t.Context()), ErrLost, "volume vol1: attachment lost: epoch 1 was followed by 2")
	if a.Held() || !isClosed(a.Lost()) || !errors.Is(a.Err(), ErrLost) {
		t.Error("not lost")
	}
	wantErr(t, a.Serving(t.Context(), nil, nil), ErrLost, "volume vol1: attachment lost: epoch 1 was followed by 2")
	wantErr(t, a.Detach(t.Context(), true), ErrLost, "volume vol1: attachment lost: epoch 1 was followed by 2")
	if info := b.info(t, "vol1"); info.Clean || info.Attached == nil || info.Attached.Epoch != other.Epoch || !other.Held() {
		t.Errorf("the new holder is disturbed: %+v", info)
	}
}

// Until it is served, a volume whose lease ran out may have been changed by
// whoever saw it clean and free.
func TestLeaseRunsOutBeforeServing(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	a := b.attach(t, "vol1", holder(1))
	b.pass(10 * time.Second)
	wantErr(t, a.Serving(t.Context(), nil, nil), ErrLost, "volume vol1: attachment lost: the lease ran out before the volume was served")
	a = b.attach(t, "vol1", holder(1))
	b.pass(10 * time.Second)
	wantErr(t, a.Renew(t.Context()), ErrLost, "volume vol1: attachment lost: the lease ran out before the volume was served")
	if !b.info(t, "vol1").Clean {
		t.Error("not clean, although it was never served")
	}
}

// Clean is what a holder says that has served; a volume that crashed does
// not become clean by being attached and let go.
func TestCleanOnlyAfterServing(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	a := b.attach(t, "vol1", holder(1))
	b.serve(t, a)
	b.pass(10 * time.Second) // crashed
	a = b.attach(t, "vol1", holder(1))
	if err := a.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if b.info(t, "vol1").Clean {
		t.Error("clean without having been reconciled")
	}
	if err := a.Detach(t.Context(), true); err != nil {
		t.Errorf("detached twice: %v", err)
	}
	wantErr(t, a.Err(), ErrLost, "volume vol1: attachment lost: detached")
	if a.Held() || !isClosed(a.Done()) || !isClosed(a.Lost()) {
		t.Error("held after Detach")
	}
}

func TestAttachmentOfDeletedVolume(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	a := b.attach(t, "vol1", holder(1))
	b.serve(t, a)
	b.pass(10 * time.Second)
	if err := b.DeleteVolume(t.Context(), "vol1"); err != nil {
		t.Fatal(err)
	}
	b.create(t, "vol1", 1)
	wantErr(t, a.Renew(t.Context()), ErrLost, "volume vol1: attachment lost: the volume was deleted")
}

func TestAttachChain(t *testing.T) {
	b := newBench(t, 1)
	v := b.create(t, "vol1", 1)
	head := Layer{ID: v.Head, Lineage: v.Lineage, Parent: 0x51}
	write := func(l Layer) {
		t.Helper()
		mustCommit(t, b.kv, Op{Kind: OpPut, Key: idKey(keyLayers, l.ID), Value: encode(newLayerRecord(l))})
	}
	write(head)
	_, err := b.Attach(t.Context(), "vol1", holder(1), AttachOptions{})
	wantErr(t, err, ErrCorrupt, "record /torus/layers/0000000000000051: corrupt record: missing or deleted, although it is in the chain of volume vol1")
	write(Layer{ID: 0x51, Lineage: v.Lineage, Sealed: true, Parent: 0x52})
	write(Layer{ID: 0x52, Lineage: v.Lineage, Sealed: true})
	a := b.attach(t, "vol1", holder(1))
	if !slices.Equal(a.Chain, []store.LayerID{v.Head, 0x51, 0x52}) {
		t.Errorf("chain %v", a.Chain)
	}
	if len(a.Ring.IDs()) != 1 || a.Ring.Copies() != 1 || a.Ring.Number != 1 {
		t.Errorf("ring %+v", a.Ring)
	}
}

func TestProvenDead(t *testing.T) {
	p := Process{BootID: "boot", PIDNamespace: "pid:[1]", PID: 5, StartTime: 7}
	here := Process{BootID: "boot", PIDNamespace: "pid:[1]", PID: 1}
	alive := Sighting{Self: here, PID: 5, Exists: true, StartTime: 7}
	for _, c := range []struct {
		what   string
		change func(*Process, *Sighting)
		want   bool
	}{
		{"alive", func(*Process, *Sighting) {}, false},
		{"gone", func(_ *Process, s *Sighting) { *s = Sighting{Self: here, PID: 5} }, true},
		{"a zombie", func(_ *Process, s *Sighting) { s.Zombie = true }, true},
		{"its ID used again", func(_ *Process, s *Sighting) { s.StartTime = 8 }, true},
		{"gone, other machine or boot", func(p *Process, s *Sighting) { s.Exists, p.BootID = false, "other" }, false},
		{"gone, other container", func(p *Process, s *Sighting) { s.Exists, p.PIDNamespace = false, "pid:[2]" }, false},
		{"gone, container unknown", func(p *Process, s *Sighting) { s.Exists, p.PIDNamespace, s.Self.PIDNamespace = false, "", "" }, false},
		{"gone, boot unknown", func(p *Process, s *Sighting) { s.Exists, p.BootID, s.Self.BootID = false, "", "" }, false},
		{"another was looked for", func(p *Process, s *Sighting) { s.Exists, s.PID = false, 6 }, false},
		{"no process ID", func(p *Process, s *Sighting) { s.Exists, s.PID, p.PID = false, 0, 0 }, false},
	} {
		p, s := p, alive
		c.change(&p, &s)
		if got := ProvenDead(p, s); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

func TestProvenDeadHere(t *testing.T) {
	self, err := ThisProcess()
	if err != nil {
		t.Fatal(err)
	}
	if self.PID != os.Getpid() || self.StartTime == 0 || len(self.BootID) != 36 {
		t.Errorf("%+v", self)
	}
	if ProvenDeadHere(Holder{Process: self}) {
		t.Error("this process is dead")
	}
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s, err := look(self, cmd.Process.Pid)
	if err != nil || !s.Exists {
		t.Fatalf("%+v, %v", s, err)
	}
	child := self
	child.PID, child.StartTime = cmd.Process.Pid, s.StartTime
	if ProvenDeadHere(Holder{Process: child}) {
		t.Error("dead while it runs")
	}
	cmd.Process.Kill()
	deadline := time.Now().Add(5 * time.Second)
	for !ProvenDeadHere(Holder{Process: child}) { // first as a zombie
		if time.Now().After(deadline) {
			t.Fatal("not dead 5 s after a kill")
		}
		time.Sleep(time.Millisecond)
	}
	cmd.Wait()
	if !ProvenDeadHere(Holder{Process: child}) {
		t.Error("not dead when it is gone")
	}
}

func TestParseStat(t *testing.T) {
	line := "12 (a) b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"
	if zombie, start, err := parseStat([]byte(line)); zombie || start != 4711 || err != nil {
		t.Error(zombie, start, err)
	}
	if zombie, _, err := parseStat([]byte("12 (z) Z" + line[len("12 (a) b) S"):])); !zombie || err != nil {
		t.Error(zombie, err)
	}
	for _, bad := range []string{"", "12 (a", "12 (a) S 1", line[:40]} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestHolderString(t *testing.T) {
	if s := holder(3).String(); s != "node n1 (process 3)" {
		t.Error(s)
	}
	if s := (Holder{Name: "desk", Process: Process{PID: 4}}).String(); s != "process 4 on desk" {
		t.Error(s)
	}
}
