package segment

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"torus/store"
)

const stateName = "store.json"

// A stateFile is who the store is.
type stateFile struct {
	Format      uint32            `json:"format"`
	Identity    store.Identity    `json:"identity"`
	Incarnation store.Incarnation `json:"incarnation"` // 0: ended by a disk error
	BootID      string            `json:"bootID"`
	SegmentSize int64             `json:"segmentSize"`
	// Founded: the log was begun, so that there is one, or it is lost.
	Founded bool `json:"founded"`

	path string
	mu   sync.Mutex
}

func random64() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:]) | 1 // never 0
}

func newIncarnation() store.Incarnation { return store.Incarnation(random64()) }

// loadState reads the state, or makes it where the directory is new.
func loadState(dir, bootID string, segmentSize int64) (*stateFile, error) {
	s := &stateFile{path: filepath.Join(dir, stateName)}
	p, err := os.ReadFile(s.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := mustBeNew(dir); err != nil {
			return nil, err
		}
		s.Format, s.Identity, s.SegmentSize = FormatVersion, store.Identity(random64()), segmentSize
	case err != nil:
		return nil, err
	default:
		if err := s.parse(p); err != nil {
			return nil, err
		}
	}
	if s.Incarnation != 0 && s.BootID == bootID {
		return s, nil
	}
	// A new store, a new boot of the machine, or a failed sync (N2).
	s.Incarnation, s.BootID = newIncarnation(), bootID
	return s, s.save()
}

// mustHaveState refuses a directory that has no store.
func mustHaveState(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, stateName)); err != nil {
		return fmt.Errorf("%s has no store: %w", dir, err)
	}
	return nil
}

func (s *stateFile) parse(p []byte) error {
	if err := json.Unmarshal(p, s); err != nil {
		return fmt.Errorf("%w: %s: %v", store.ErrCorrupt, s.path, err)
	}
	if s.Format != FormatVersion {
		return &FormatError{File: s.path, Found: s.Format}
	}
	if s.Identity == 0 || checkSegmentSize(s.SegmentSize) != nil {
		return fmt.Errorf("%w: %s: identity %v, segment size %d", store.ErrCorrupt, s.path, s.Identity, s.SegmentSize)
	}
	return nil
}

// mustBeNew refuses a directory that has data but does not say whose.
func mustBeNew(dir string) error {
	entries, err := os.ReadDir(filepath.Join(dir, segmentsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if _, ok := parseSegmentName(e.Name()); ok {
			return fmt.Errorf("%w: %s is missing, but there is %s", store.ErrCorrupt, filepath.Join(dir, stateName), filepath.Join(segmentsDir, e.Name()))
		}
	}
	return nil
}

// save replaces the file, durably.
func (s *stateFile) save() error {
	p, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := s.path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(p, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.path))
}

// founded records that the log was begun.
func (s *stateFile) founded() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Founded = true
	return s.save()
}

// disown records that the present incarnation ended.
func (s *stateFile) disown() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Incarnation = 0
	return s.save()
}

// currentBootID returns what the kernel calls this boot.
func currentBootID() (string, error) {
	p, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(p)), err
}

// A dirLock keeps a second process out of a directory.
type dirLock struct{ f *os.File }

func lockDir(dir string) (*dirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is in use by another process", ErrLocked, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return &dirLock{f}, nil
}

func (l *dirLock) release() error { return l.f.Close() }

// ErrLocked: another process has the store open.
var ErrLocked = errors.New("store is locked")
