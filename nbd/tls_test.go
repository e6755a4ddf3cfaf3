package nbd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pki is a directory with certificates as libnbd wants them: ca-cert.pem,
// client-cert.pem, client-key.pem; and those of the server.
type pki struct {
	dir  string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{dir: t.TempDir(), pool: x509.NewCertPool()}
	p.key = newKey(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &p.key.PublicKey, p.key)
	if err != nil {
		t.Fatal(err)
	}
	p.ca, _ = x509.ParseCertificate(der)
	p.pool.AddCert(p.ca)
	writePEM(t, p.path("ca-cert.pem"), "CERTIFICATE", der)
	p.issue(t, "server", 2)
	p.issue(t, "client", 3)
	return p
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

// issue writes NAME-cert.pem and NAME-key.pem.
func (p *pki) issue(t testing.TB, name string, serial int64) {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, p.ca, &key.PublicKey, p.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, p.path(name+"-cert.pem"), "CERTIFICATE", der)
	kder, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, p.path(name+"-key.pem"), "PRIVATE KEY", kder)
}

// server is the server's configuration.
func (p *pki) server(t testing.TB, clientCerts bool) *tls.Config {
	t.Helper()
	f := TLSFiles{Cert: p.path("server-cert.pem"), Key: p.path("server-key.pem")}
	if clientCerts {
		f.ClientCA = p.path("ca-cert.pem")
	}
	cfg, err := LoadTLS(f)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// client is a client's configuration, with a certificate if cert.
func (p *pki) client(t testing.TB, cert bool) *tls.Config {
	t.Helper()
	cfg := &tls.Config{RootCAs: p.pool, ServerName: "localhost"}
	if cert {
		pair, err := tls.LoadX509KeyPair(p.path("client-cert.pem"), p.path("client-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
}

// startTLS upgrades c.
func (c *rawClient) startTLS(cfg *tls.Config) error {
	c.t.Helper()
	c.mustAck(optStartTLS, nil)
	tc := tls.Client(c.nc, cfg)
	if err := tc.Handshake(); err != nil {
		return err
	}
	c.nc = tc
	c.br.Reset(tc)
	return nil
}

func TestTLS(t *testing.T) {
	p := newPKI(t)
	for _, mode := range []TLSMode{TLSOffered, TLSRequired} {
		_, tcp, _ := startServer(t, Options{Exports: testExports(), TLS: p.server(t, true), TLSMode: mode})
		c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
		if r := c.option(optStartTLS, []byte("x")); r[0].typ != repErrInvalid {
			t.Errorf("STARTTLS with data: %#x", uint32(r[0].typ))
		}
		c.option(optStructuredReply, nil) // to be forgotten
		if err := c.startTLS(p.client(t, true)); err != nil {
			t.Fatal(err)
		}
		if r := c.option(optStartTLS, nil); r[0].typ != repErrInvalid {
			t.Errorf("a second STARTTLS: %#x", uint32(r[0].typ))
		}
		if r := c.option(optSetMetaContext, metaData("vol1", "base:allocation")); r[0].typ != repErrInvalid {
			t.Errorf("what was negotiated in the clear still holds: %#x", uint32(r[0].typ))
		}
		c.mustAck(optExtendedHeaders, nil)
		c.mustAck(optGo, goData("vol1"))
		churn(t, c, extendedReplies, 0)
		c.write(rawRequest(extendedReplies, 0, cmdDisc, 0, 0, 0, nil))
		c.closed()
	}
}

// TestTLSRequired answers nothing in the clear.
func TestTLSRequired(t *testing.T) {
	p := newPKI(t)
	_, tcp, _ := startServer(t, Options{Exports: testExports(), TLS: p.server(t, false), TLSMode: TLSRequired})
	c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	for opt, data := range map[option][]byte{
		optList: nil, optInfo: goData("vol1"), optGo: goData("none"), optStructuredReply: nil, 99: []byte("?"),
		optSetMetaContext: nil, optExtendedHeaders: nil,
	} {
		if r := c.option(opt, data); len(r) != 1 || r[0].typ != repErrTLSRequired {
			t.Errorf("option %d: %x", opt, r)
		}
	}
	c.write(rawOption(optExportName, []byte("vol1")))
	c.closed()
	c = dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	c.mustAck(optAbort, nil)
}

func TestTLSOffered(t *testing.T) {
	p := newPKI(t)
	_, tcp, _ := startServer(t, Options{Exports: testExports(), TLS: p.server(t, false), TLSMode: TLSOffered})
	c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	c.mustAck(optGo, goData("vol1"))
}

// TestTLSBadClients: no certificate, one of another CA, no TLS at all after
// STARTTLS.
func TestTLSBadClients(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	_, tcp, _ := startServer(t, Options{Exports: testExports(), TLS: p.server(t, true), TLSMode: TLSRequired})
	foreign := other.client(t, true)
	foreign.RootCAs = p.pool
	for name, cfg := range map[string]*tls.Config{"none": p.client(t, false), "foreign": foreign} {
		c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
		if err := c.startTLS(cfg); err != nil {
			continue
		}
		// With TLS 1.3 the client learns of it at the next read.
		c.nc.Write(rawOption(optGo, goData("vol1")))
		if _, err := c.br.ReadByte(); err == nil {
			t.Errorf("certificate %s: let in", name)
		}
	}
	c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	c.mustAck(optStartTLS, nil)
	c.write(rawOption(optGo, goData("vol1")))
	if b, err := c.br.Peek(8); err == nil && bytes.Equal(b, []byte(be64(magicReply))) {
		t.Error("an option in the clear was answered after STARTTLS")
	}
}

// TestTLSInjection: bytes sent along with STARTTLS are not taken for what came
// encrypted.
func TestTLSInjection(t *testing.T) {
	p := newPKI(t)
	_, tcp, _ := startServer(t, Options{Exports: testExports(), TLS: p.server(t, false), TLSMode: TLSOffered})
	c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	c.write(append(rawOption(optStartTLS, nil), rawOption(optStructuredReply, nil)...))
	c.optionReplies(optStartTLS)
	if err := tls.Client(c.nc, p.client(t, false)).Handshake(); err == nil {
		t.Error("the handshake went through")
	}
}

func TestNbdinfoTLS(t *testing.T) {
	needTool(t, "nbdinfo", "nbdcopy")
	p := newPKI(t)
	dev := newMemDevice(8 << 20)
	_, tcp, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}, TLS: p.server(t, true), TLSMode: TLSRequired})
	tcp = strings.Replace(tcp, "127.0.0.1", "localhost", 1)
	uri := "nbds://" + tcp + "/v?tls-certificates=" + p.dir
	if out := tool(t, "nbdinfo", uri); !strings.Contains(out, "with TLS") {
		t.Errorf("nbdinfo says\n%s", out)
	}
	img := filepath.Join(t.TempDir(), "img")
	want := make([]byte, 8<<20)
	rand.Read(want)
	os.WriteFile(img, want, 0o600)
	tool(t, "nbdcopy", "--flush", img, uri)
	if !dev.holds(want, 0) {
		t.Error("the copy differs")
	}
	tool(t, "nbdcopy", uri, img+".out")
	if got, _ := os.ReadFile(img + ".out"); !bytes.Equal(got, want) {
		t.Error("the copy back differs")
	}
	if out, err := exec.Command("nbdinfo", "nbd+unix:///v?socket="+unix).CombinedOutput(); err == nil {
		t.Errorf("nbdinfo without TLS got\n%s", out)
	}
}

// TestLoadTLSErrors name the file.
func TestLoadTLSErrors(t *testing.T) {
	p := newPKI(t)
	good := TLSFiles{Cert: p.path("server-cert.pem"), Key: p.path("server-key.pem"), ClientCA: p.path("ca-cert.pem")}
	empty := p.path("empty.pem")
	os.WriteFile(empty, nil, 0o600)
	for _, tc := range []struct {
		f    TLSFiles
		want string
	}{
		{TLSFiles{Cert: good.Cert}, "both"},
		{TLSFiles{Cert: p.path("no.pem"), Key: good.Key}, "no.pem"},
		{TLSFiles{Cert: good.Cert, Key: p.path("nokey.pem")}, "nokey.pem"},
		{TLSFiles{Cert: empty, Key: good.Key}, "empty.pem"},
		{TLSFiles{Cert: good.Cert, Key: p.path("client-key.pem")}, "client-key.pem"},
		{TLSFiles{Cert: good.Cert, Key: good.Key, ClientCA: p.path("noca.pem")}, "noca.pem"},
		{TLSFiles{Cert: good.Cert, Key: good.Key, ClientCA: empty}, "empty.pem"},
	} {
		if _, err := LoadTLS(tc.f); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want one naming %s", tc.f, err, tc.want)
		}
	}
}

// TestCertificateRenewal: new files serve the next handshake, broken ones do
// not end service.
func TestCertificateRenewal(t *testing.T) {
	p := newPKI(t)
	_, tcp, _ := startServer(t, Options{Exports: testExports(), TLS: p.server(t, false), TLSMode: TLSRequired})
	serial := func() int64 {
		c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
		if err := c.startTLS(p.client(t, false)); err != nil {
			t.Fatal(err)
		}
		c.mustAck(optAbort, nil)
		return c.nc.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 2 {
		t.Fatalf("certificate %d, want 2", n)
	}
	p.issue(t, "server", 20)
	later := time.Now().Add(2 * time.Second)
	os.Chtimes(p.path("server-cert.pem"), later, later)
	if n := serial(); n != 20 {
		t.Errorf("certificate %d after renewal, want 20", n)
	}
	os.WriteFile(p.path("server-key.pem"), []byte("half"), 0o600)
	if n := serial(); n != 20 {
		t.Errorf("certificate %d with a broken key file, want 20", n)
	}
}
