package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// flakyKV fails in all the ways that a KV may: reads and commits that were
// refused, commits whose answer is lost, commits that arrive late.
type flakyKV struct {
	KV
	mu   sync.Mutex
	rng  *rand.Rand
	rate float64 // of calls that fail
	late []Txn
	log  []string
}

func (f *flakyKV) Get(ctx context.Context, key string, at Revision) (Pair, Revision, error) {
	if f.fails("get " + key) {
		return Pair{}, 0, ErrUnavailable
	}
	return f.KV.Get(ctx, key, at)
}

func (f *flakyKV) Range(ctx context.Context, prefix string, at Revision) ([]Pair, Revision, error) {
	if f.fails("range " + prefix) {
		return nil, 0, ErrUnavailable
	}
	return f.KV.Range(ctx, prefix, at)
}

// fails draws whether a call does, after some late commits may have arrived.
func (f *flakyKV) fails(what string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.late) > 0 && f.rng.IntN(3) == 0 {
		f.arrive()
	}
	fails := f.rng.Float64() < f.rate
	if fails {
		f.log = append(f.log, what+": unavailable")
	}
	return fails
}

// arrive does the first of the late commits. Under mu.
func (f *flakyKV) arrive() {
	out, err := f.KV.Commit(context.Background(), f.late[0])
	f.log = append(f.log, fmt.Sprintf("late commit arrives: %v, %v", out.Held, err))
	f.late = f.late[1:]
}

func (f *flakyKV) Commit(ctx context.Context, t Txn) (Outcome, error) {
	if !f.fails("commit") {
		return f.KV.Commit(ctx, t)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.rng.IntN(4) {
	case 0:
		return Outcome{}, ErrUnavailable
	case 1:
		f.log = append(f.log, "  lost on the way there")
	case 2:
		out, err := f.KV.Commit(ctx, t)
		f.log = append(f.log, fmt.Sprintf("  answer lost: %v, %v", out.Held, err))
	case 3:
		f.log = append(f.log, "  late")
		f.late = append(f.late, t)
	}
	return Outcome{}, ErrUnknown
}

// settle lets all late commits arrive.
func (f *flakyKV) settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.late) > 0 {
		f.arrive()
	}
}

// interruptedKV does a transaction, then what another one does meanwhile, and
// loses the answer; once.
type interruptedKV struct {
	KV
	then func()
}

func (k *interruptedKV) Commit(ctx context.Context, t Txn) (Outcome, error) {
	then := k.then
	if then == nil {
		return k.KV.Commit(ctx, t)
	}
	k.then = nil
	if _, err := k.KV.Commit(ctx, t); err != nil {
		return Outcome{}, err
	}
	then()
	return Outcome{}, ErrUnknown
}

// The name of a volume that was deleted may belong to another when it is tried again.
func TestDeleteMeantTheFirst(t *testing.T) {
	b := newBench(t, 1)
	first := b.create(t, "vol1", 1)
	var second Volume
	kv := &interruptedKV{KV: b.kv, then: func() { second = b.create(t, "vol1", 1) }}
	c, err := Open(t.Context(), kv, testID, b.options())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteVolume(t.Context(), "vol1"); err != nil {
		t.Fatal(err)
	}
	if info := b.info(t, "vol1"); info.ID != second.ID || info.ID == first.ID {
		t.Errorf("%+v", info)
	}
}

// One actor over a flaky KV: no operation may fail with an error that
// contradicts what it knows, and what succeeded is there.
func TestUnknownOutcomes(t *testing.T) {
	steps, unknown := 0, 0
	for seed := range uint64(400) {
		synctest.Test(t, func(t *testing.T) {
			u := flakyRun(t, seed)
			steps, unknown = steps+flakySteps, unknown+u
		})
		if t.Failed() {
			return
		}
	}
	if unknown*10 > steps {
		t.Errorf("%d of %d outcomes stayed unknown", unknown, steps)
	}
}

type flakyModel struct {
	t       *testing.T
	c       *Cluster
	kv      *flakyKV
	name    string // "": there is no volume
	vol     VolumeInfo
	held    *Attachment
	serving bool
	epoch   uint32
	next    int
}

const flakySteps = 25

