package faultstore_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
	"torus/store/faultstore"
	"torus/store/memstore"
	"torus/store/storetest"
)

// machine is a memstore disk, and the faulty store on it.
type machine struct {
	disk  *memstore.Disk
	store *faultstore.Store
}

func newMachine(seed uint64) *machine {
	return &machine{disk: memstore.NewDisk(rand.New(rand.NewPCG(seed, 0)))}
}

func (m *machine) Open(*testing.T) store.Store {
	if m.store == nil {
		m.store = faultstore.New(m.disk.Open(), faultstore.Options{Cut: m.disk.PowerCut})
	} else {
		m.store.Reopen(m.disk.Open())
	}
	return m.store
}

func (m *machine) Kill(*testing.T)     { m.disk.Kill() }
func (m *machine) PowerCut(*testing.T) { m.store.Crash() }

func TestConformanceWithoutFaults(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Machine {
		seed := rand.Uint64()
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the disk's seed was %d", seed)
			}
		})
		return newMachine(seed)
	})
}

const (
	volume store.VolumeID = 0x7001
	layer  store.LayerID  = 0xa1
	lower  store.LayerID  = 0xa0
	ps                    = store.PageSize
)

// A fixture is a faulty store with a layer over another.
type fixture struct {
	*testing.T
	machine *machine
	faulty  *faultstore.Store
	replica store.Replica
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{T: t, machine: newMachine(1)}
	f.open()
	f.ok(f.replica.Create(t.Context(), lower, 0))
	f.ok(f.replica.Create(t.Context(), layer, lower))
	return f
}

func (f *fixture) open() {
	f.machine.Open(f.T)
	f.faulty = f.machine.store
	f.replica = f.attach()
}

func (f *fixture) attach() store.Replica {
	f.Helper()
	r, err := f.faulty.Attach(f.Context(), volume, 1)
	f.ok(err)
	return r
}

func (f *fixture) inject(texts ...string) {
	for _, text := range texts {
		f.faulty.Inject(faultstore.MustParse(text))
	}
}

func (f *fixture) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) fails(err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Fatalf("got error %v, want %v", err, want)
	}
}

func v(sequence uint64) store.Version { return store.NewVersion(1, sequence) }

// write writes n pages whose bytes are all the sequence.
func (f *fixture) write(page, n int64, sequence uint64) error {
	return f.replica.Write(f.Context(), layer, page*ps, bytes.Repeat([]byte{byte(sequence)}, int(n*ps)), v(sequence), 0)
}

func (f *fixture) read(page int64) error {
	return f.replica.Read(f.Context(), []store.LayerID{layer, lower}, page*ps, make([]byte, ps), nil)
}

// has wants the versions of the pages of layer from 0 on, 0 where absent; it
// asks beneath the faults.
func (f *fixture) has(sequences ...uint64) {
	f.Helper()
	inner := f.machine.disk.Open()
	r, err := inner.Attach(f.Context(), volume, 1)
	f.ok(err)
	info := make([]store.PageInfo, len(sequences))
	f.ok(r.Read(f.Context(), []store.LayerID{layer}, 0, make([]byte, len(sequences)*ps), info))
	for i, want := range sequences {
		if got := info[i].Version.Sequence(); got != want {
			f.Fatalf("page %d has sequence %d, want %d", i, got, want)
		}
	}
}

func TestFailAppliesNothing(t *testing.T) {
	f := newFixture(t)
	f.ok(f.write(0, 1, 1))
	f.inject("writes fail")
	f.fails(f.write(0, 2, 2), store.ErrFailed)
	f.has(1, 0)
}

