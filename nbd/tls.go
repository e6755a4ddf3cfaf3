package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSFiles are what LoadTLS reads, in PEM.
type TLSFiles struct {
	Cert, Key string // of the server; both required
	ClientCA  string // "": clients need no certificate
}

// LoadTLS reads certificate, key and client CA. With a client CA, clients must
// show a certificate that it signed. TLS 1.2 is the oldest version that is
// spoken, as the protocol document asks. An error names the file.
//
// The certificate and key are read again when they have changed, at the next
// handshake, so that they can be renewed without a restart; while the new ones
// cannot be read, the old ones serve.
func LoadTLS(f TLSFiles) (*tls.Config, error) {
	if f.Cert == "" || f.Key == "" {
		return nil, errors.New("TLS needs both a certificate and a key file")
	}
	pair := &keyPair{files: f}
	if err := pair.load(); err != nil {
		return nil, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get}
	if f.ClientCA == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("TLS client CA: %w", err) // names the file
	}
	cfg.ClientCAs = x509.NewCertPool()
	if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("TLS client CA %s: no PEM certificate in it", f.ClientCA)
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	return cfg, nil
}