// flakyRun returns how many operations had an unknown outcome.
func flakyRun(t *testing.T, seed uint64) (unknown int) {
	start := time.Now()
	clock := func() time.Duration { return time.Since(start) }
	mem := NewMemory(clock)
	defer mem.Close()
	kv := &flakyKV{KV: mem, rng: rand.New(rand.NewPCG(seed, 1))}
	c, err := Found(t.Context(), kv, Founding{ID: testID, Replicas: 1}, Options{
		Now: clock, Random: seededReader(seed), ManualRenewal: true, Patience: 15 * time.Second, Lease: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RegisterNode(t.Context(), testNode(1)); err != nil {
		t.Fatal(err)
	}
	m := &flakyModel{t: t, c: c, kv: kv}
	for step := range flakySteps {
		kv.rate = 0.3
		err := m.step()
		kv.rate = 0
		if errors.Is(err, ErrUnknown) || errors.Is(err, ErrUnavailable) {
			err = nil
			unknown++
			kv.settle()
			m.relearn()
		}
		if err == nil {
			err = m.compare()
		}
		if err != nil || t.Failed() {
			for _, l := range kv.log {
				t.Log(l)
			}
			t.Fatalf("seed %d, step %d: %v", seed, step, err)
		}
	}
	return unknown
}

// step does something that must succeed, or have an unknown outcome.
func (m *flakyModel) step() error {
	ctx := m.t.Context()
	m.kv.log = append(m.kv.log, "---")
	switch pick := m.kv.rng.IntN(4); {
	case m.name == "":
		m.next++
		name := fmt.Sprint("vol", m.next)
		_, err := m.c.CreateVolume(ctx, VolumeSpec{Name: name, Size: 4096})
		if err == nil {
			m.name, m.epoch = name, 0 // another lineage counts anew
		}
		return err
	case pick == 0:
		m.next++
		name := fmt.Sprint("vol", m.next)
		err := m.c.RenameVolume(ctx, m.name, name)
		if err == nil {
			m.name = name
		}
		return err
	case m.held == nil && pick == 1:
		err := m.c.DeleteVolume(ctx, m.name)
		if err == nil {
			m.name = ""
		}
		return err
	case m.held == nil:
		a, err := m.c.Attach(ctx, m.name, holder(1), AttachOptions{})
		if err == nil && uint32(a.Epoch) <= m.epoch {
			m.t.Errorf("epoch %d after %d", a.Epoch, m.epoch)
		}
		if err == nil {
			m.held, m.serving, m.epoch = a, false, uint32(a.Epoch)
		}
		return err
	case pick == 1:
		err := m.held.Detach(ctx, true)
		m.held = nil
		return err
	default:
		err := m.held.Serving(ctx, []Incarnation{{Node: 1, Incarnation: 1}}, nil)
		m.serving = m.serving || err == nil
		return err
	}
}

// relearn reads what is so after an unknown outcome; what is held is given up.
func (m *flakyModel) relearn() {
	if m.held != nil {
		if err := m.held.Detach(m.t.Context(), false); err != nil {
			m.t.Errorf("detach: %v", err)
		}
		m.held = nil
	}
	m.kv.settle()
	all, err := m.c.Volumes(m.t.Context())
	if err != nil || len(all) > 1 {
		m.t.Fatalf("%v, %v", all, err)
	}
	m.name = ""
	for _, v := range all {
		m.name, m.epoch = v.Name, uint32(v.Epoch)
		if v.Attached != nil {
			m.t.Errorf("attached by %v, after its lease was revoked", v.Attached)
		}
	}
}

// compare checks the records against the model.
func (m *flakyModel) compare() error {
	all, err := m.c.Volumes(m.t.Context())
	if err != nil {
		return err
	}
	if m.name == "" {
		if len(all) != 0 {
			return fmt.Errorf("there are volumes: %+v", all)
		}
		return nil
	}
	if len(all) != 1 || all[0].Name != m.name || (all[0].Attached != nil) != (m.held != nil) {
		return fmt.Errorf("volume %s, held %v; there are %+v", m.name, m.held != nil, all)
	}
	m.vol = all[0]
	if m.held != nil && (m.vol.Attached.Epoch != m.held.Epoch || m.vol.Epoch != m.held.Epoch || m.vol.Lineage.Epoch != m.held.Epoch) {
		return fmt.Errorf("held under epoch %v: %+v, %+v", m.held.Epoch, m.vol, m.vol.Attached)
	}
	if m.held != nil && m.serving && m.vol.Clean {
		return errors.New("clean while it is served")
	}
	return nil
}
