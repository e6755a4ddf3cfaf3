package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// dirRecord is the file torus.json in a member's directory: whose it is. It is
// written before etcd is first started there, and again, with Founded, when that
// start has succeeded: a directory that was founded and has no data is one that
// has lost it, and must not quietly become an empty cluster, nor an empty member of
// one. Until then nobody could write a record, so what a killed first start left is
// dead (I8); after a join that was killed it goes on, see join.
type dirRecord struct {
	Format  int    `json:"format"`
	Cluster ID     `json:"cluster"`
	Node    string `json:"node"`
	Peer    string `json:"peer"`             // the address under which the member is reached by others
	Joined  bool   `json:"joined,omitempty"` // it became a member of a cluster that was there
	Member  hexID  `json:"member,omitempty"` // etcd's number of it, once known
	Founded bool   `json:"founded"`          // its data is there
}

const dirFormat = 1

func recordPath(dir string) string { return filepath.Join(dir, "torus.json") }

// hasLog reports whether there is a member's log: etcd renames it into its place
// when it is whole.
func hasLog(dir string) bool { return exists(filepath.Join(memberDir(dir), "wal")) }

// claimDir checks that the directory is this member's, or makes it so.
func claimDir(o ServerOptions) (dirRecord, error) {
	r, err := readDirRecord(recordPath(o.Dir))
	switch {
	case errors.Is(err, fs.ErrNotExist) && exists(memberDir(o.Dir)):
		return r, fmt.Errorf("directory %s: %w: it has etcd's data, but no torus.json that says whose", o.Dir, ErrCorrupt)
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return r, err
		}
		return o.dirRecord(), writeDirRecord(recordPath(o.Dir), o.dirRecord())
	case err != nil:
		return r, err
	case r.Cluster != o.Cluster:
		return r, fmt.Errorf("directory %s belongs to %w: %s, not %s", o.Dir, ErrOtherCluster, r.Cluster, o.Cluster)
	case r.Node != o.Node.String():
		return r, fmt.Errorf("%w: directory %s belongs to node %s, not %v", ErrInvalid, o.Dir, r.Node, o.Node)
	case !r.Founded && !r.Joined:
		return foundAnew(o)
	case r.Founded && !hasLog(o.Dir):
		return r, fmt.Errorf("directory %s: %w: the records of cluster %s were here and are gone: "+
			`if other nodes still have them, remove this one with "torus node remove" and join anew`, o.Dir, ErrCorrupt, r.Cluster)
	case r.Peer != o.addr(o.PeerPort): // etcd is told once it runs: see movePeer
		r.Peer = o.addr(o.PeerPort)
		return r, writeDirRecord(recordPath(o.Dir), r)
	}
	return r, nil
}

// foundAnew clears away what a first start that did not succeed has left: half
// written data, under ports that may have been the reason.
func foundAnew(o ServerOptions) (dirRecord, error) {
	if err := os.RemoveAll(memberDir(o.Dir)); err != nil {
		return dirRecord{}, err
	}
	return o.dirRecord(), writeDirRecord(recordPath(o.Dir), o.dirRecord())
}

// markFounded records that etcd's data is there from now on, and whose.
func markFounded(o ServerOptions, id MemberID) error {
	r, err := readDirRecord(recordPath(o.Dir))
	if err != nil || r.Founded && r.Member == hexID(id) {
		return err
	}
	r.Founded, r.Member = true, hexID(id)
	return writeDirRecord(recordPath(o.Dir), r)
}

// HasMember reports whether a directory is that of a member that has run, and
// is to be started again. ErrFormat, ErrCorrupt.
func HasMember(dir string) (bool, error) {
	r, err := readDirRecord(recordPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return r.Founded, err
}

// ClearServer makes the directory of a member that was removed one in which another
// member can join. Its server must be closed. The record goes first, as a log that it
// doesn't name is cleared away by the next join.
func ClearServer(dir string) error {
	r, err := readDirRecord(recordPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r.Joined, r.Founded, r.Member = true, false, 0
	if err := writeDirRecord(recordPath(dir), r); err != nil {
		return err
	}
	return os.RemoveAll(memberDir(dir))
}

func (o ServerOptions) dirRecord() dirRecord {
	return dirRecord{
		Format: dirFormat, Cluster: o.Cluster, Node: o.Node.String(),
		Peer: o.addr(o.PeerPort), Joined: o.Join != nil,
	}
}

func readDirRecord(path string) (r dirRecord, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("file %s: %w: %v", path, ErrCorrupt, err)
	}
	if r.Format > dirFormat {
		return r, fmt.Errorf("file %s: %w: format %d, this program knows up to %d: it is too old",
			path, ErrFormat, r.Format, dirFormat)
	}
	if r.Format < 1 {
		return r, fmt.Errorf("file %s: %w: format %d", path, ErrCorrupt, r.Format)
	}
	return r, nil
}

// writeDirRecord replaces the file, durably.
func writeDirRecord(path string, r dirRecord) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
