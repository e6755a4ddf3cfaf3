package segment

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"torus/store"
)

const fillRequest = 32 // pages

// fill writes from windowEnd on until the store is full, and returns how many
// requests of fillRequest pages it took.
func (s *scribe) fill() int64 {
	s.t.Helper()
	s.h.sequence = 5000
	for n := int64(0); n < 1000; n++ {
		v, page := s.version(), windowEnd+n*fillRequest
		err := s.r.Write(s.ctx, layerA, page*ps, s.bytes(page, fillRequest, value{kind: store.Data, version: v}), v, 0)
		if errors.Is(err, store.ErrNoSpace) {
			return n
		}
		if err != nil {
			s.t.Fatalf("request %d: %v", n, err)
		}
	}
	s.t.Fatal("the store does not get full")
	return 0
}

// A full store refuses writes with nothing applied; reads, trims and collecting
// go on, and with what trims give back writes work again.
func TestFullStore(t *testing.T) {
	m := newCrashMachine(t, 1)
	m.capacity = 8 << 20
	s := openScribe(t, m)
	n := s.fill()
	if n < m.capacity/(fillRequest*ps)/2 {
		t.Fatalf("full after %d requests of %d bytes", n, fillRequest*ps)
	}
	stat, err := m.st.Stat(s.ctx)
	m.ok(err)
	if !stat.NoSpace || stat.Used > 8<<20 {
		t.Fatalf("stat says %+v", stat)
	}
	read := func(from, to int64, written bool) {
		t.Helper()
		p, info := alignedBuffer(fillRequest*ps), make([]store.PageInfo, fillRequest)
		for i := from; i < to; i++ {
			m.ok(s.r.Read(s.ctx, []store.LayerID{layerA}, (windowEnd+i*fillRequest)*ps, p, info))
			for _, in := range info {
				if (in.Kind == store.Data) != written {
					t.Fatalf("request %d: %+v, written %v", i, in, written)
				}
			}
		}
	}
	read(0, n, true)
	read(n, n+1, false) // nothing of what was refused
	m.ok(s.r.Sync(s.ctx))
	s.settle(layerA)
	m.ok(s.r.Zero(s.ctx, layerA, windowEnd*ps, n/2*fillRequest*ps, s.version(), 0))
	for deadline := time.Now().Add(10 * time.Second); ; {
		m.st.segments.supplyAgain()
		s.work()
		m.ok(s.err)
		v := s.version()
		err := s.r.Write(s.ctx, layerA, (windowEnd+n*fillRequest)*ps, s.bytes(0, fillRequest, value{kind: store.Data, version: v}), v, 0)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrNoSpace) || time.Now().After(deadline) {
			t.Fatalf("writing after half was trimmed: %v", err)
		}
	}
	read(n/2, n+1, true)
	m.ok(recount(s.ctx, m.st))
}

// Trims of single pages and watermarks, then fences, may be many: on a full store
// each leaves the log what the next needs, and all of them what collecting does.
func TestFullStoreLeavesLog(t *testing.T) {
	m := newCrashMachine(t, 1)
	m.capacity = 8 << 20
	s := openScribe(t, m)
	s.fill()
	refused := func(what string, f func(i int64) error) {
		t.Helper()
		var err error
		for i := int64(0); err == nil && i < 1000; i++ {
			err = f(i)
		}
		if !errors.Is(err, store.ErrNoSpace) {
			t.Fatalf("%s on a full store: %v", what, err)
		}
	}
	refused("trims of pages", func(i int64) error {
		return s.r.Zero(s.ctx, layerA, (windowEnd+2*i)*ps, ps, s.version(), 0)
	})
	for range 100 {
		s.settle(layerA) // nobody waits for those
	}
	m.ok(s.err)
	s.attach(3)
	s.zero(layerA, store.PagesPerChunk, 2*store.PagesPerChunk)
	m.ok(s.err)
	refused("fences", func(i int64) error {
		s.attach(store.Epoch(4 + i))
		return s.err
	})
	s.err = nil
	m.end(killed)
	m.ok(m.open())
	s = &scribe{t: t, ctx: s.ctx, h: s.h, st: m.st}
	s.work()
	m.ok(s.err)
	s.attach(100)
	s.write(layerA, windowFirst, 20)
	m.ok(s.err)
	m.ok(recount(s.ctx, m.st))
}

// A store whose log has not one block left starts, reads and closes.
func TestStartOnFullLog(t *testing.T) {
	m := newCrashMachine(t, 1)
	m.capacity = 8 << 20
	s := openScribe(t, m)
	s.write(layerA, windowFirst, 20)
	want := s.bytes(windowFirst, 20, s.h.page(layerA, windowFirst).now)
	read := func() {
		t.Helper()
		got := alignedBuffer(20 * ps)
		m.ok(m.st.ReadSealed(s.ctx, []store.LayerID{layerA}, windowFirst*ps, got))
		if !bytes.Equal(got, want) {
			t.Error("a page has other bytes")
		}
	}
	s.fill()
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		r := newRequest()
		r.need = forSpace
		r.add(record{kind: recClean})
		err = m.st.commitDurable(r)
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("filling the log: %v", err)
	}
	for range 2 {
		m.end(killed)
		m.ok(m.open())
		read()
	}
	st := m.st
	m.st = nil
	m.ok(st.Close())
	m.ok(m.open())
	read()
}

