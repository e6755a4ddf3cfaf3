package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"torus/cluster"
	"torus/nbd"
	"torus/store"
	"torus/volume"
)

func TestSettingsKept(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir); !errors.Is(err, ErrNoNode) {
		t.Errorf("Load of an empty directory: %v", err)
	}
	s := New(Settings{
		Name: "n1", Port: 7480, Listen: netip.MustParseAddr("::1"), Zone: "z", Host: "h", Capacity: 1 << 30, Reserve: 1 << 20,
		Replicas: 2, Roles: []cluster.Role{cluster.RoleEtcd, cluster.RoleStorage}, Founded: true, Insecure: true,
		NBD: NBD{Listen: []string{"/run/nbd.sock", "127.0.0.1:10809"}, Cert: "c", Key: "k", ClientCA: "ca", TLSOptional: true},
	})
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("read back %+v, %v\nwant %+v", got, err, s)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*new*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestSettingsRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{"format": 2, "id": 7}`:                             "unknown format 2",
		`{"id": "x"}`:                                        "unknown format 0",
		`{"format": 1`:                                       "not readable",
		`{"format": 1, "id": "123"}`:                         `node ID "123"`,
		`{"format": 1, "id": "0000000000000000"}`:            "node ID",
		`{"format": 1, "id": "0000000000000001", "more": 1}`: "more",
	} {
		_, err := decodeSettings("D/node.json", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "D/node.json") {
			t.Errorf("%s: %v, want one that names the file and %q", text, err, want)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"0000000000000001","listen":"127.0.0.1","nbd":{"listen":["x"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSettings("node.json", b)
		if err == nil && s.ID == 0 {
			t.Error("a node without an ID")
		}
	})
}

func TestCheck(t *testing.T) {
	ok := New(Settings{Name: "n1", Port: 7480})
	if err := ok.Check(); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Settings){
		"name":            func(s *Settings) { s.Name = "N 1" },
		"low port":        func(s *Settings) { s.Port = 1023 },
		"high port":       func(s *Settings) { s.Port = 65533 },
		"open API":        func(s *Settings) { s.Listen = netip.MustParseAddr("10.0.0.1") },
		"open advertised": func(s *Settings) { s.Advertise = netip.MustParseAddr("10.0.0.1") },
		"any address":     func(s *Settings) { s.Listen, s.Insecure = netip.IPv4Unspecified(), true },
		"role":            func(s *Settings) { s.NBD.Listen, s.Roles = []string{"/x"}, []cluster.Role{cluster.RoleEtcd} },
		"open NBD":        func(s *Settings) { s.NBD.Listen = []string{"0.0.0.0:10809"} },
		"all NBD":         func(s *Settings) { s.NBD.Listen = []string{":10809"} },
		"optional TLS":    func(s *Settings) { s.NBD = NBD{Listen: []string{"[::]:1"}, Cert: "c", TLSOptional: true} },
		"no port":         func(s *Settings) { s.NBD.Listen = []string{"127.0.0.1"} },
	} {
		s := ok
		change(&s)
		if err := s.Check(); !errors.Is(err, ErrSettings) {
			t.Errorf("%s: %v, want ErrSettings", what, err)
		}
	}
	for what, change := range map[string]func(*Settings){
		"insecure API": func(s *Settings) { s.Listen, s.Insecure = netip.MustParseAddr("10.0.0.1"), true },
		"advertised": func(s *Settings) {
			s.Listen, s.Advertise, s.Insecure = netip.IPv6Unspecified(), netip.MustParseAddr("10.0.0.1"), true
		},
		"insecure":     func(s *Settings) { s.NBD.Listen, s.Insecure = []string{"10.0.0.1:10809"}, true },
		"TLS":          func(s *Settings) { s.NBD = NBD{Listen: []string{"0.0.0.0:10809"}, Cert: "c"} },
		"Unix sockets": func(s *Settings) { s.NBD.Listen = []string{"/x", "./y"} },
		"localhost":    func(s *Settings) { s.NBD.Listen = []string{"localhost:1", "[::1]:1", "127.9.9.9:1"} },
	} {
		s := ok
		change(&s)
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestLockDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	l, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lockDir(dir)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("(%d)", os.Getpid())) {
		t.Errorf("a second lock: %v, want ErrLocked with our process ID", err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the directory's mode: %v, %v", st.Mode(), err)
	}
	if err := l.release(); err != nil {
		t.Fatal(err)
	}
	l, err = lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.release()
}

func TestFreePorts(t *testing.T) {
	host := netip.MustParseAddr("127.0.0.1")
	base, err := freePorts(host)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addrPort(host, base+2))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if portsFree(host, base) {
		t.Error("a block with one port in use counts as free")
	}
}

func TestDeviceErrors(t *testing.T) {
	for _, c := range []struct{ err, want error }{
		{store.ErrNoSpace, nbd.ErrNoSpace},
		{volume.ErrRange, nbd.ErrOutOfRange},
		{volume.ErrReadOnly, nbd.ErrReadOnly},
		{volume.ErrClosed, nbd.ErrShutdown},
		{volume.ErrSequence, nbd.ErrShutdown},
		{errors.Join(volume.ErrBroken, store.ErrNoSpace), nbd.ErrShutdown},
		{store.ErrInvalid, nbd.ErrInvalid},
		{store.ErrCorrupt, store.ErrCorrupt},
	} {
		got := deviceError(&volume.Error{Op: "write", Err: c.err})
		if !errors.Is(got, c.want) {
			t.Errorf("%v became %v, want %v", c.err, got, c.want)
		}
		if c.want == nbd.ErrShutdown && errors.Is(got, store.ErrNoSpace) {
			t.Errorf("%v: the cause decides the number", got)
		}
	}
}

func TestURI(t *testing.T) {
	for _, c := range []struct {
		addr net.Addr
		tls  bool
		want string
	}{
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 10809}, false, "nbd://127.0.0.1:10809/v"},
		{&net.TCPAddr{IP: net.IPv4zero, Port: 1}, true, "nbds://127.0.0.1:1/v"},
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 1}, false, "nbd://[::1]:1/v"},
		{&net.UnixAddr{Name: "/run/nbd.sock", Net: "unix"}, false, "nbd+unix:///v?socket=/run/nbd.sock"},
		{&net.UnixAddr{Name: "/run/a b&c+d%/é.sock", Net: "unix"}, false, "nbd+unix:///v?socket=/run/a%20b%26c%2Bd%25/%C3%A9.sock"},
	} {
		if got := URI(c.addr, "v", c.tls); got != c.want {
			t.Errorf("URI(%v) = %s, want %s", c.addr, got, c.want)
		}
	}
}

func TestIdleness(t *testing.T) {
	var i idleness
	released := ""
	for _, work := range []int64{0, 0, 0, 0, 0, 5, 9, 9, 9, 9, 9, 10, 10, 10, 11, 11, 11, 11} {
		if i.look(work) {
			released += "R"
		} else {
			released += "."
		}
	}
	if want := "..R......R.......R"; released != want {
		t.Errorf("released at %s, want %s", released, want)
	}
}
