package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// A Snapshot is a file with the records as they were at one moment: the database
// of an etcd member followed by its SHA-256, which is also what "etcdctl snapshot
// restore" takes.
type Snapshot struct {
	Path     string
	Bytes    int64
	Taken    time.Time
	Revision Revision
	Cluster  ID
	Volumes  int
}

// Save writes the records, as the member that is asked has them, to a new file,
// whole and verified or not at all. ErrExists if the file is there.
func (e *Client) Save(ctx context.Context, path string) (Snapshot, error) {
	s, err := e.save(ctx, path)
	if err != nil {
		return s, fmt.Errorf("snapshot %s: %w", path, err)
	}
	return s, nil
}

// Save is Client.Save of this member, whether or not there is a quorum.
func (s *Server) Save(ctx context.Context, path string) (Snapshot, error) {
	return s.kv.Save(ctx, path)
}

func (e *Client) save(ctx context.Context, path string) (s Snapshot, err error) {
	if _, err := os.Lstat(path); err == nil {
		return s, ErrExists
	}
	f, err := os.CreateTemp(filepath.Dir(path), newSnapshot+"*")
	if err != nil {
		return s, err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	r, err := e.client.Snapshot(ctx)
	if err != nil {
		return s, errors.Join(e.failed(ctx, err), f.Close())
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, r.Close(), f.Sync(), f.Close()); err != nil {
		return s, err
	}
	if s, err = readSnapshot(f.Name()); err != nil {
		return s, err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename it replaces nothing
		return s, err
	}
	s.Path = path
	return s, syncDir(filepath.Dir(path))
}

// newSnapshot begins the name of a file that is being written.
const newSnapshot = ".new-snapshot-"

// ReadSnapshot verifies a file and says what it has. ErrCorrupt if it is not whole,
// or has no cluster's records.
func ReadSnapshot(path string) (Snapshot, error) {
	s, err := readSnapshot(path)
	if err != nil {
		return s, fmt.Errorf("snapshot %s: %w", path, err)
	}
	return s, nil
}

func readSnapshot(path string) (s Snapshot, err error) {
	s.Path = path
	if s.Bytes, s.Taken, err = verifySnapshot(path); err != nil {
		return s, err
	}
	pairs, rev, err := readDatabase(path)
	if err != nil {
		return s, err
	}
	s.Revision = rev
	for _, p := range pairs {
		if strings.HasPrefix(p.Key, keyVolumes) {
			s.Volumes++
		}
	}
	info, err := infoOf(pairs)
	s.Cluster = info.ID
	return s, err
}

// infoOf returns the first record of a cluster, which must be among pairs.
func infoOf(pairs []Pair) (Info, error) {
	i, is := slices.BinarySearchFunc(pairs, keyCluster, func(p Pair, key string) int { return strings.Compare(p.Key, key) })
	if !is {
		return Info{}, fmt.Errorf("%w: it has no record of a cluster", ErrCorrupt)
	}
	var r infoRecord
	err := decode(pairs[i].Key, pairs[i].Value, &r)
	return r.info(), err
}

// verifySnapshot compares a file with the hash at its end.
func verifySnapshot(path string) (size int64, taken time.Time, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, taken, err
	}
	defer f.Close() // nothing was written
	st, err := f.Stat()
	if err != nil {
		return 0, taken, err
	}
	const sector = 512 // a database is a multiple of it
	if st.Size()%sector != sha256.Size {
		return 0, taken, fmt.Errorf("%w: %d bytes are not a database with its hash: it is cut off, or no snapshot", ErrCorrupt, st.Size())
	}
	hash := sha256.New()
	if _, err := io.CopyN(hash, f, st.Size()-sha256.Size); err != nil {
		return 0, taken, err
	}
	want, err := io.ReadAll(f)
	if err == nil && !bytes.Equal(hash.Sum(nil), want) {
		err = fmt.Errorf("%w: its bytes do not have the hash at its end", ErrCorrupt)
	}
	return st.Size(), st.ModTime(), err
}

