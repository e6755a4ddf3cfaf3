package main_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A rack is the machines of a torture test. As root each has a network namespace and
// a disk of its own, so that it can be cut off and filled up; otherwise they share
// the loopback and the disk.
type rack struct {
	t        *testing.T
	dir      string
	tag      string // of the namespaces' names
	isolated bool
	nodes    []*machine
	client   *machine // of who exports the volume
	blocked  map[cut]bool
}

// cut is a direction in which nothing gets through.
type cut struct{ from, to *machine }

// A machine runs one process, again and again.
type machine struct {
	name string
	ip   string
	ns   string // "": that of the test
	dir  string // its disk
	log  string // file that the processes write to
	api  string
	boot string // file that is shown as the kernel's boot ID
	args []string

	// mayEnd: a command, which says so and ends when no node answers at its start.
	mayEnd bool

	mu     sync.Mutex // guards what follows
	p      *exec.Cmd  // nil: none runs
	exited chan struct{}
	ending bool      // it was told to
	served bool      // since it was started last
	again  time.Time // when to start it again, as it ended before it served; zero: not
	err    error     // of a process that ended though nobody had told it to
}

// diskSize is what a machine's disk has, far more than a test writes.
const diskSize = 4 << 30

// restartPause is between the end of a command and its next start, as a service
// manager has it.
const restartPause = time.Second

// newRack sets machines up. What is missing to isolate them is told.
func newRack(t *testing.T, dir string, nodes int) *rack {
	t.Helper()
	r := &rack{t: t, dir: dir, tag: fmt.Sprintf("torus%d", os.Getpid()), blocked: map[cut]bool{}}
	if err := canIsolate(); err != nil {
		cannotPart(t, "no partitions, full disks and reboots: %v", err)
	} else {
		r.isolated = true
		r.must("ip", "netns", "add", r.hub())
		t.Cleanup(func() { r.must("ip", "netns", "delete", r.hub()) })
		r.must("ip", "-n", r.hub(), "link", "add", "switch", "type", "bridge")
		r.must("ip", "-n", r.hub(), "link", "set", "switch", "up")
	}
	for i := range nodes {
		m := r.machine(fmt.Sprint("n", i+1), i+1)
		r.disk(m)
		r.nodes = append(r.nodes, m)
	}
	r.client = r.machine("exporter", nodes+1)
	r.client.mayEnd = true
	return r
}

// cannotPart says what a test does without on this machine; with
// TORUS_LONG_TESTS=1 that is a failure.
func cannotPart(t *testing.T, format string, args ...any) {
	t.Helper()
	if long() {
		t.Fatalf(format, args...)
	}
	t.Logf(format, args...)
}

// canIsolate says what is missing.
func canIsolate() error {
	if os.Getuid() != 0 {
		return errors.New("they need root")
	}
	for _, program := range []string{"ip", "nft", "mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(program); err != nil {
			return err
		}
	}
	out, err := exec.Command("unshare", "--net", "nft", "add", "table", "inet", "t").CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft in a network namespace: %w: %s", err, out)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return err
	}
	return nil
}

func (r *rack) hub() string { return r.tag + "-hub" }

// must runs a program of the rig.
func (r *rack) must(name string, args ...string) {
	r.t.Helper()
	command(r.t, name, args...)
}

// machine makes one, with a network cable.
func (r *rack) machine(name string, number int) *machine {
	m := &machine{name: name, ip: "127.0.0.1", dir: filepath.Join(r.dir, name), log: filepath.Join(r.dir, name+".log"),
		boot: filepath.Join(r.dir, name+".boot")}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	if !r.isolated {
		return m
	}
	m.ns, m.ip = r.tag+"-"+name, fmt.Sprint("10.77.0.", number)
	port := fmt.Sprint("port", number)
	r.must("ip", "netns", "add", m.ns)
	r.t.Cleanup(func() { r.must("ip", "netns", "delete", m.ns) })
	r.must("ip", "-n", m.ns, "link", "set", "lo", "up")
	r.must("ip", "-n", r.hub(), "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", m.ns)
	r.must("ip", "-n", r.hub(), "link", "set", port, "master", "switch", "up")
	r.must("ip", "-n", m.ns, "address", "add", m.ip+"/24", "dev", "eth0")
	r.must("ip", "-n", m.ns, "link", "set", "eth0", "up")
	r.reboot(m)
	return m
}

// disk gives a machine a file system of its own.
func (r *rack) disk(m *machine) {
	if !r.isolated {
		return
	}
	image := m.dir + ".img"
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(diskSize), f.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.must("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", image)
	r.must("mount", "-o", "loop", image, m.dir)
	r.t.Cleanup(func() { r.must("umount", m.dir) })
}

// data is a machine's data directory.
func (m *machine) data() string { return filepath.Join(m.dir, "data") }

// wrap returns the command line that runs a program on a machine, in the same
// process.
func (m *machine) wrap(args ...string) []string {
	if m.ns == "" {
		return args
	}
	const rebooted = `mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"`
	return append([]string{"ip", "netns", "exec", m.ns, "sh", "-c", rebooted, "sh", m.boot}, args...)
}

