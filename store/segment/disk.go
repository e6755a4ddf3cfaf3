package segment

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A disk is the directory that holds the segments. There are two: osDisk, and
// in the tests one that crashes and forgets what was not synced. No method is
// repeated into success after an error.
type disk interface {
	list() ([]string, error)
	// open opens a file, and creates it if it is not there.
	open(name string) (file, error)
	rename(from, to string) error
	remove(name string) error
	// syncDir makes creations, renames and removals durable.
	syncDir() error
	// free returns the bytes that may still be allocated.
	free() (int64, error)
}

// A file is a segment's file. Offsets and lengths are multiples of blockSize.
type file interface {
	// writeAt writes the buffers one behind the other. They are aligned to
	// blockSize in memory.
	writeAt(bufs [][]byte, off int64) error
	// readAt fills p; bytes behind the end of the file are an error. cached asks
	// for the page cache, which is right for small reads.
	readAt(p []byte, off int64, cached bool) error
	datasync() error
	// allocate gives the file its size, with blocks behind it.
	allocate(size int64) error
	punch(off, n int64) error
	// truncate cuts the file at size.
	truncate(size int64) error
	// allocated returns the bytes that the file takes on disk.
	allocated() (int64, error)
	close() error
}

type osDisk struct {
	dir string
	// direct is false where the file system refuses O_DIRECT.
	direct bool
}

var (
	_ disk = (*osDisk)(nil)
	_ file = (*osFile)(nil)
)

// newOSDisk opens dir, which exists, and finds out whether it takes O_DIRECT.
func newOSDisk(dir string) (*osDisk, error) {
	probe := filepath.Join(dir, "direct.probe")
	fd, err := unix.Open(probe, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_DIRECT, 0o600)
	if err == nil {
		unix.Close(fd)
	} else if !errors.Is(err, unix.EINVAL) {
		return nil, &os.PathError{Op: "open", Path: probe, Err: err}
	}
	if rerr := os.Remove(probe); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		return nil, rerr
	}
	return &osDisk{dir: dir, direct: err == nil}, nil
}