func TestCounting(t *testing.T) {
	for text, want := range map[string]string{
		"writes fail":                 "xxxxxx",
		"writes fail after 3":         "...xxx",
		"writes fail from 3":          "..xxxx",
		"writes fail once":            "x.....",
		"writes fail after 2 2 times": "..xx..",
		"reads fail":                  "......",
		"writes,reads fail after 5":   ".....x",
		"requests fail after 4":       "....xx",
	} {
		f := newFixture(t)
		f.inject(text)
		var got string
		for i := range uint64(6) {
			if f.write(0, 1, i+1) == nil {
				got += "."
			} else {
				got += "x"
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for name, want := range map[string]error{
		"failed": store.ErrFailed, "fenced": store.ErrFenced, "incarnation": store.ErrIncarnation,
		"unknown-layer": store.ErrUnknownLayer, "corrupt": store.ErrCorrupt, "no-space": store.ErrNoSpace,
		"closed": store.ErrClosed, "timeout": context.DeadlineExceeded, "unreachable": store.ErrUnreachable,
	} {
		f := newFixture(t)
		f.inject("writes fail with " + name)
		f.fails(f.write(0, 1, 1), want)
	}
}

func TestEveryKindOfRequest(t *testing.T) {
	ctx := t.Context()
	extents := func(seq func(func(store.Extent, error) bool)) (last error) {
		for _, err := range seq {
			last = err
		}
		return last
	}
	for op, do := range map[string]func(*fixture) error{
		"attaches":  func(f *fixture) error { _, err := f.faulty.Attach(ctx, volume, 1); return err },
		"reads":     func(f *fixture) error { return f.read(0) },
		"drops":     func(f *fixture) error { return f.faulty.Drop(ctx, layer, store.AllChunks) },
		"forgets":   func(f *fixture) error { return f.faulty.Forget(ctx, volume) },
		"stats":     func(f *fixture) error { _, err := f.faulty.Stat(ctx); return err },
		"creates":   func(f *fixture) error { return f.replica.Create(ctx, 7, 0) },
		"writes":    func(f *fixture) error { return f.write(0, 1, 1) },
		"zeroes":    func(f *fixture) error { return f.replica.Zero(ctx, layer, 0, ps, v(1), 0) },
		"syncs":     func(f *fixture) error { return f.replica.Sync(ctx) },
		"extents":   func(f *fixture) error { return extents(f.replica.Extents(ctx, layer, 0, ps, 0)) },
		"unstables": func(f *fixture) error { return extents(f.replica.Unstable(ctx, layer)) },
		"adopts": func(f *fixture) error {
			return f.replica.Adopt(ctx, layer, store.Extent{N: ps, Kind: store.Hole, Version: v(1)}, nil)
		},
		"stables": func(f *fixture) error { return f.replica.Stable(ctx, layer, v(1), 0) },
		"lists": func(f *fixture) (last error) {
			for _, err := range f.faulty.Layers(ctx) {
				last = err
			}
			return last
		},
	} {
		f := newFixture(t)
		f.inject(op+" fail once", op+" apply and fail with timeout after 1 once")
		f.fails(do(f), store.ErrFailed)
		if op == "syncs" { // another incarnation
			f.replica = f.attach()
		}
		f.fails(do(f), context.DeadlineExceeded)
		if op == "forgets" { // the replica is of a volume that isn't there any more
			f.replica = f.attach()
		}
		if op == "drops" {
			f.fails(f.read(0), store.ErrUnknownLayer)
			f.ok(f.replica.Create(ctx, layer, lower))
		}
		f.ok(do(f))
	}
}

func TestFencesAndSealedReadsFailToo(t *testing.T) {
	f := newFixture(t)
	f.inject("lists,reads fail")
	f.fails(f.faulty.ReadSealed(t.Context(), []store.LayerID{lower}, 0, make([]byte, ps)), store.ErrFailed)
	n := 0
	for _, err := range f.faulty.Fences(t.Context()) {
		f.fails(err, store.ErrFailed)
		n++
	}
	if n != 1 {
		t.Fatalf("%d errors, want one", n)
	}
}

func TestApplyAndFailLosesTheAnswer(t *testing.T) {
	f := newFixture(t)
	f.inject("writes apply and fail with timeout once")
	f.fails(f.write(0, 2, 1), context.DeadlineExceeded)
	f.has(1, 1)
}

func TestTearAppliesTheFirstHalf(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	f.inject("writes,zeroes,adopts tear with no-space")
	f.fails(f.write(0, 5, 1), store.ErrNoSpace)
	f.fails(f.write(4, 1, 1), store.ErrNoSpace)
	f.fails(f.replica.Zero(ctx, layer, 5*ps, 2*ps, v(2), 0), store.ErrNoSpace)
	e := store.Extent{Off: 7 * ps, N: 2 * ps, Kind: store.Data, Version: v(3)}
	f.fails(f.replica.Adopt(ctx, layer, e, make([]byte, 2*ps)), store.ErrNoSpace)
	f.has(1, 1, 0, 0, 0, 2, 0, 3, 0)
}

func TestOneLayerOnly(t *testing.T) {
	f := newFixture(t)
	f.inject("reads,writes of layer 00000000000000a0 fail")
	f.ok(f.write(0, 1, 1))
	f.fails(f.read(0), store.ErrFailed) // its chain has the layer
	f.ok(f.replica.Read(t.Context(), []store.LayerID{layer}, 0, make([]byte, ps), nil))
	f.fails(f.replica.Write(t.Context(), lower, 0, make([]byte, ps), v(1), 0), store.ErrFailed)
}

func TestOneRangeOnly(t *testing.T) {
	f := newFixture(t)
	f.inject("writes at [8192,12288) fail")
	f.ok(f.write(0, 2, 1))
	f.fails(f.write(2, 1, 1), store.ErrFailed)
	f.fails(f.write(0, 4, 1), store.ErrFailed)
	f.ok(f.write(3, 1, 1))
}

func TestCorruptPageUntilItIsWritten(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	f.ok(f.write(0, 6, 1))
	f.inject("reads of layer 00000000000000a1 at [4096,20480) corrupt")
	f.ok(f.read(0))
	p := make([]byte, 3*ps)
	err := f.replica.Read(ctx, []store.LayerID{layer}, 0, p, nil)
	f.fails(err, store.ErrCorrupt)
	var corrupt *store.CorruptError
	if !errors.As(err, &corrupt) || corrupt.Layer != layer || corrupt.Off != ps {
		t.Fatalf("got %#v", corrupt)
	}
	if bytes.Equal(p[:ps], bytes.Repeat([]byte{1}, ps)) {
		t.Fatal("a failed read left the right bytes")
	}
	f.fails(f.faulty.ReadSealed(ctx, []store.LayerID{layer}, ps, make([]byte, ps)), store.ErrCorrupt)

	f.ok(f.write(1, 1, 2))
	f.ok(f.replica.Zero(ctx, layer, 2*ps, ps, v(2), 0))
	e := store.Extent{Off: 3 * ps, N: ps, Kind: store.Data, Version: v(1)}
	f.ok(f.replica.Adopt(ctx, layer, e, make([]byte, ps)))
	for page := range int64(4) {
		f.ok(f.read(page))
	}
	f.ok(f.faulty.ReadSealed(ctx, []store.LayerID{layer}, ps, make([]byte, ps)))
	f.fails(f.read(4), store.ErrCorrupt)
	f.ok(f.read(5))
	f.faulty.Clear()
	f.ok(f.read(4))
}

func TestCorruptIsOfTheLayerThePageComesFrom(t *testing.T) {
	f := newFixture(t)
	f.ok(f.replica.Write(t.Context(), lower, 0, make([]byte, 2*ps), v(1), 0))
	f.ok(f.write(0, 1, 2))
	f.inject("reads of layer 00000000000000a0 corrupt")
	f.ok(f.read(0)) // hidden
	f.fails(f.read(1), store.ErrCorrupt)
	f.ok(f.read(2)) // absent
}

func TestOnlyBytesAreCorrupt(t *testing.T) {
	f := newFixture(t)
	f.ok(f.replica.Zero(t.Context(), layer, 0, ps, v(1), 0))
	f.inject("reads corrupt")
	f.ok(f.read(0)) // a hole
	f.ok(f.read(1)) // absent
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.inject("writes delay 20ms", "writes delay 5ms after 1")
		begin := time.Now()
		f.ok(f.write(0, 1, 1))
		if took := time.Since(begin); took != 20*time.Millisecond {
			t.Fatalf("the first took %v", took)
		}
		f.ok(f.write(0, 1, 2))
		if took := time.Since(begin); took != 45*time.Millisecond {
			t.Fatalf("both took %v", took)
		}
		f.has(2)
	})
}

func TestDelayEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.inject("writes delay 1h")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		f.fails(f.replica.Write(ctx, layer, 0, make([]byte, ps), v(1), 0), context.DeadlineExceeded)
		f.has(0)
	})
}

