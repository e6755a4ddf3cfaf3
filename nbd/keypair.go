package nbd

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// A keyPair is a certificate and its key, read again when the files change.
type keyPair struct {
	files TLSFiles

	mu   sync.Mutex
	cert *tls.Certificate
	from [2]time.Time // when the files that cert is from were written
}

func (k *keyPair) load() error {
	when, err := k.written()
	if err != nil {
		return err
	}
	// Read apart from parsing, so that an error says which file it is about.
	cert, err := os.ReadFile(k.files.Cert)
	if err != nil {
		return fmt.Errorf("TLS certificate: %w", err)
	}
	key, err := os.ReadFile(k.files.Key)
	if err != nil {
		return fmt.Errorf("TLS key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("TLS certificate %s with key %s: %w", k.files.Cert, k.files.Key, err)
	}
	k.cert, k.from = &pair, when
	return nil
}

func (k *keyPair) written() (when [2]time.Time, err error) {
	for i, name := range []string{k.files.Cert, k.files.Key} {
		st, err := os.Stat(name)
		if err != nil {
			return when, fmt.Errorf("TLS: %w", err)
		}
		when[i] = st.ModTime()
	}
	return when, nil
}

// get is for tls.Config.GetCertificate.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if when, err := k.written(); err == nil && when != k.from {
		k.load() // half-replaced files: the old pair serves on
	}
	return k.cert, nil
}
