package main_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"torus/node"
	"torus/store"
)

// settlePatience is how long it may take, all faults ended, until all copies are in
// sync: a node whose attempts failed is tried again once a minute.
const settlePatience = 4 * time.Minute

// A torture is one run.
type torture struct {
	t      *testing.T
	seed   uint64
	takes  time.Duration
	begun  time.Time
	rack   *rack
	load   *tortureLoad
	rounds int
}

// TestTorture has processes killed, paused, ended, cut off, their disks filled up
// and bytes on them flipped, by a schedule that a seed decides, while clients write
// and read. No request fails but for a full disk, every read shows what was
// written, and with all faults gone all copies become equal.
//
// TORUS_TORTURE says how long it goes on, TORUS_TORTURE_SEED repeats a schedule.
func TestTorture(t *testing.T) {
	tt := &torture{t: t, takes: tortureTime(t), seed: tortureSeed(t)}
	rng := rand.New(rand.NewPCG(tt.seed, 3))
	replicas := 2 + rng.IntN(2)
	minCopies := 1 + rng.IntN(2)
	nodes := 3 + rng.IntN(replicas-1)
	repeat := fmt.Sprintf("TORUS_TORTURE=%v TORUS_TORTURE_SEED=%d go test -count=1 -timeout %v -run '^TestTorture$' .",
		tt.takes, tt.seed, tt.takes+20*time.Minute)
	t.Logf("seed %d: %d nodes, %d replicas, min-copies %d; the same again:\n%s", tt.seed, nodes, replicas, minCopies, repeat)

	dir := tortureDir(t)
	tt.rack = newRack(t, dir, nodes)
	tt.found(replicas, minCopies)
	tt.begun = time.Now()
	tt.load = newTortureLoad(filepath.Join(dir, "nbd.sock"))
	tt.load.begin(tt.seed)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the same again:\n%s\nlogs are in %s", repeat, dir)
		}
	})
	for time.Since(tt.begun) < tt.takes {
		tt.rounds++
		tt.do(drawRound(rng, tt.rounds, nodes))
	}
	tt.settle()
	tt.load.end()
	tt.check()
	tt.compare(replicas)
	t.Logf("%d rounds, %d requests, the slowest took %v, %d were refused by full disks; connections broke %d times",
		tt.rounds, tt.load.requests.Load(), time.Duration(tt.load.slowest.Load()),
		tt.load.refused.Load(), tt.load.breaks.Load())
}