func TestBallastTarget(t *testing.T) {
	const k = blockSize
	for _, c := range []struct{ have, size, free, headroom, want int64 }{
		{100 * k, 100 * k, 50 * k, 25 * k, 100 * k},  // room: whole
		{100 * k, 100 * k, 25 * k, 25 * k, 100 * k},  // just enough
		{100 * k, 100 * k, 20 * k, 25 * k, 95 * k},   // gives way by what is missing
		{10 * k, 100 * k, 0, 25 * k, 0},              // all of it
		{0, 100 * k, 0, 25 * k, 0},                   // nothing left to give
		{50 * k, 100 * k, 40 * k, 25 * k, 50 * k},    // does not swing
		{50 * k, 100 * k, 60 * k, 25 * k, 60 * k},    // grows back by what is over
		{50 * k, 100 * k, 1000 * k, 25 * k, 100 * k}, // not beyond its size
		{50*k + 1, 100 * k, 10 * k, 25 * k, 35 * k},  // whole blocks
	} {
		if got := ballastTarget(c.have, c.size, c.free, c.headroom); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// While others fill the disk the reserve gives way to them, and no segment is
// made; when there is room again it is the first to take it.
func TestReserveGivesWay(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	b := m.st.segments.ballast
	allocated := func() int64 {
		n, err := b.f.allocated()
		m.ok(err)
		return n
	}
	setFree := func(n int64) {
		m.disk.mu.Lock()
		defer m.disk.mu.Unlock()
		m.disk.full = n
	}
	if allocated() != b.size {
		t.Fatalf("the reserve takes %d bytes, want %d", allocated(), b.size)
	}
	setFree(0)
	m.ok(b.adjust())
	if n := allocated(); n != b.size-b.headroom() {
		t.Fatalf("with nothing free the reserve takes %d of %d, headroom %d", n, b.size, b.headroom())
	}
	if err := b.admit(1 << 20); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("a segment is admitted: %v", err)
	}
	var err error
	for i := int64(0); err == nil && i < 100; i++ {
		v := s.version()
		err = s.r.Write(s.ctx, layerA, windowFirst*ps, s.bytes(windowFirst, 40, value{kind: store.Data, version: v}), v, 0)
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("writing on a full disk: %v", err)
	}
	m.ok(s.r.Sync(s.ctx))
	setFree(-1)
	m.ok(b.adjust())
	if allocated() != b.size {
		t.Fatalf("the reserve did not grow back: %d of %d", allocated(), b.size)
	}
	m.st.segments.supplyAgain()
	s.write(layerA, windowFirst, 40)
	m.ok(s.err)
}

// TestReserveGivesWayOfFailed: also of a store that serves nothing any more the
// reserve gives way, for the records that lie beside it; nor does it wait for the
// rest of the background work.
func TestReserveGivesWayOfFailed(t *testing.T) {
	m := newCrashMachine(t, 1)
	o := m.options()
	o.manual = false
	st, err := Open(t.Context(), o)
	m.ok(err)
	m.st = st
	st.fail(errors.New("a test"))
	b, seg := st.segments.ballast, st.segments
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // who prepares them looks after the reserve too
		seg.mu.Lock()
		idle := len(seg.spares) >= seg.need()
		seg.mu.Unlock()
		if idle {
			break
		}
		if time.Now().After(end) {
			t.Fatal("there are no spare segments")
		}
	}
	m.disk.mu.Lock()
	m.disk.full = 0
	m.disk.mu.Unlock()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		n, err := b.f.allocated()
		m.ok(err)
		if n == b.size-b.headroom() {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("with nothing free the reserve takes %d of %d", n, b.size)
		}
	}
}

// A listeningDisk has something happen when it is listed.
type listeningDisk struct {
	disk
	listed func()
}

func (d listeningDisk) list() ([]string, error) {
	d.listed()
	return d.disk.list()
}

// TestReserveGivesWayInRecovery: the reserve gives way while a store is opened too,
// which may take long.
func TestReserveGivesWayInRecovery(t *testing.T) {
	m := newCrashMachine(t, 1)
	openScribe(t, m)
	m.st.kill()
	o := m.options()
	f, err := m.disk.open(ballastName)
	m.ok(err)
	o.manual = false
	o.disk = listeningDisk{m.disk, func() {
		m.disk.mu.Lock()
		m.disk.full = 0
		m.disk.mu.Unlock()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			n, err := f.allocated()
			m.ok(err)
			if n < o.Reserve {
				return
			}
			if time.Now().After(end) {
				t.Errorf("with nothing free the reserve takes %d of %d", n, o.Reserve)
				return
			}
		}
	}}
	m.st, err = Open(t.Context(), o)
	m.ok(err)
}
