package main_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A process is a running node.
type process struct {
	t       testing.TB
	cmd     *exec.Cmd
	running runningJSON
	took    time.Duration // from exec to serving
	log     *logBuffer
	exited  chan struct{}
	err     error // of the process; after exited
}

// runningJSON is what a node prints with -o json when it serves.
type runningJSON struct {
	API     string
	DataDir string
	NBD     []string
	URIs    []string
	Volumes []struct{ URIs []string } // of "nbd serve"
}

// logBuffer keeps what a process writes to stderr.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// patience is how long anything may take before a test gives up.
const patience = 60 * time.Second

// startNode runs "torus" with args and waits until it serves. The node is
// killed when the test ends, and its log shown if the test has failed.
func startNode(t testing.TB, args ...string) *process {
	t.Helper()
	p := &process{t: t, log: &logBuffer{}, exited: make(chan struct{})}
	p.cmd = exec.Command(torus(t), append([]string{"-o", "json"}, args...)...)
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	banner := make(chan error, 1)
	go func() {
		banner <- json.NewDecoder(out).Decode(&p.running)
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill()
		if log := p.log.String(); t.Failed() && log != "" {
			t.Logf("the log of torus %q:\n%s", args, log)
		}
	})
	select {
	case err := <-banner:
		if err != nil {
			<-p.exited
			t.Fatalf("torus %q did not start: %v\n%s", args, p.err, p.log)
		}
	case <-time.After(patience):
		t.Fatalf("torus %q: not serving after %v", args, patience)
	}
	p.took = time.Since(begun)
	return p
}

// startDev runs "torus dev" on free ports, on a Unix socket in dir and on TCP.
func startDev(t testing.TB, dir string, args ...string) *process {
	t.Helper()
	return startNode(t, append([]string{"dev", "--data-dir", dir, "--port", "0",
		"--nbd", "127.0.0.1:0", "--nbd", filepath.Join(scratchDir(t), "nbd.sock")}, args...)...)
}

// scratchDir is a directory with a short path, as Unix sockets need.
func scratchDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// uri is how clients name the volume, over TCP.
func (p *process) uri() string { return p.running.URIs[0] }

// socketURI is the same over the Unix socket.
func (p *process) socketURI() string { return p.running.URIs[1] }

// kill ends the process as a crash would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.exited
}

// stop asks the process to end, and wants it to end well.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	p.ends()
}

// ends waits until the process ends, and wants it to end well.
func (p *process) ends() {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.t.Fatalf("still running after %v", patience)
	}
	if p.err != nil {
		p.t.Fatalf("it ended with %v", p.err)
	}
}

// command runs a program and returns what it printed; it must succeed.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// refused runs a program that must fail with an exit code, and returns what
// it printed.
func refused(t testing.TB, code int, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%s %q: exit code %d, want %d\n%s", name, args, got, code, out)
	}
	return string(out)
}

// waitFor waits until a condition holds.
func waitFor(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}