// tortureTime is how long to go on.
func tortureTime(t *testing.T) time.Duration {
	s := os.Getenv("TORUS_TORTURE")
	if s == "" {
		t.Skip("less than minutes are not worth it: TORUS_TORTURE=3m runs it")
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func tortureSeed(t *testing.T) uint64 {
	s := os.Getenv("TORUS_TORTURE_SEED")
	if s == "" {
		return uint64(time.Now().UnixNano())
	}
	seed, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return seed
}

// tortureDir is where everything lies. The logs are kept if the test fails, and the
// data too with TORUS_KEEP_FAILED.
func tortureDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "torture-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		gone := []string{dir}
		switch {
		case t.Failed() && os.Getenv("TORUS_KEEP_FAILED") != "":
			return
		case t.Failed():
			if gone, err = filepath.Glob(filepath.Join(dir, "*")); err != nil {
				t.Error(err)
			}
			gone = slices.DeleteFunc(gone, func(name string) bool { return strings.HasSuffix(name, ".log") })
		}
		for _, name := range gone {
			if err := os.RemoveAll(name); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

// found makes the cluster, the volume and its exporter.
func (tt *torture) found(replicas, minCopies int) {
	r := tt.rack
	tt.t.Cleanup(r.stopAll)
	for i, m := range r.nodes {
		args := []string{"init"}
		if i > 0 {
			args = []string{"join", r.nodes[0].api}
		}
		args = append(args, "--data-dir", m.data(), "--name", m.name, "--host", m.name, "--listen", m.ip)
		if r.isolated {
			args = append(args, "--insecure")
		} else {
			args = append(args, "--port", "0")
		}
		r.found(m, args...)
		m.args = []string{"start", "--data-dir", m.data()}
	}
	if _, err := r.torus("volume", "create", "vol1", fmt.Sprint(tortureSize),
		"--replicas", fmt.Sprint(replicas), "--min-copies", fmt.Sprint(minCopies)); err != nil {
		tt.t.Fatal(err)
	}
	tt.await("three voters", func() (bool, error) {
		out, err := r.torus("node", "list", "-o", "json")
		return strings.Count(out, `"voter"`) == 3, err
	})
	var apis []string
	for _, m := range r.nodes {
		apis = append(apis, m.api)
	}
	r.found(r.client, "nbd", "serve", "vol1", "--socket", filepath.Join(r.dir, "nbd.sock"), "--cluster", strings.Join(apis, ","))
}

// machines are the nodes and the exporter's.
func (tt *torture) machines() []*machine { return append(slices.Clone(tt.rack.nodes), tt.rack.client) }

// note writes down what is done; it is shown if the test fails.
func (tt *torture) note(format string, args ...any) {
	tt.t.Helper()
	tt.t.Logf("%s %7.2f s  %s", time.Now().UTC().Format("15:04:05.000"), time.Since(tt.begun).Seconds(), fmt.Sprintf(format, args...))
}

// check ends the test if something has been seen that must not be.
func (tt *torture) check() {
	tt.t.Helper()
	if tt.load != nil {
		select {
		case err := <-tt.load.failed:
			tt.note("seen: %v", err)
			tt.t.Fatal(err)
		default:
		}
	}
	for _, m := range tt.machines() {
		if err := tt.rack.look(m); err != nil {
			tt.note("seen: %v", err)
			tt.t.Fatalf("%v\n%s", err, tt.rack.tail(m))
		}
	}
}

// await waits until a condition holds, and no longer than it takes to see a failure.
// That it could not be asked yet is no failure.
func (tt *torture) await(what string, holds func() (bool, error)) {
	tt.t.Helper()
	end := time.Now().Add(settlePatience)
	for {
		is, err := holds()
		if is && err == nil {
			return
		}
		tt.check()
		if time.Now().After(end) {
			status, _ := tt.rack.torus("status")
			tt.t.Fatalf("waited %v for %s (%v):\n%s", settlePatience, what, err, status)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// do has a round done.
func (tt *torture) do(r round) {
	tt.note("round %d", r.number)
	if r.flips > 0 {
		tt.settle()
		tt.flip(r)
		return
	}
	type action struct {
		at time.Duration
		do func()
	}
	var actions []action
	for _, f := range r.faults {
		if !tt.rack.isolated && (f.kind == cutOff || f.kind == full || f.kind == rebooted) {
			continue
		}
		actions = append(actions, action{f.at, func() { tt.begin(f) }}, action{f.at + f.lasts, func() { tt.end(f) }})
	}
	slices.SortStableFunc(actions, func(a, b action) int { return cmp.Compare(a.at, b.at) })
	begun := time.Now()
	for _, a := range actions {
		for time.Since(begun) < a.at {
			tt.check()
			time.Sleep(min(10*time.Millisecond, a.at-time.Since(begun)))
		}
		a.do()
	}
	if r.settles {
		tt.settle()
	}
}

// begin begins a fault.
func (tt *torture) begin(f fault) {
	tt.note("%s, for %v", f.describe(tt.machines()), f.lasts)
	m := tt.machines()[f.on]
	if f.kind == rebooted || m == tt.rack.client || f.kind == cutOff && (f.from < 0 || tt.machines()[f.from] == tt.rack.client) {
		tt.load.mayEnd.Store(true)
	}
	switch f.kind {
	case killed:
		m.kill()
	case rebooted:
		m.kill()
		tt.rack.reboot(m)
	case ended:
		m.signal(syscall.SIGTERM, true)
	case paused:
		m.signal(syscall.SIGSTOP, false)
	case cutOff:
		tt.rack.block(tt.cuts(f), true)
	case full:
		tt.load.noSpace.Store(true)
		tt.load.flood.Store(true)
		tt.rack.fill(m, true)
	}
}

// end ends it.
func (tt *torture) end(f fault) {
	tt.note("%s no more", f.describe(tt.machines()))
	m := tt.machines()[f.on]
	switch f.kind {
	case killed, rebooted, ended:
		m.kill() // one that takes its time to end
		tt.rack.start(m)
	case paused:
		m.signal(syscall.SIGCONT, false)
	case cutOff:
		tt.rack.block(tt.cuts(f), false)
	case full:
		tt.load.flood.Store(false)
		tt.rack.fill(m, false)
	}
}

// cuts are the directions of a fault.
func (tt *torture) cuts(f fault) []cut {
	var all []cut
	machines := tt.machines()
	for i, m := range machines {
		if i == f.on || f.from >= 0 && i != f.from {
			continue
		}
		all = append(all, cut{m, machines[f.on]})
		if !f.oneWay {
			all = append(all, cut{machines[f.on], m})
		}
	}
	return all
}

// settle waits until no copy lacks anything, and all writers go on.
func (tt *torture) settle() {
	tt.t.Helper()
	begun := time.Now()
	var since time.Time // when all was well, without a break
	tt.await("all copies to be in sync", func() (bool, error) {
		well, err := tt.well()
		if !well || err != nil {
			since = time.Time{}
			return false, err
		}
		if since.IsZero() {
			since = time.Now()
		}
		return time.Since(since) > 2*time.Second, nil // longer than a report may be old
	})
	was := tt.load.progress()
	tt.await("every writer to go on", func() (bool, error) {
		now := tt.load.progress()
		return !slices.ContainsFunc(tt.load.regions, func(r *region) bool { i := slices.Index(tt.load.regions, r); return now[i] == was[i] }), nil
	})
	tt.load.noSpace.Store(false)
	tt.load.mayEnd.Store(false)
	tt.note("all is well, after %v", time.Since(begun))
}

// well reports whether the volume is served and no copy lacks anything.
func (tt *torture) well() (bool, error) {
	out, err := tt.rack.torus("volume", "show", "vol1", "-o", "json")
	if err != nil {
		return false, err
	}
	var v struct {
		Attached *struct{ By string }
		Waiting  string
		Behind   []struct{ State string }
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return false, err
	}
	return v.Attached != nil && v.Waiting == "" && len(v.Behind) == 0, nil
}

// flip changes bytes of some pages of one node, and has them found and rewritten.
func (tt *torture) flip(r round) {
	m := tt.rack.nodes[r.flipped]
	flipped, err := tt.flipPages(m, rand.New(rand.NewPCG(tt.seed, uint64(r.number)<<8)), r.flips)
	if err != nil {
		tt.t.Fatal(err)
	}
	tt.note("%s has a byte flipped in %d pages", m.name, flipped)
	corrupt := 0
	tt.await("the pages to be rewritten", func() (bool, error) {
		var found []struct{ Corrupt, Unlike, Lost int }
		out, err := tt.rack.torus("scrub", "vol1", "-o", "json")
		if e := json.Unmarshal([]byte(out), &found); e != nil {
			return false, errors.Join(err, e)
		}
		corrupt += found[0].Corrupt
		if found[0].Lost > 0 {
			tt.t.Fatalf("with pages of one copy flipped a scrub found %+v", found)
		}
		return found[0].Corrupt == 0, err
	})
	tt.note("scrubs found %d corrupt pages", corrupt)
}

// flipPages flips a byte in so many of the pages of a node that the model knows to
// be what the volume has now. Those that were written anew meanwhile are left out.
func (tt *torture) flipPages(m *machine, rng *rand.Rand, n int) (flipped int, err error) {
	live, err := tt.livePages(m)
	if err != nil {
		return 0, err
	}
	for range min(n, len(live)) {
		is, err := tt.flipPage(live[rng.IntN(len(live))], rng)
		if err != nil {
			return 0, err
		}
		if is {
			flipped++
		}
	}
	return flipped, nil
}

// A pagePlace is where a page lies on a disk.
type pagePlace struct {
	file string
	off  int64
}

// livePages returns where a node has what the volume has now.
func (tt *torture) livePages(m *machine) ([]pagePlace, error) {
	names, err := filepath.Glob(filepath.Join(node.StoreDir(m.data()), "segments", "*"))
	if err != nil {
		return nil, err
	}
	var live []pagePlace
	b := make([]byte, 1<<20)
	for _, name := range names {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its pages were all dead
		}
		if err != nil {
			return nil, err
		}
		for off, err := int64(0), error(nil); err == nil; off += int64(len(b)) {
			var got int
			got, err = f.ReadAt(b, off) // until the end of the file
			for i := 0; i+4096 <= got; i += 4096 {
				if tt.load.isLive(b[i:]) {
					live = append(live, pagePlace{name, off + int64(i)})
				}
			}
		}
		f.Close()
	}
	return live, nil
}

// flipPage flips a bit of a page, if the volume has it still.
func (tt *torture) flipPage(p pagePlace, rng *rand.Rand) (flipped bool, err error) {
	f, err := os.OpenFile(p.file, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	var page [4096]byte
	if _, err := f.ReadAt(page[:], p.off); err != nil {
		return false, err
	}
	if !tt.load.isLive(page[:]) {
		return false, nil
	}
	at := rng.IntN(len(page))
	if _, err = f.WriteAt([]byte{page[at] ^ 1<<rng.IntN(8)}, p.off+int64(at)); err != nil {
		return false, err
	}
	return true, f.Sync()
}

// isLive reports whether a page begins with what the volume has there.
func (l *tortureLoad) isLive(p []byte) bool {
	number, place := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
	off := int64(place>>32) * sectorSize
	if number == 0 || uint32(place) != 0 || off >= tortureSize || off%4096 != 0 {
		return false
	}
	r := l.regions[off/tortureRegion]
	r.mu.Lock()
	defer r.mu.Unlock()
	may := r.may[(off-r.off)/r.unit]
	return len(may) == 1 && may[0].number == number
}

// compare reads everything, stops all, and compares the copies of all nodes with
// what was read.
func (tt *torture) compare(replicas int) {
	want, err := tt.load.content()
	if err != nil {
		tt.t.Fatal(err)
	}
	tt.rack.stop(tt.rack.client)
	out, err := tt.rack.torus("volume", "show", "vol1", "-o", "json")
	if err != nil {
		tt.t.Fatal(err)
	}
	if !strings.Contains(out, `"clean": true`) || strings.Contains(out, `"behind"`) {
		tt.t.Errorf("the volume was stopped when all was well, and shows\n%s", out)
	}
	for _, m := range tt.rack.nodes {
		tt.rack.stop(m)
	}
	tt.check()
	var copies [][]byte
	for _, m := range tt.rack.nodes {
		copies = append(copies, copyOf(tt.t, m.data(), int64(len(want))))
	}
	none := make([]byte, store.ChunkSize)
	for off := 0; off < len(want); off += store.ChunkSize {
		chunk := want[off:][:store.ChunkSize]
		var equal, other []string
		for i, b := range copies {
			switch b := b[off:][:store.ChunkSize]; {
			case bytes.Equal(b, chunk):
				equal = append(equal, tt.rack.nodes[i].name)
			case !bytes.Equal(b, none):
				other = append(other, tt.rack.nodes[i].name+" "+firstDifference(b, chunk))
			}
		}
		if len(equal) != replicas && !bytes.Equal(chunk, none) || len(other) > 0 {
			tt.t.Errorf("chunk at %d: %v have what was read, want %d; others have %v", off, equal, replicas, other)
		}
	}
}

// firstDifference says where two chunks begin to differ, and in how many pages.
func firstDifference(got, want []byte) string {
	first, pages := -1, 0
	for off := 0; off < len(want); off += 4096 {
		if !bytes.Equal(got[off:off+4096], want[off:off+4096]) {
			if pages++; first < 0 {
				first = off
			}
		}
	}
	return fmt.Sprintf("%d pages, the first at %d: %x for %x", pages, first, got[first:][:16], want[first:][:16])
}
