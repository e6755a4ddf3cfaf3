package segment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"torus/store"
)

// longTests asks for every crash point instead of a sample.
var longTests = os.Getenv("TORUS_LONG_TESTS") == "1"

// A crashMachine is a crashDisk, the index beside it, and a boot ID.
type crashMachine struct {
	t        testing.TB
	dir      string
	disk     *crashDisk
	boot     int
	st       *Store
	state    []byte // store.json as it was at the crash
	older    string // a copy of the index, taken earlier
	capacity int64
}

func newCrashMachine(t testing.TB, seed uint64) *crashMachine {
	dir := memoryDir(t)
	m := &crashMachine{t: t, dir: filepath.Join(dir, "store"), older: filepath.Join(dir, "older")}
	m.disk = newCrashDisk(t, m.dir, seed)
	m.disk.onCrash = func() { m.state, _ = os.ReadFile(filepath.Join(m.dir, stateName)) }
	t.Cleanup(func() {
		if m.st != nil {
			m.st.kill()
		}
	})
	return m
}

func (m *crashMachine) options() Options {
	return Options{Dir: m.dir, Reserve: 1 << 20, SegmentSize: 1 << 20, CacheBytes: 1, disk: m.disk,
		bootID: fmt.Sprint("boot ", m.boot), manual: true, memtable: 8 << 20, Capacity: m.capacity}
}

func (m *crashMachine) open() error {
	st, err := Open(context.Background(), m.options())
	if err == nil {
		m.st = st
	}
	return err
}

// keepIndex takes a copy of the index as it is now.
func (m *crashMachine) keepIndex() error {
	if err := os.RemoveAll(m.older); err != nil {
		return err
	}
	return copyTree(filepath.Join(m.dir, indexDir), m.older)
}

// end ends the store's process, at a moment when it does nothing or the disk
// has crashed. What it does after that moment leaves no trace.
func (m *crashMachine) end(how ending) {
	m.t.Helper()
	now, index := filepath.Join(m.dir, "index.now"), filepath.Join(m.dir, indexDir)
	if !m.disk.crashed() {
		m.disk.onCrash()
	}
	m.disk.mu.Lock()
	m.disk.dead = true
	m.disk.mu.Unlock()
	m.ok(copyTree(index, now))
	if m.st != nil {
		m.st.kill()
		m.st = nil
	}
	m.ok(os.RemoveAll(index))
	m.ok(os.Rename(now, index))
	if m.state != nil {
		m.ok(os.WriteFile(filepath.Join(m.dir, stateName), m.state, 0o600))
	}
	if how == powerCut {
		m.boot++
		m.ok(m.disk.powerCut())
	}
	m.disk.restart(0)
}

func (m *crashMachine) ok(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// incarnation returns what store.json says, or said at the crash.
func (m *crashMachine) incarnation() store.Incarnation {
	m.t.Helper()
	p, s := m.state, stateFile{}
	if !m.disk.crashed() {
		var err error
		p, err = os.ReadFile(filepath.Join(m.dir, stateName))
		m.ok(err)
	}
	m.ok(json.Unmarshal(p, &s))
	return s.Incarnation
}

// What became of the index.
type indexFate int

const (
	indexThere indexFate = iota
	indexLost
	indexOlder
)

func (f indexFate) String() string { return [...]string{"there", "lost", "older"}[f] }

func (m *crashMachine) spoilIndex(f indexFate) {
	m.t.Helper()
	index := filepath.Join(m.dir, indexDir)
	switch f {
	case indexLost:
		m.ok(os.RemoveAll(index))
	case indexOlder:
		if _, err := os.Stat(m.older); err != nil {
			return
		}
		m.ok(os.RemoveAll(index))
		m.ok(os.Rename(m.older, index))
	}
}

// copyTree copies the files of a directory; holes stay holes.
func copyTree(from, to string) error {
	entries, err := os.ReadDir(from)
	if errors.Is(err, os.ErrNotExist) {
		return os.MkdirAll(to, 0o700)
	} else if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		if err := copySparse(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	for off := int64(0); ; {
		data, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return out.Truncate(info.Size())
		} else if err != nil {
			return err
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, hole-data)); err != nil {
			return err
		}
		off = hole
	}
}

const (
	layerA store.LayerID = 0xa1
	layerB store.LayerID = 0xb1
)

