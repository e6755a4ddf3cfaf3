package main_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// get asks a node's API.
func get(t *testing.T, p *process, path string) (status int, body string) {
	t.Helper()
	resp, err := http.Get("http://" + p.running.API + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestAPI: endpoints, health and metrics, and nothing else.
func TestAPI(t *testing.T) {
	p := startDev(t, t.TempDir(), "--size", "64MiB")
	var about struct {
		Cluster string
		Etcd    []string
		Exports []struct{ Address string }
	}
	status, body := get(t, p, "/v1/endpoints")
	if err := json.Unmarshal([]byte(body), &about); err != nil || status != 200 ||
		len(about.Cluster) != 16 || len(about.Etcd) != 1 || len(about.Exports) != 2 {
		t.Errorf("endpoints: %d %s", status, body)
	}
	if status, body = get(t, p, "/health"); status != 200 || !strings.Contains(body, `"healthy": true`) {
		t.Errorf("health: %d %s", status, body)
	}
	c := dial(t, p)
	if err := errors.Join(<-c.write(make([]byte, 8192), 0).done, <-c.flush().done); err != nil {
		t.Fatal(err)
	}
	_, body = get(t, p, "/metrics")
	for _, want := range []string{
		"torus_healthy 1\n", "torus_nbd_writes_total 1\n", "torus_nbd_written_bytes_total 8192\n", "torus_nbd_flushes_total 1\n",
		"torus_store_live_bytes 8192\n", "torus_nbd_connections 1\n", "torus_nbd_volumes_attached 1\n", "# TYPE torus_store_syncs_total counter\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
	for _, path := range []string{"/", "/v1", "/debug/pprof/", "/metrics/x"} {
		if status, _ := get(t, p, path); status != 404 {
			t.Errorf("%s: %d", path, status)
		}
	}
	p.stop()
}

// dial opens vol1.
func dial(t *testing.T, p *process) *nbdClient {
	t.Helper()
	c, err := dialNBD(p.running.NBD[0], "vol1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// TestIdle: a fresh node serves soon, and is small.
func TestIdle(t *testing.T) {
	p := startDev(t, t.TempDir())
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("serving after %v, resident %d MB", p.took, kb>>10)
	if kb > 100<<10 {
		t.Errorf("an idle node takes %d MB, more than 100", kb>>10)
	}
	if p.took > 3*time.Second {
		t.Errorf("serving after %v, more than 3s", p.took)
	}
}

// TestPortInUse: a second node on the same ports is refused, and told which
// flag helps; it leaves nothing behind.
func TestPortInUse(t *testing.T) {
	p := startDev(t, t.TempDir())
	_, port, err := net.SplitHostPort(p.running.API)
	if err != nil {
		t.Fatal(err)
	}
	out := refused(t, 4, torus(t), "dev", "--port", port, "--nbd", "127.0.0.1:0")
	want := fmt.Sprintf("torus: API on %s: bind: address already in use: choose another base port with --port, or any free one with --port 0\n", p.running.API)
	if out != want {
		t.Errorf("it said\n%swant\n%s", out, want)
	}
	base, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	// Nothing is written: with another port the directory is as good as new.
	dir := t.TempDir()
	out = refused(t, 4, torus(t), "dev", "--data-dir", dir, "--port", strconv.Itoa(base-2), "--nbd", "127.0.0.1:0")
	if want := fmt.Sprintf("torus: etcd on 127.0.0.1:%d: bind: address already in use", base); !strings.HasPrefix(out, want) {
		t.Errorf("it said\n%swant\n%s", out, want)
	}
	startDev(t, dir).stop()
	out = refused(t, 4, torus(t), "dev", "--port", "0", "--nbd", p.running.NBD[0])
	want = fmt.Sprintf("torus: NBD on %s: bind: address already in use: choose another address\n", p.running.NBD[0])
	if out != want {
		t.Errorf("it said\n%swant\n%s", out, want)
	}
	p.stop()
}

// TestStopUnderLoad: SIGTERM answers what is under way, and detaches clean. What
// was acknowledged is there.
func TestStopUnderLoad(t *testing.T) {
	dir := t.TempDir()
	p := startDev(t, dir, "--size", "64MiB")
	c := dial(t, p)
	var acknowledged int
	var wg sync.WaitGroup
	first := make(chan struct{})
	wg.Go(func() {
		page := make([]byte, 4096)
		for i := range 16384 {
			fill(page, i, 1)
			if <-c.write(page, int64(i)*4096).done != nil {
				return
			}
			acknowledged++
			if i == 100 {
				close(first)
			}
		}
	})
	<-first
	p.stop()
	wg.Wait()

	p = startDev(t, dir)
	if !strings.Contains(volumeJSON(t, p), `"clean": true`) {
		t.Error("not detached clean")
	}
	c = dial(t, p)
	got, want := make([]byte, 4096), make([]byte, 4096)
	for i := range acknowledged {
		if err := <-c.read(got, int64(i)*4096).done; err != nil {
			t.Fatal(err)
		}
		fill(want, i, 1)
		if string(got) != string(want) {
			t.Fatalf("page %d of %d is lost", i, acknowledged)
		}
	}
	p.stop()
}

func volumeJSON(t *testing.T, p *process) string {
	t.Helper()
	return command(t, torus(t), "-o", "json", "volume", "show", "vol1", "--cluster", p.running.API)
}

// TestDelete: a volume with a client is busy; deleted, its space comes back
// though nobody reads the records.
func TestDelete(t *testing.T) {
	t.Parallel() // it mostly waits for the volume to be let go
	p := startNode(t, "init", "--data-dir", t.TempDir(), "--port", "0", "--nbd", "127.0.0.1:0", "--replicas", "1")
	command(t, torus(t), "volume", "create", "vol1", "64M", "--cluster", p.running.API)
	c := dial(t, p)
	data := make([]byte, 1<<20)
	rand.Read(data)
	for i := range 32 {
		if err := <-c.write(data, int64(i)<<20).done; err != nil {
			t.Fatal(err)
		}
	}
	out := refused(t, 4, torus(t), "volume", "delete", "vol1", "--cluster", p.running.API)
	if !strings.Contains(out, "volume vol1: attached by node") || !strings.Contains(out, "disconnect its clients") {
		t.Errorf("it said\n%s", out)
	}
	c.close()
	waitFor(t, "the volume to be let go", func() bool { return strings.Contains(volumeJSON(t, p), `"attached": null`) })
	if !strings.Contains(metric(t, p, "torus_store_live_bytes"), strconv.Itoa(32<<20)) {
		t.Errorf("live: %s", metric(t, p, "torus_store_live_bytes"))
	}
	command(t, torus(t), "volume", "delete", "vol1", "--cluster", p.running.API)
	waitFor(t, "its pages to be dropped", func() bool { return metric(t, p, "torus_store_live_bytes") == "0" })
	p.stop()
}

// metric returns one value of /metrics.
func metric(t *testing.T, p *process, name string) string {
	t.Helper()
	_, body := get(t, p, "/metrics")
	_, rest, ok := strings.Cut(body, "\n"+name+" ")
	if !ok {
		t.Fatalf("no metric %s", name)
	}
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

// TestTLS: with a certificate NBD is encrypted, and only those who show one of
// the authority's get in.
func TestTLS(t *testing.T) {
	need(t, "nbdinfo")
	dir := t.TempDir()
	makeCertificates(t, dir)
	file := func(name string) string { return filepath.Join(dir, name) }
	p := startDev(t, t.TempDir(), "--size", "64MiB",
		"--tls-cert", file("server-cert.pem"), "--tls-key", file("server-key.pem"), "--tls-ca", file("ca-cert.pem"))
	if !strings.HasPrefix(p.uri(), "nbds://") {
		t.Errorf("the URI is %s", p.uri())
	}
	out := command(t, "nbdinfo", p.uri()+"?tls-certificates="+dir)
	if !strings.Contains(out, "with TLS") {
		t.Errorf("nbdinfo:\n%s", out)
	}
	refused(t, 1, "nbdinfo", strings.Replace(p.uri(), "nbds://", "nbd://", 1))
	stranger := t.TempDir() // knows the authority, and has no certificate of it
	command(t, "cp", file("ca-cert.pem"), stranger)
	refused(t, 1, "nbdinfo", p.uri()+"?tls-certificates="+stranger)
	p.stop()
}

// makeCertificates makes an authority, and certificates of a server and a
// client, under the names that libnbd looks for.
func makeCertificates(t *testing.T, dir string) {
	t.Helper()
	template := func(n int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		}
	}
	ca := template(1, "authority")
	ca.IsCA, ca.KeyUsage, ca.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
	_, caKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"ca", "server", "client"} {
		c, key := ca, caKey
		if name != "ca" {
			c = template(int64(i+1), name)
			if _, key, err = ed25519.GenerateKey(nil); err != nil {
				t.Fatal(err)
			}
		}
		der, err := x509.CreateCertificate(nil, c, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, filepath.Join(dir, name+"-cert.pem"), "CERTIFICATE", der)
		writePEM(t, filepath.Join(dir, name+"-key.pem"), "PRIVATE KEY", secret)
	}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestFull: a node that is full refuses writes with ENOSPC and goes on with the
// rest; when something is trimmed it takes writes again.
func TestFull(t *testing.T) {
	p := startNode(t, "init", "--data-dir", t.TempDir(), "--port", "0", "--nbd", "127.0.0.1:0", "--capacity", "1GiB", "--replicas", "1")
	command(t, torus(t), "volume", "create", "vol1", "4G", "--cluster", p.running.API)
	c := dial(t, p)
	data := make([]byte, 4<<20)
	rand.Read(data)
	var written int64
	var err error
	for ; err == nil && written < 4<<30; written += int64(len(data)) {
		err = <-c.write(data, written).done
	}
	if err == nil || err.Error() != "NBD error 28" {
		t.Fatalf("after %d bytes: %v, want ENOSPC", written, err)
	}
	if written < 256<<20 || written > 1<<30 {
		t.Errorf("1 GiB was full after %d bytes", written)
	}
	got := make([]byte, len(data))
	if err := <-c.read(got, 0).done; err != nil || !bytes.Equal(got, data) {
		t.Errorf("a read when full: %v", err)
	}
	if status, body := get(t, p, "/health"); status != 503 || !strings.Contains(body, "no space left") {
		t.Errorf("health: %d %s", status, body)
	}
	for off := int64(0); off < written; off += 64 << 20 {
		if err := <-c.send(nbdTrim, off, 64<<20, nil, nil).done; err != nil {
			t.Fatalf("a trim when full: %v", err)
		}
	}
	if err := <-c.flush().done; err != nil {
		t.Fatal(err)
	}
	waitFor(t, "writes to be taken again", func() bool { return <-c.write(data, 0).done == nil })
	if err := <-c.read(got, 0).done; err != nil || !bytes.Equal(got, data) {
		t.Errorf("a read after that: %v", err)
	}
	p.stop()
}

// TestSecondSignal: one signal more ends the program at once, as the first may
// take its time with a disk that hangs.
func TestSecondSignal(t *testing.T) {
	p := startDev(t, t.TempDir())
	waitFor(t, "two signals to end it", func() bool {
		_ = p.cmd.Process.Signal(syscall.SIGINT) // ended: that is what is waited for
		select {
		case <-p.exited:
			return true
		default:
			return false
		}
	})
}

// TestTemporary: without a data directory nothing is left, whatever went wrong.
func TestTemporary(t *testing.T) {
	tmp := t.TempDir()
	cmd := exec.Command(torus(t), "dev", "--port", "0", "--nbd", "127.0.0.1:0", "--tls-cert", "none", "--tls-key", "none")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "none") {
		t.Errorf("it ran:\n%s", out)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}
