package main_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
)

const (
	crashSize  = 64 << 20
	crashPages = crashSize / 4096
)

// TestKill kills a node in the middle of writes, again and again: every page
// whose write was acknowledged, flushed or not, is there when it runs again,
// pages whose write was not hold the old bytes or the new, and none is mixed.
func TestKill(t *testing.T) {
	rounds, budget := 6, time.Minute
	if long() {
		rounds, budget = 100, 5*time.Minute
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	dir := keepFailed(t)
	m := newCrashModel(rng)
	var took []time.Duration
	begun, round := time.Now(), 0
	for ; round < rounds && time.Since(begun) < budget; round++ {
		p := startDev(t, dir, "--size", "64MiB", "--log-level", "warn")
		took = append(took, p.took)
		m.check(t, p.running.NBD[0])
		m.writeAndKill(t, p.running.NBD[0], p.kill)
	}
	p := startDev(t, dir)
	m.check(t, p.running.NBD[0])
	p.stop()
	slices.Sort(took)
	t.Logf("%d rounds, %d writes acknowledged, %d cut short; start: median %v, slowest %v",
		round, m.acknowledged, m.cut, took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > 2*time.Second {
		t.Errorf("half of the starts took more than %v, none should take 2s", median)
	}
	if m.acknowledged < round*10 {
		t.Errorf("only %d writes were acknowledged in %d rounds", m.acknowledged, round)
	}
}

// keepFailed returns a directory that is removed at the end, unless the test has
// failed and TORUS_KEEP_FAILED names a directory to move it to.
func keepFailed(t *testing.T) string {
	dir, keep := t.TempDir(), os.Getenv("TORUS_KEEP_FAILED")
	t.Cleanup(func() {
		if t.Failed() && keep != "" {
			t.Logf("the data is kept in %s", keep)
			command(t, "cp", "-a", "--sparse=always", dir, keep)
		}
	})
	return dir
}

// crashModel is what each page may hold: the number of the last acknowledged
// write, and those of later ones whose fate is unknown. 0 is zeroes.
type crashModel struct {
	rng          *rand.Rand
	may          [][]uint64
	last         uint64
	acknowledged int
	cut          int
}

func newCrashModel(rng *rand.Rand) *crashModel {
	m := &crashModel{rng: rng, may: make([][]uint64, crashPages)}
	for i := range m.may {
		m.may[i] = []uint64{0}
	}
	return m
}

// crashWrite is a write that was sent.
type crashWrite struct {
	*nbdCall
	first, pages int
	number       uint64
}

// fill makes the bytes that write number leaves in a page: every word tells
// both, so that a mix shows.
func fill(p []byte, page int, number uint64) {
	if number == 0 {
		clear(p)
		return
	}
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], number)
		binary.LittleEndian.PutUint64(p[i+8:], uint64(page)<<32|uint64(i))
	}
}

// writeAndKill keeps writes in flight, with a flush every few, until who serves
// them is killed at a moment nobody chose.
func (m *crashModel) writeAndKill(t *testing.T, addr string, kill func()) {
	t.Helper()
	c, err := dialNBD(addr, "vol1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	life := time.Duration(50+m.rng.IntN(300)) * time.Millisecond
	killed := make(chan struct{})
	time.AfterFunc(life, func() { kill(); close(killed) })
	var flying []crashWrite
	var flushes []*nbdCall
	for err == nil {
		w := m.send(c, flying)
		flying = append(flying, w)
		if w.number%8 == 0 {
			flushes = append(flushes, c.flush())
		}
		if len(flying) >= 16 {
			err = m.settle(flying[0])
			flying = flying[1:]
		}
		if len(flushes) > 2 && err == nil {
			err = <-flushes[0].done
			flushes = flushes[1:]
		}
	}
	for _, w := range flying {
		_ = m.settle(w) // answered before the kill, or never
	}
	<-killed
}

// send writes 1 to 16 pages where no other write is in flight, so that their
// order is known.
func (m *crashModel) send(c *nbdClient, flying []crashWrite) crashWrite {
	w := crashWrite{pages: 1 + m.rng.IntN(16)}
	for busy := true; busy; {
		w.first = m.rng.IntN(crashPages - w.pages)
		busy = slices.ContainsFunc(flying, func(o crashWrite) bool {
			return w.first < o.first+o.pages && o.first < w.first+w.pages
		})
	}
	m.last++
	w.number = m.last
	b := make([]byte, w.pages*4096)
	for i := range w.pages {
		fill(b[i*4096:(i+1)*4096], w.first+i, w.number)
		m.may[w.first+i] = append(m.may[w.first+i], w.number)
	}
	w.nbdCall = c.write(b, int64(w.first)*4096)
	return w
}

// settle waits for a write. Acknowledged, nothing else may be in its pages.
func (m *crashModel) settle(w crashWrite) error {
	if err := <-w.done; err != nil {
		m.cut++
		return err
	}
	m.acknowledged++
	for i := range w.pages {
		m.may[w.first+i] = []uint64{w.number}
	}
	return nil
}

// check reads everything. What a page is found to hold it holds from then on.
func (m *crashModel) check(t *testing.T, addr string) {
	t.Helper()
	c, err := dialNBD(addr, "vol1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	const step = 1 << 20
	b, want := make([]byte, step), make([]byte, 4096)
	for off := 0; off < crashSize; off += step {
		if err := <-c.read(b, int64(off)).done; err != nil {
			t.Fatalf("read at %d: %v", off, err)
		}
		for i := 0; i < step; i += 4096 {
			page := (off + i) / 4096
			got := b[i : i+4096]
			number := binary.LittleEndian.Uint64(got)
			fill(want, page, number)
			if !slices.Contains(m.may[page], number) || !bytes.Equal(got, want) {
				t.Fatalf("page %d begins with %x, and may be of one of the writes %d", page, got[:32], m.may[page])
			}
			m.may[page] = m.may[page][:1]
			m.may[page][0] = number
		}
	}
}

// TestSecondProcess: a data directory serves one process.
func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	p := startDev(t, dir)
	out := refused(t, 4, torus(t), "dev", "--data-dir", dir, "--port", "0", "--nbd", "127.0.0.1:0")
	want := fmt.Sprintf("torus: directory %s: in use by another process (%d): stop that first, or choose another --data-dir\n",
		dir, p.cmd.Process.Pid)
	if out != want {
		t.Errorf("it said\n%swant\n%s", out, want)
	}
	out = refused(t, 4, torus(t), "start", "--data-dir", dir)
	if out != want {
		t.Errorf("start said\n%swant\n%s", out, want)
	}
	p.stop()
}
