package nbd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.Close()
		}
	}()
	if _, err := ListenUnix(path, 0o600); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket in use: %v", err)
	}
	l.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
}

// TestListenUnixStale: what a killed process left is replaced; files are not.
func TestListenUnixStale(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	again, err := ListenUnix(stale, 0o600)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	// The one that took its place outlives the closing of the first.
	os.Remove(stale)
	other, err := ListenUnix(stale, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if nc, err := net.Dial("unix", stale); err != nil {
		t.Errorf("closing one listener removed another's socket: %v", err)
	} else {
		nc.Close()
	}
	other.Close()

	file := filepath.Join(dir, "file")
	os.WriteFile(file, []byte("precious"), 0o600)
	link := filepath.Join(dir, "link")
	os.Symlink(file, link)
	for _, path := range []string{file, link, dir} {
		if _, err := ListenUnix(path, 0o600); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("the file is gone")
	}
}

func TestListen(t *testing.T) {
	l, err := Listen("127.0.0.1:0", 0)
	if err != nil || l.Addr().Network() != "tcp" {
		t.Fatal(l, err)
	}
	l.Close()
	l, err = Listen(filepath.Join(t.TempDir(), "s"), 0o600)
	if err != nil || l.Addr().Network() != "unix" {
		t.Fatal(l, err)
	}
	l.Close()
}

// TestActivated runs this test binary as systemd would start a service.
func TestActivated(t *testing.T) {
	if os.Getenv("NBD_TEST_ACTIVATED") == "1" {
		activated(t)
		return
	}
	if ls, err := Activated(); err != nil || ls != nil {
		t.Errorf("without the variables: %v, %v", ls, err)
	}
	tl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	ul, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ul.Close()
	tf, _ := tl.(*net.TCPListener).File()
	uf, _ := ul.(*net.UnixListener).File()
	defer tf.Close()
	defer uf.Close()
	// A shell knows its own process ID before it becomes the test.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run='^TestActivated$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "NBD_TEST_ACTIVATED=1", "LISTEN_FDS=2", "NBD_TEST_ADDR="+tl.Addr().String())
	cmd.ExtraFiles = []*os.File{tf, uf}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(ul.Addr().String()); err != nil {
		t.Errorf("systemd's socket was removed: %v", err)
	}
}

func activated(t *testing.T) {
	ls, err := Activated()
	if err != nil || len(ls) != 2 {
		t.Fatal(ls, err)
	}
	if got, want := ls[0].Addr().String(), os.Getenv("NBD_TEST_ADDR"); got != want {
		t.Errorf("address %s, want %s", got, want)
	}
	if os.Getenv("LISTEN_FDS") != "" || os.Getenv("LISTEN_PID") != "" {
		t.Error("the variables are still there")
	}
	go net.Dial("tcp", ls[0].Addr().String())
	if _, err := ls[0].Accept(); err != nil {
		t.Error(err)
	}
	for _, l := range ls {
		l.Close()
	}
}

// TestActivatedErrors: what is not a listening socket is named.
func TestActivatedErrors(t *testing.T) {
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("LISTEN_FDS", "many")
	if _, err := Activated(); err == nil || !strings.Contains(err.Error(), "many") {
		t.Errorf("error %v", err)
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenersOf(fd, 1); err == nil || !strings.Contains(err.Error(), strconv.Itoa(fd)) {
		t.Errorf("error %v, want one naming descriptor %d", err, fd)
	}
}
