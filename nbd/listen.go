package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Listen listens on a TCP address, HOST:PORT, or on a Unix socket if addr is
// an absolute path or begins with a dot. A Unix socket is made with mode, as
// ListenUnix says.
func Listen(addr string, mode fs.FileMode) (net.Listener, error) {
	if strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, ".") {
		return ListenUnix(addr, mode)
	}
	return net.Listen("tcp", addr)
}

// ListenUnix listens on a Unix socket that only those whom mode lets can
// connect to. A socket that a dead process left behind is replaced; one that
// answers, and anything that is not a socket, is left alone and is an error.
// Closing the listener removes the socket.
func ListenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// A socket's mode is taken over by the file that bind makes, less the
	// umask, which belongs to the whole process: so nobody connects whom
	// mode does not let, not even before the Chmod.
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) (err error) {
		cerr := rc.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), uint32(mode.Perm())) })
		return errors.Join(cerr, err)
	}}
	nl, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	l := nl.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	st, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &unixListener{UnixListener: l, path: path, made: st}, nil
}

// removeStale removes a socket nobody listens on.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("listen unix %s: exists and is not a socket", path)
	}
	nc, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		nc.Close()
		return fmt.Errorf("listen unix %s: another process serves it", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listen unix %s: cannot tell whether it is in use: %w", path, err)
	}
	return os.Remove(path)
}

// A unixListener removes its socket when closed, unless another has taken its
// place since.
type unixListener struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

func (l *unixListener) Close() error {
	if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.made) {
		os.Remove(l.path)
	}
	return l.UnixListener.Close()
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// firstActivated is the descriptor of the first socket that systemd hands
// over (sd_listen_fds(3)).
const firstActivated = 3

// Activated returns the sockets that systemd handed to this process by
// LISTEN_FDS and LISTEN_PID, none if it was not started that way. The
// variables are removed, lest a child take them for its own.
func Activated() ([]net.Listener, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(v)
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > 1024 {
		return nil, fmt.Errorf("socket activation: LISTEN_FDS is %q, not a number from 0 to 1024", fds)
	}
	return listenersOf(firstActivated, n)
}

// listenersOf makes listeners of n descriptors from first on.
func listenersOf(first, n int) (ls []net.Listener, err error) {
	for fd := first; fd < first+n; fd++ {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "LISTEN_FD_"+strconv.Itoa(fd))
		l, err := net.FileListener(f) // a copy of the descriptor
		f.Close()
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
			return nil, fmt.Errorf("socket activation: descriptor %d: %w", fd, err)
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false) // the socket is systemd's
		}
		ls = append(ls, l)
	}
	return ls, nil
}