func (d *osDisk) list() ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (d *osDisk) open(name string) (file, error) {
	path := filepath.Join(d.dir, name)
	mode := unix.O_RDWR | unix.O_CREAT | unix.O_CLOEXEC
	buffered, err := unix.Open(path, mode, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := &osFile{path: path, fd: buffered, dfd: buffered}
	if d.direct {
		if f.dfd, err = unix.Open(path, mode|unix.O_DIRECT, 0o600); err != nil {
			unix.Close(buffered)
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
	// Reads are of single pages or whole extents: read-ahead would fetch what
	// the log is about to overwrite.
	if err := unix.Fadvise(buffered, 0, 0, unix.FADV_RANDOM); err != nil {
		f.close()
		return nil, &os.PathError{Op: "fadvise", Path: path, Err: err}
	}
	return f, nil
}

func (d *osDisk) rename(from, to string) error {
	return os.Rename(filepath.Join(d.dir, from), filepath.Join(d.dir, to))
}

func (d *osDisk) remove(name string) error { return os.Remove(filepath.Join(d.dir, name)) }

func (d *osDisk) syncDir() error { return syncDir(d.dir) }

func (d *osDisk) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: d.dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// osFile is a file with two descriptors: what is written, and large reads, go
// around the page cache; small reads go through it.
type osFile struct {
	path    string
	fd, dfd int
}

func (f *osFile) fail(op string, err error) error {
	return &os.PathError{Op: op, Path: f.path, Err: err}
}

// maxIovecs is what the kernel takes in one call.
const maxIovecs = 1024

func (f *osFile) writeAt(bufs [][]byte, off int64) error {
	var local [16]unix.Iovec // on the stack: what a batch usually has
	iov := local[:0]
	if len(bufs) > len(local) {
		iov = make([]unix.Iovec, 0, len(bufs))
	}
	for _, b := range bufs {
		if len(b) > 0 {
			v := unix.Iovec{Base: unsafe.SliceData(b)}
			v.SetLen(len(b))
			iov = append(iov, v)
		}
	}
	for len(iov) > 0 {
		n, _, errno := unix.Syscall6(unix.SYS_PWRITEV, uintptr(f.dfd),
			uintptr(unsafe.Pointer(&iov[0])), uintptr(min(len(iov), maxIovecs)), uintptr(off), 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return f.fail("pwritev", errno)
		case n == 0:
			return f.fail("pwritev", io.ErrShortWrite)
		}
		off += int64(n)
		iov = skipIovecs(iov, uint64(n))
	}
	return nil
}

// skipIovecs drops n bytes from the front: a write may end early.
func skipIovecs(iov []unix.Iovec, n uint64) []unix.Iovec {
	for len(iov) > 0 && n >= iov[0].Len {
		n -= iov[0].Len
		iov = iov[1:]
	}
	if n > 0 {
		iov[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(iov[0].Base), n))
		iov[0].Len -= n
	}
	return iov
}

// directReadSize is from where on a read that is not in the page cache goes
// around it: a copy less, and it doesn't push small pages out.
const directReadSize = 64 << 10

func (f *osFile) readAt(p []byte, off int64, cached bool) error {
	if len(p) >= directReadSize {
		cached = cached && f.inPageCache(off, len(p))
	}
	fd := f.dfd
	if cached || !aligned(p) {
		fd = f.fd
	}
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return f.fail("pread", err)
		case n == 0:
			return f.fail("pread", io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// inPageCache reports whether the page cache has all of n bytes at off. Where
// the kernel can't say (before Linux 6.5), no. A read with RWF_NOWAIT is no way
// to ask: what is not there it begins to fetch, and the direct read that follows
// fetches it once more.
func (f *osFile) inPageCache(off int64, n int) bool {
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &stat, 0)
	return err == nil && stat.Cache >= uint64(n)/blockSize
}

func (f *osFile) datasync() error {
	for {
		if err := unix.Fdatasync(f.dfd); err != unix.EINTR {
			if err != nil {
				return f.fail("fdatasync", err)
			}
			return nil
		}
	}
}

func (f *osFile) allocate(size int64) error {
	if err := unix.Fallocate(f.fd, 0, 0, size); err == nil {
		return nil
	} else if !errors.Is(err, unix.EOPNOTSUPP) {
		return f.fail("fallocate", err)
	}
	if err := unix.Ftruncate(f.fd, size); err != nil {
		return f.fail("ftruncate", err)
	}
	return nil
}

func (f *osFile) punch(off, n int64) error {
	err := unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil {
		return f.fail("punch hole", err)
	}
	return nil
}

func (f *osFile) truncate(size int64) error {
	if err := unix.Ftruncate(f.fd, size); err != nil {
		return f.fail("ftruncate", err)
	}
	return nil
}

func (f *osFile) allocated() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return 0, f.fail("fstat", err)
	}
	return st.Blocks * 512, nil
}

func (f *osFile) close() error {
	var err error
	if f.dfd != f.fd {
		err = unix.Close(f.dfd)
	}
	if cerr := unix.Close(f.fd); cerr != nil || err != nil {
		return fmt.Errorf("close %s: %w", f.path, errors.Join(err, cerr))
	}
	return nil
}

// aligned reports whether p may be handed to O_DIRECT.
func aligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%blockSize == 0
}

// alignedBuffer returns n bytes that may be handed to O_DIRECT.
func alignedBuffer(n int) []byte {
	p := make([]byte, n+blockSize)
	skip := 0
	if rest := int(uintptr(unsafe.Pointer(unsafe.SliceData(p))) % blockSize); rest != 0 {
		skip = blockSize - rest
	}
	return p[skip : skip+n : skip+n]
}