// readDatabase returns what is below keyRoot in a member's database that no member
// has open, in the order of keys, and the newest revision.
//
//	bucket "key": 8 bytes revision, '_', 8 bytes place in it [, 't': the key was deleted] → mvccpb.KeyValue
func readDatabase(path string) ([]Pair, Revision, error) {
	db, err := bbolt.Open(path, 0o400, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer db.Close() // nothing was written
	all := map[string]Pair{}
	var newest Revision
	err = db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		if b == nil {
			return fmt.Errorf("%w: no etcd member's database", ErrCorrupt)
		}
		return b.ForEach(func(rev, value []byte) error { // in the order of revisions
			var kv mvccpb.KeyValue
			if err := proto.Unmarshal(value, &kv); err != nil || len(rev) < 17 {
				return fmt.Errorf("%w: etcd's entry %x: %v", ErrCorrupt, rev, err)
			}
			newest = Revision(binary.BigEndian.Uint64(rev))
			key := string(kv.Key)
			if len(rev) > 17 {
				delete(all, key)
			} else if strings.HasPrefix(key, keyRoot) {
				all[key] = Pair{Key: key, Value: kv.Value, Mod: newest, Lease: LeaseID(kv.Lease)}
			}
			return nil
		})
	})
	pairs := slices.SortedFunc(maps.Values(all), func(a, b Pair) int { return cmp.Compare(a.Key, b.Key) })
	return pairs, newest, err
}

// Snapshots are kept in a directory under names that say when they were taken.
const (
	snapshotName  = "records-20060102T150405Z.db"
	snapshotEvery = time.Hour
	snapshotsKept = 24
)

// SnapshotsIn returns the snapshots that a member has kept in a directory, oldest
// first, and what is wrong with those that are not whole.
func SnapshotsIn(dir string) (whole []Snapshot, damaged []error) {
	paths, err := snapshotPaths(dir)
	if err != nil {
		return nil, []error{err}
	}
	for _, path := range paths {
		s, err := ReadSnapshot(path)
		if err != nil {
			damaged = append(damaged, err)
			continue
		}
		s.Taken, _ = time.Parse(snapshotName, filepath.Base(path)) // it was listed
		whole = append(whole, s)
	}
	return whole, damaged
}

// snapshotPaths lists the snapshots in a directory, oldest first; none if it is not there.
func snapshotPaths(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var paths []string
	for _, e := range entries { // in the order of names, which is that of times
		if _, err := time.Parse(snapshotName, e.Name()); err == nil {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, err
}

// KeepSnapshot saves the member's records into a directory of snapshots when the
// newest there is an hour old, and removes all but the last 24. It returns when the
// next one is due. Nothing else writes to the directory.
func (s *Server) KeepSnapshot(ctx context.Context, dir string, now time.Time) (next time.Time, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return now.Add(snapshotEvery), err
	}
	paths, err := snapshotPaths(dir)
	if err != nil {
		return now.Add(snapshotEvery), err
	}
	if due := snapshotDue(paths, now); now.Before(due) {
		return due, nil
	}
	left, err := filepath.Glob(filepath.Join(dir, newSnapshot+"*")) // by a process that was killed
	if err != nil {
		return now.Add(snapshotEvery), err
	}
	path := filepath.Join(dir, now.UTC().Format(snapshotName))
	if _, err = s.Save(ctx, path); err != nil {
		return now.Add(snapshotEvery), errors.Join(err, removeAll(left))
	}
	paths = append(paths, path)
	return now.Add(snapshotEvery), errors.Join(removeAll(left), removeAll(paths[:max(0, len(paths)-snapshotsKept)]))
}

func removeAll(paths []string) error {
	var errs []error
	for _, path := range paths {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

// snapshotDue returns when the next snapshot is to be taken. One that is said to be
// of the future, by a clock that was put back since, is not waited for.
func snapshotDue(paths []string, now time.Time) time.Time {
	due := now
	for _, path := range paths {
		taken, err := time.Parse(snapshotName, filepath.Base(path))
		if err == nil && !taken.After(now) && taken.Add(snapshotEvery).After(due) {
			due = taken.Add(snapshotEvery)
		}
	}
	return due
}