// reboot has the machine's next process see another boot ID.
func (r *rack) reboot(m *machine) {
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err == nil {
		// A new file: what runs sees the old one as long as it lives.
		_ = os.Remove(m.boot) // there is none the first time
		err = os.WriteFile(m.boot, id, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// start runs the machine's process, unless it runs. What comes from served is nil
// when it serves.
func (r *rack) start(m *machine) (served <-chan error) {
	r.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.p != nil {
		return nil
	}
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	fmt.Fprintf(log, "%s ==== torus %q\n", time.Now().UTC().Format(time.RFC3339Nano), m.args)
	line := m.wrap(append([]string{torus(r.t), "-o", "json"}, m.args...)...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	banner := make(chan error, 1)
	m.p, m.exited, m.ending, m.served, m.again = cmd, make(chan struct{}), false, false, time.Time{}
	go m.watch(cmd, out, banner)
	return banner
}

// watch waits until a process serves, and until it ends.
func (m *machine) watch(cmd *exec.Cmd, out io.Reader, served chan<- error) {
	var running runningJSON
	err := json.NewDecoder(out).Decode(&running)
	m.mu.Lock()
	m.served = err == nil
	m.api = cmp.Or(m.api, running.API)
	m.mu.Unlock()
	served <- err
	err = cmd.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.ending:
	case !m.served && m.mayEnd:
		m.again = time.Now().Add(restartPause)
	case m.err == nil:
		m.err = fmt.Errorf("%s ended by itself: %v", m.name, err)
	}
	m.p = nil
	close(m.exited)
}

// found starts a machine for the first time, and waits until it serves.
func (r *rack) found(m *machine, args ...string) {
	r.t.Helper()
	m.args = args
	select {
	case err := <-r.start(m):
		if err != nil {
			r.t.Fatalf("torus %q: %v\n%s", args, err, r.tail(m))
		}
	case <-time.After(patience):
		r.t.Fatalf("torus %q: not serving after %v\n%s", args, patience, r.tail(m))
	}
}

// signal sends a signal to a machine's process. exits: it is to end.
func (m *machine) signal(s syscall.Signal, exits bool) (exited <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.p == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	m.ending = m.ending || exits
	_ = m.p.Process.Signal(s) // it may have ended
	return m.exited
}

// kill ends a machine's process as a crash would.
func (m *machine) kill() { <-m.signal(syscall.SIGKILL, true) }

// stop asks a machine's process to end.
func (r *rack) stop(m *machine) {
	r.t.Helper()
	select {
	case <-m.signal(syscall.SIGTERM, true):
	case <-time.After(patience):
		r.t.Fatalf("%s still runs %v after SIGTERM", m.name, patience)
	}
}

// look returns why a machine's process ended though nobody had told it to. One that
// gave up before it served is started again.
func (r *rack) look(m *machine) error {
	m.mu.Lock()
	err, again := m.err, m.again
	m.mu.Unlock()
	if !again.IsZero() && time.Now().After(again) {
		r.start(m)
	}
	return err
}

// tail returns the end of a machine's log.
func (r *rack) tail(m *machine) string {
	b, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// torus runs a command from the exporter's machine.
func (r *rack) torus(args ...string) (string, error) {
	var apis []string
	for _, m := range r.nodes {
		if m.api != "" {
			apis = append(apis, m.api)
		}
	}
	line := r.client.wrap(append([]string{torus(r.t), "--cluster", strings.Join(apis, ",")}, args...)...)
	ctx, cancel := context.WithTimeout(r.t.Context(), settlePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("torus %q: %w: %s", args, err, &stderr)
	}
	return string(out), nil
}

// block has nothing get through any more in some directions, or lets it again.
func (r *rack) block(cuts []cut, blocked bool) {
	r.t.Helper()
	for _, c := range cuts {
		if blocked {
			r.blocked[c] = true
		} else {
			delete(r.blocked, c)
		}
	}
	for _, m := range append(slices.Clone(r.nodes), r.client) {
		rules := "add table inet torture\ndelete table inet torture\nadd table inet torture\n" +
			"add chain inet torture in { type filter hook input priority 0; }\n"
		for c := range r.blocked {
			if c.to == m {
				rules += "add rule inet torture in ip saddr " + c.from.ip + " drop\n"
			}
		}
		cmd := exec.Command("ip", "netns", "exec", m.ns, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			r.t.Fatalf("nft: %v: %s\n%s", err, out, rules)
		}
	}
}

// fill takes all that is free on a machine's disk, or gives it back. The last of it
// goes as fast as a disk can be written: a node has that time to give way.
func (r *rack) fill(m *machine, full bool) {
	r.t.Helper()
	name := filepath.Join(m.dir, "filler")
	if !full {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.t.Fatal(err)
		}
		return
	}
	f, err := os.Create(name)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		r.t.Fatal(err)
	}
	const slowly, step = 512 << 20, 32 << 20
	size, free := int64(0), int64(st.Bavail)*st.Bsize
	for piece := max(free-slowly, step); size < free; piece = step {
		switch err := unix.Fallocate(int(f.Fd()), 0, size, min(piece, free-size)); {
		case err == nil:
			size += piece
		case errors.Is(err, unix.ENOSPC): // others have taken some
			free = size + (free-size)/2
		case !errors.Is(err, unix.EINTR):
			r.t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// stopAll ends all that runs, stopped or not.
func (r *rack) stopAll() {
	for _, m := range append(slices.Clone(r.nodes), r.client) {
		m.kill()
	}
}