// crashScript does some of everything that a store can be asked for, with
// rotations and collecting in between, up to the first error.
func crashScript(m *crashMachine, h *history, seed uint64, steps int) {
	s := &scribe{t: m.t, ctx: context.Background(), h: h, rng: rand.New(rand.NewPCG(seed, 3))}
	s.do(m.open)
	if s.st = m.st; s.st == nil {
		return
	}
	h.identity = s.st.state.Identity
	s.attach(1)
	s.create(layerA, 0)
	s.write(layerA, windowFirst, 30)
	s.attach(2)
	second := layerB
	s.create(second, layerA)
	for i := range steps {
		if s.err != nil {
			return
		}
		l := layerA
		if s.rng.IntN(4) == 0 {
			l = second
		}
		page := windowFirst + s.rng.Int64N(windowEnd-windowFirst)
		n := min(1+s.rng.Int64N(40), windowEnd-page)
		switch s.rng.IntN(20) {
		default:
			s.write(l, page, n)
		case 0, 1, 2:
			s.zero(l, page, n)
		case 3:
			s.zero(l, 0, 4*store.PagesPerChunk) // a statement about whole chunks
		case 4, 5:
			s.adopt(l, page, n, store.Data)
		case 6:
			s.adopt(l, page, n, store.Hole)
		case 7:
			s.adopt(l, page, n, store.Absent)
		case 8, 9, 10:
			s.sync()
		case 11:
			s.do(s.st.flush)
			s.do(m.keepIndex)
		case 12, 13:
			s.work()
		case 14:
			s.sync()
			s.settle(l)
		case 15:
			s.dropChunk(l, uint32(s.rng.IntN(2)))
		}
		if i == steps/2 {
			s.dropLayer(second)
			second++
			s.create(second, layerA)
		}
	}
	s.sync()
	s.work()
	if s.err == nil {
		s.err = m.st.Close()
	}
}

// A crash, as it can be written down to see it again.
type crashCase struct {
	seed    uint64
	crashAt int
	how     ending
	index   indexFate
}

func (c crashCase) String() string {
	return fmt.Sprintf("seed %d, %v at operation %d, index %v", c.seed, c.how, c.crashAt, c.index)
}

const crashSteps = 120

// run lets the script crash, and checks the store twice: as the crash left it,
// and after it was killed again with its index lost.
func (c crashCase) run(t *testing.T) (ops int) {
	t.Run(c.String(), func(t *testing.T) { ops = c.crash(t) })
	return ops
}

func (c crashCase) crash(t *testing.T) (ops int) {
	m, h := newCrashMachine(t, c.seed<<20+uint64(c.crashAt)), newHistory()
	m.disk.restart(c.crashAt)
	crashScript(m, h, c.seed, crashSteps)
	ops = m.disk.ops
	lives := []struct {
		how   ending
		index indexFate
	}{{c.how, c.index}, {killed, indexLost}, {powerCut, indexThere}}
	for i, life := range lives {
		var was store.Incarnation
		if m.st != nil {
			was = m.incarnation()
		}
		m.end(life.how)
		m.spoilIndex(life.index)
		if err := m.open(); err != nil {
			t.Fatalf("life %d: %v", i, err)
		}
		if err := h.check(context.Background(), m.st, life.how); err != nil {
			t.Fatalf("life %d: %v", i, err)
		}
		now := m.st.currentIncarnation()
		if was != 0 && (was == now) != (life.how == killed) {
			t.Fatalf("life %d: incarnation %v, was %v", i, now, was)
		}
		if h.identity != 0 && h.identity != m.st.state.Identity {
			t.Fatalf("life %d: identity %v, was %v", i, m.st.state.Identity, h.identity)
		}
		s := &scribe{t: t, ctx: context.Background(), h: h, st: m.st}
		s.attach(h.epoch)
		for l := range h.pages {
			s.write(l, windowFirst+int64(10*i), 20)
			s.zero(l, windowFirst+int64(10*i)+50, 3)
		}
		s.work()
		if s.err != nil {
			t.Fatalf("life %d: working after it: %v", i, s.err)
		}
	}
	return ops
}

// Every operation of the disk may be the last one, and may be half done.
func TestCrashAtEveryOperation(t *testing.T) {
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	start, n := time.Now(), 0
	seeds := uint64(20)
	if testing.Short() {
		seeds = 4
	}
	for seed := uint64(1); seed <= seeds; seed++ {
		ops := crashCase{seed: seed}.run(t)
		for _, k := range rng.Perm(ops) {
			for how := range powerCut + 1 {
				for index := range indexOlder + 1 {
					if longTests || rng.IntN(300) == 0 {
						crashCase{seed, k + 1, how, index}.run(t)
						n++
					}
				}
			}
		}
		if longTests && time.Since(start) > 3*time.Minute {
			break
		}
	}
	t.Logf("%d crashes", n)
}
