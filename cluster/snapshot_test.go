package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// foundServer starts a member and founds the test's cluster on it, with a node.
func foundServer(t *testing.T, o ServerOptions) (*Server, *Cluster) {
	t.Helper()
	s := startServer(t, o)
	c, err := Found(t.Context(), s.KV(), Founding{ID: testID, Replicas: 1}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RegisterNode(t.Context(), testNode(1)); err != nil {
		t.Fatal(err)
	}
	return s, c
}

// A snapshot has the records as they were, without what was deleted; of one that is
// not whole nothing is taken.
func TestSnapshot(t *testing.T) {
	s, c := foundServer(t, testServerOptions(t))
	for _, name := range []string{"vol1", "vol2"} {
		if _, err := c.CreateVolume(t.Context(), VolumeSpec{Name: name, Size: 4096}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.RenameVolume(t.Context(), "vol2", "vol3"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "saved")
	saved, err := s.Save(t.Context(), path)
	if err != nil || saved.Volumes != 2 || saved.Cluster != testID || saved.Path != path || saved.Bytes == 0 {
		t.Fatalf("%+v, %v", saved, err)
	}
	want, rev, err := s.KV().Range(t.Context(), keyRoot, 0)
	if err != nil || rev != saved.Revision {
		t.Fatalf("revision %v, the snapshot has %v, %v", rev, saved.Revision, err)
	}
	got, _, err := readDatabase(path)
	if err != nil || !slices.EqualFunc(got, want, func(a, b Pair) bool {
		return a.Key == b.Key && string(a.Value) == string(b.Value) && a.Mod == b.Mod && a.Lease == b.Lease
	}) {
		t.Fatalf("it has\n%v\nwant\n%v, %v", got, want, err)
	}
	if _, err := s.Save(t.Context(), path); !errors.Is(err, ErrExists) {
		t.Errorf("saved over a file: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}

	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(b)
	flipped[len(b)/2] ^= 1
	for name, bad := range map[string][]byte{"cut": b[:len(b)-4096], "no hash": b[:len(b)-32], "flipped": flipped, "empty": nil} {
		file := filepath.Join(dir, "bad")
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSnapshot(file); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A member keeps a snapshot an hour, the last 24 of them, and clears away what a
// killed process left half written.
func TestKeepSnapshot(t *testing.T) {
	s, _ := foundServer(t, testServerOptions(t))
	dir := filepath.Join(t.TempDir(), "snapshots")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 26 {
		due, err := s.KeepSnapshot(t.Context(), dir, now)
		if err != nil || !due.Equal(now.Add(time.Hour)) {
			t.Fatalf("the next is due at %v, %v", due, err)
		}
		if again, err := s.KeepSnapshot(t.Context(), dir, now.Add(time.Minute)); err != nil || !again.Equal(due) {
			t.Fatalf("a minute later it is due at %v, %v", again, err)
		}
		if i == 0 {
			if err := os.WriteFile(filepath.Join(dir, newSnapshot+"1"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		now = due
	}
	kept, damaged := SnapshotsIn(dir)
	if len(kept) != 24 || len(damaged) != 0 || !kept[0].Taken.Equal(now.Add(-24*time.Hour)) || !kept[23].Taken.Equal(now.Add(-time.Hour)) {
		t.Errorf("kept %d, %v", len(kept), damaged)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 24 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	// One that is not whole is told, and hides none of the others.
	if err := os.Truncate(kept[5].Path, 4096); err != nil {
		t.Fatal(err)
	}
	if kept, damaged := SnapshotsIn(dir); len(kept) != 23 || len(damaged) != 1 {
		t.Errorf("kept %d, %v", len(kept), damaged)
	}
	// A clock that was put back does not stop it.
	if due := snapshotDue([]string{kept[23].Path}, kept[23].Taken.Add(-time.Minute)); due.After(kept[23].Taken) {
		t.Errorf("due %v", due)
	}
}
