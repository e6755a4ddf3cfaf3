package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"torus/cluster"
	"torus/node"
)

// TestFlagsOverSettings: only what is given replaces what a node was set up with.
func TestFlagsOverSettings(t *testing.T) {
	tls := node.NBD{Listen: []string{"/old"}, Cert: "/c", Key: "/k", ClientCA: "/ca"}
	for _, c := range []struct {
		what     string
		flags    nbdFlags
		want     node.NBD
		insecure bool
	}{
		{"nothing", nbdFlags{}, tls, false},
		{"an address", nbdFlags{NBD: []string{"/new"}}, node.NBD{Listen: []string{"/new"}, Cert: "/c", Key: "/k", ClientCA: "/ca"}, false},
		{"TLS", nbdFlags{tlsFlags: tlsFlags{TLSCert: "/c2", TLSKey: "/k2"}}, node.NBD{Listen: []string{"/old"}, Cert: "/c2", Key: "/k2"}, false},
		{"--insecure", nbdFlags{tlsFlags: tlsFlags{Insecure: true}}, tls, true},
	} {
		got, err := c.flags.over(node.Settings{NBD: tls})
		if err != nil || !reflect.DeepEqual(got.NBD, c.want) || got.Insecure != c.insecure {
			t.Errorf("%s: %+v insecure %v, %v, want %+v", c.what, got.NBD, got.Insecure, err, c.want)
		}
	}
}

// TestHalfFounded: in a directory whose founding did not come to its end, IDs and
// ports stay as they were written into the records begun there.
func TestHalfFounded(t *testing.T) {
	dir := t.TempDir()
	const file = `{"format":1,"id":"00000000000000ab","name":"n1","cluster":"00000000000000cd","founded":false,"listen":"127.0.0.1","port":9000}`
	if err := os.WriteFile(filepath.Join(dir, "node.json"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	have, err := node.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	zero, other := 0, 9100
	for _, c := range []struct {
		given *int
		want  int
	}{{nil, 9000}, {&zero, 9000}, {&other, 9100}} {
		dev, err1 := (&devCmd{Port: c.given}).settings(dir)
		first, err2 := (&initCmd{nodeFlags: nodeFlags{Port: c.given, Listen: ipAddr{netip.MustParseAddr("127.0.0.1")}, Roles: []string{"etcd"}}}).settings(have)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		for _, s := range []node.Settings{dev, first} {
			if s.Port != c.want || s.ID != 0xab || s.Cluster != "00000000000000cd" {
				t.Errorf("%s: port %d, ID %v, cluster %s; want port %d", s.Name, s.Port, s.ID, s.Cluster, c.want)
			}
		}
	}
	if got := basePort(nil, 0); got != node.DefaultPort {
		t.Errorf("in a new directory port %d", got)
	}
}

// TestInterrupted: Ctrl-C while the records are written is no error.
func TestInterrupted(t *testing.T) {
	for _, err := range []error{context.Canceled, cluster.ErrUnknown, cluster.ErrUnavailable} {
		if !interrupted(fmt.Errorf("found: %w", err)) {
			t.Errorf("%v counts as a failure", err)
		}
	}
	if interrupted(node.ErrLocked) {
		t.Error("a lock counts as an interruption")
	}
}

// TestListenRefused: an address that other machines can reach is refused before
// anything is written, unless --insecure says that it is meant.
func TestListenRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var out, errs bytes.Buffer
	code := Run(t.Context(), []string{"init", "--data-dir", dir, "--port", "0", "--listen", "10.0.0.1"}, &out, &errs)
	if code != exitUsage || !bytes.Contains(errs.Bytes(), []byte("10.0.0.1")) {
		t.Errorf("exit code %d: %s", code, &errs)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
}
