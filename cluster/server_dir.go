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
// has lost it, and must not quietly become an empty cluster. Until then nobody
// could write a record, so what a killed first start left is dead (I8).
type dirRecord struct {
	Format  int    `json:"format"`
	Cluster ID     `json:"cluster"`
	Node    string `json:"node"`
	Peer    string `json:"peer"` // the address under which the member was founded
	Founded bool   `json:"founded"`
}

const dirFormat = 1

// claimDir checks that the directory is this member's, or makes it so.
func claimDir(o ServerOptions) error {
	path := filepath.Join(o.Dir, "torus.json")
	r, err := readDirRecord(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && exists(memberDir(o.Dir)):
		return fmt.Errorf("directory %s: %w: it has etcd's data, but no torus.json that says whose", o.Dir, ErrCorrupt)
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return err
		}
		return writeDirRecord(path, o.dirRecord())
	case err != nil:
		return err
	case r.Cluster != o.Cluster:
		return fmt.Errorf("directory %s belongs to %w: %s, not %s", o.Dir, ErrOtherCluster, r.Cluster, o.Cluster)
	case r.Node != o.Node.String():
		return fmt.Errorf("%w: directory %s belongs to node %s, not %v", ErrInvalid, o.Dir, r.Node, o.Node)
	case !r.Founded:
		return foundAnew(o)
	case r.Peer != o.addr(o.PeerPort):
		return fmt.Errorf("%w: directory %s was founded with the peer address %s, which can't become %s yet",
			ErrInvalid, o.Dir, r.Peer, o.addr(o.PeerPort))
	case !exists(filepath.Join(memberDir(o.Dir), "wal")):
		return fmt.Errorf("directory %s: %w: the records of cluster %s were here and are gone", o.Dir, ErrCorrupt, r.Cluster)
	}
	return nil
}

// foundAnew clears away what a first start that did not succeed has left: half
// written data, under ports that may have been the reason.
func foundAnew(o ServerOptions) error {
	if err := os.RemoveAll(memberDir(o.Dir)); err != nil {
		return err
	}
	return writeDirRecord(filepath.Join(o.Dir, "torus.json"), o.dirRecord())
}

// markFounded records that etcd's data is there from now on.
func markFounded(o ServerOptions) error {
	path := filepath.Join(o.Dir, "torus.json")
	r, err := readDirRecord(path)
	if err != nil || r.Founded {
		return err
	}
	r.Founded = true
	return writeDirRecord(path, r)
}

func (o ServerOptions) dirRecord() dirRecord {
	return dirRecord{Format: dirFormat, Cluster: o.Cluster, Node: o.Node.String(), Peer: o.addr(o.PeerPort)}
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
	f, err := os.CreateTemp(filepath.Dir(path), ".torus.json-*")
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
