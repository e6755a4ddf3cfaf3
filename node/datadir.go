package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"torus/cluster"
)

// A data directory:
//
//	lock       held with flock while a process runs the node; its process ID
//	node.json  how the node was set up (Settings)
//	etcd/      the cluster's records, with the role etcd; etcd-RECOVERY/ after a recovery
//	snapshots/ of the records, the last 24 hourly ones, with the role etcd
//	store/     the pages, with the role storage

// etcdDir is where a node keeps the records of a recovery. Each has a directory of its
// own, so that members of different foundings never meet in one.
func etcdDir(dir string, r cluster.Recovery) string {
	if r == (cluster.Recovery{}) {
		return filepath.Join(dir, "etcd")
	}
	return filepath.Join(dir, "etcd-"+r.String())
}

// StoreDir is where the node of a data directory keeps its pages.
func StoreDir(dir string) string { return filepath.Join(dir, "store") }

// ErrLocked: another process runs the node of the directory.
var ErrLocked = errors.New("in use by another process")

// A dirLock keeps other processes away from a data directory. The kernel lets
// go of it when the process ends, however that comes.
type dirLock struct{ f *os.File }

// lockDir makes dir if it is not there, and locks it.
func lockDir(dir string) (*dirLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock directory %s: %w", dir, err)
		}
		return nil, fmt.Errorf("directory %s: %w%s: stop that first, or choose another --data-dir", dir, ErrLocked, lockOwner(f))
	}
	// For people only: the lock is what counts.
	err = errors.Join(f.Truncate(0), writeAt0(f, strconv.Itoa(os.Getpid())+"\n"))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &dirLock{f}, nil
}

func writeAt0(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// lockOwner says which process has the lock, if the file tells.
func lockOwner(f *os.File) string {
	b := make([]byte, 20)
	n, _ := f.ReadAt(b, 0) // short, with io.EOF
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (%d)", pid)
}

func (l *dirLock) release() error { return l.f.Close() }
