package nbd

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Real clients: the protocol is what they speak.

// needTool skips where a client is not installed; in CI that is a failure.
func needTool(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if os.Getenv("TORUS_LONG_TESTS") == "1" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir() // fio leaves files where it runs
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// startServer serves exports on TCP and on a Unix socket until the test ends,
// and checks that it stops cleanly.
func startServer(t testing.TB, opt Options) (s *Server, tcp, unix string) {
	t.Helper()
	s, err := NewServer(opt)
	if err != nil {
		t.Fatal(err)
	}
	unix = filepath.Join(t.TempDir(), "s")
	ul, err := ListenUnix(unix, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	tl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	for _, l := range []net.Listener{ul, tl} {
		go func() { ended <- s.Serve(l) }()
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		for range 2 {
			if err := <-ended; err != ErrServerClosed {
				t.Errorf("Serve returned %v", err)
			}
		}
	})
	return s, tl.Addr().String(), unix
}

func TestNbdinfo(t *testing.T) {
	needTool(t, "nbdinfo")
	dev := newMemDevice(1 << 20)
	_, tcp, unix := startServer(t, Options{
		Exports: memExports{
			"vol1": {dev: dev, desc: "a volume"},
			"ro":   {dev: newMemDevice(5000), readOnly: true},
		},
		DefaultExport: "vol1",
	})
	for _, uri := range []string{"nbd://" + tcp + "/vol1", "nbd+unix:///?socket=" + unix} {
		var info struct {
			Exports []map[string]any `json:"exports"`
		}
		if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", uri)), &info); err != nil {
			t.Fatal(err)
		}
		e := info.Exports[0]
		for k, want := range map[string]any{
			"export-size": 1048576.0, "is_read_only": false, "is_rotational": false,
			"can_flush": true, "can_fua": true, "can_trim": true, "can_zero": true,
			"can_fast_zero": true, "can_multi_conn": true, "can_cache": true, "can_df": true,
			"block_size_minimum": 1.0, "block_size_preferred": 4096.0, "block_size_maximum": 33554432.0,
		} {
			if e[k] != want {
				t.Errorf("%s: %s is %v, want %v", uri, k, e[k], want)
			}
		}
		if c, _ := json.Marshal(e["contexts"]); string(c) != `["base:allocation"]` {
			t.Errorf("contexts are %s", c)
		}
	}
	list := tool(t, "nbdinfo", "--list", "nbd://"+tcp)
	for _, want := range []string{`export="vol1"`, `export="ro"`, "a volume", "is_read_only: true"} {
		if !strings.Contains(list, want) {
			t.Errorf("nbdinfo --list lacks %q:\n%s", want, list)
		}
	}
	dev.WriteAt([]byte{1}, 8192)
	m := strings.Join(strings.Fields(tool(t, "nbdinfo", "--map", "nbd://"+tcp+"/vol1")), " ")
	want := "0 8192 3 hole,zero 8192 4096 0 data 12288 1036288 3 hole,zero"
	if m != want {
		t.Errorf("nbdinfo --map: %s\nwant %s", m, want)
	}
}

func TestNbdcopyAndQemu(t *testing.T) {
	needTool(t, "nbdcopy", "qemu-img", "qemu-io")
	_, tcp, unix := startServer(t, Options{Exports: memExports{"v": {dev: newMemDevice(16 << 20)}}})
	img := filepath.Join(t.TempDir(), "img")
	data := make([]byte, 16<<20)
	rand.Read(data[:5<<20])
	rand.Read(data[9<<20 : 9<<20+12345])
	if err := os.WriteFile(img, data, 0o600); err != nil {
		t.Fatal(err)
	}
	uri, uuri := "nbd://"+tcp+"/v", "nbd+unix:///v?socket="+unix
	tool(t, "nbdcopy", "--flush", img, uri)
	back := img + ".out"
	tool(t, "nbdcopy", uuri, back)
	got, err := os.ReadFile(back)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("what came back differs (%v)", err)
	}
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", img, uri)
	tool(t, "qemu-io", "-f", "raw",
		"-c", "write -P 0xab 512 65536", "-c", "write -z 4k 1M", "-c", "discard 2M 1M",
		"-c", "flush", "-c", "read -P 0xab 512 3584", "-c", "read -P 0 4096 1M",
		"-c", "read -P 0 2M 1M", "-c", "write -f -P 7 1 3", "-c", "read -P 7 1 3", uri)
}

func TestFioVerify(t *testing.T) {
	needTool(t, "fio")
	_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: newMemDevice(32 << 20)}}})
	tool(t, "fio", "--name=v", "--ioengine=nbd", "--uri=nbd+unix:///v?socket="+unix, "--rw=randwrite",
		"--bsrange=4k-1m", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--size=32m")
	tool(t, "fio", "--name=u", "--ioengine=nbd", "--uri=nbd+unix:///v?socket="+unix, "--rw=randwrite",
		"--bsrange=512-64k", "--bs_unaligned", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--size=8m")
}