func TestSleepIsHandedIn(t *testing.T) {
	var slept []time.Duration
	s := faultstore.New(memstore.New(), faultstore.Options{Sleep: func(_ context.Context, d time.Duration) error {
		slept = append(slept, d)
		return nil
	}})
	s.Inject(faultstore.MustParse("stats delay 1h"))
	if _, err := s.Stat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(slept) != 1 || slept[0] != time.Hour {
		t.Fatalf("slept %v", slept)
	}
}

func TestHangEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.inject("writes hang once", "writes apply and hang after 1")
		for page := range int64(2) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			f.fails(f.replica.Write(ctx, layer, page*ps, make([]byte, ps), v(1), 0), context.DeadlineExceeded)
		}
		f.has(0, 1)
	})
}

func TestHangGoesOnWhenTheFaultIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.inject("writes hang", "reads hang")
		answer := make(chan error)
		go func() { answer <- f.write(0, 1, 1) }()
		synctest.Wait()
		f.faulty.Remove(faultstore.MustParse("writes hang"))
		f.ok(<-answer)
		if left := f.faulty.Faults(); len(left) != 1 || left[0].String() != "reads hang" {
			t.Fatalf("faults are %v", left)
		}
		go func() { answer <- f.read(0) }()
		synctest.Wait()
		f.faulty.Clear()
		f.ok(<-answer)
		f.has(1)
	})
}

func TestLateWriteIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.inject("writes hang")
		answer := make(chan error)
		go func() { answer <- f.write(0, 1, 1) }()
		synctest.Wait()
		_, err := f.faulty.Attach(t.Context(), volume, 2)
		f.ok(err)
		f.faulty.Clear()
		f.fails(<-answer, store.ErrFenced)
	})
}

func TestFailedSyncIsAnotherIncarnation(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	before := f.replica.Incarnation()
	f.inject("syncs fail with timeout once", "syncs fail after 1 once")
	f.fails(f.replica.Sync(ctx), context.DeadlineExceeded) // of the connection, not the disk
	f.ok(f.write(0, 1, 1))
	f.fails(f.replica.Sync(ctx), store.ErrFailed)
	f.fails(f.write(0, 1, 2), store.ErrIncarnation)
	f.fails(f.read(0), store.ErrIncarnation)
	if f.replica.Incarnation() != before {
		t.Fatal("the old replica's incarnation changed")
	}

	f.replica = f.attach()
	st, err := f.faulty.Stat(ctx)
	f.ok(err)
	if now := f.replica.Incarnation(); now == before || now != st.Incarnation {
		t.Fatalf("incarnation was %v, is %v, the store says %v", before, now, st.Incarnation)
	}
	f.ok(f.replica.Sync(ctx))
	f.ok(f.faulty.Close())
	f.open()
	if f.replica.Incarnation() == before {
		t.Fatal("the old incarnation is back")
	}
}

func TestWriteThatWaitedOverAFailedSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.inject("writes delay 1s", "syncs fail")
		answer := make(chan error)
		go func() { answer <- f.write(0, 1, 1) }()
		synctest.Wait()
		f.fails(f.replica.Sync(t.Context()), store.ErrFailed)
		f.fails(<-answer, store.ErrIncarnation)
	})
}

func TestCrash(t *testing.T) {
	lost := false
	for seed := range uint64(20) {
		f := &fixture{T: t, machine: newMachine(seed)}
		f.open()
		ctx := t.Context()
		f.ok(f.replica.Create(ctx, layer, 0))
		f.ok(f.write(0, 1, 1))
		f.ok(f.replica.Sync(ctx))
		f.ok(f.write(1, 1, 2))
		was := f.replica.Incarnation()

		f.inject("writes crash once")
		f.fails(f.write(2, 1, 3), store.ErrFailed)
		f.fails(f.read(0), store.ErrFailed)
		f.fails(f.replica.Sync(ctx), store.ErrFailed)
		_, err := f.faulty.Attach(ctx, volume, 2)
		f.fails(err, store.ErrFailed)
		_, err = f.faulty.Stat(ctx)
		f.fails(err, store.ErrFailed)

		old := f.replica
		f.open()
		if f.replica.Incarnation() == was {
			t.Fatal("the incarnation survived a power cut")
		}
		if err := old.Sync(ctx); err == nil {
			t.Fatal("a replica of before the crash works")
		}
		info := make([]store.PageInfo, 3)
		f.ok(f.replica.Read(ctx, []store.LayerID{layer}, 0, make([]byte, 3*ps), info))
		if info[0].Version != v(1) || info[2].Kind != store.Absent {
			t.Fatalf("after the crash: %+v", info)
		}
		lost = lost || info[1].Kind == store.Absent
	}
	if !lost {
		t.Fatal("no crash of 20 lost what was not synced")
	}
}

func TestApplyAndCrash(t *testing.T) {
	disk := memstore.NewDisk(nil) // which loses nothing
	f := &fixture{T: t, machine: &machine{disk: disk}}
	f.open()
	f.ok(f.replica.Create(t.Context(), layer, 0))
	f.inject("writes apply and crash")
	f.fails(f.write(0, 1, 1), store.ErrFailed)
	f.has(1)
}

func TestCrashEndsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.inject("writes hang once", "writes delay 1s after 1 once", "reads apply and hang")
		answers := make(chan error)
		go func() { answers <- f.write(0, 1, 1) }()
		synctest.Wait()
		go func() { answers <- f.write(1, 1, 1) }()
		go func() { answers <- f.read(0) }()
		synctest.Wait()
		f.faulty.Crash()
		f.faulty.Crash() // once is enough
		for range 3 {
			f.fails(<-answers, store.ErrFailed)
		}
		f.faulty.Clear()
		f.open()
		f.has(0, 0)
	})
}

func TestSameFaultsSameOutcome(t *testing.T) {
	run := func() (outcome []bool) {
		f := newFixture(t)
		f.inject("writes fail after 2 3 times", "requests fail after 9 once")
		for i := range uint64(12) {
			outcome = append(outcome, f.write(0, 1, i+1) == nil, f.read(0) == nil)
		}
		return outcome
	}
	a, b := run(), run()
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("request %d: %v, then %v", i, a[i], b[i])
		}
	}
}
