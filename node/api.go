package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"torus/cluster"
)

// About is what the API says of a node at /v1/endpoints: enough to find the
// cluster's records.
type About struct {
	Cluster  cluster.ID       `json:"cluster"`
	Recovery cluster.Recovery `json:"recovery,omitzero"` // of the records
	Node     string           `json:"node"`
	Version  string           `json:"version"`
	Etcd     []string         `json:"etcd"` // endpoints of etcd, each HOST:PORT
	Exports  []Exported       `json:"exports"`
}

// Exported is an address at which the node exports every volume.
type Exported struct {
	Address string `json:"address"` // HOST:PORT, or the path of a Unix socket
	Unix    bool   `json:"unix"`
	TLS     bool   `json:"tls"`
}

// Health is what the API says at /health.
type Health struct {
	Healthy bool     `json:"healthy"`
	Reasons []string `json:"reasons"` // why not
}

// listenAPI opens the API's listener.
func (n *Node) listenAPI() (net.Listener, error) {
	addr := addrPort(n.settings.Listen, n.settings.Port)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("API on %s: %w: choose another base port with --port, or any free one with --port 0", addr, cause(err))
	}
	return l, nil
}

// cause leaves out of an error of package net the address, which is said already.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// startAPI serves the API.
func (n *Node) startAPI() {
	l := n.apiListener
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/endpoints", n.serveAbout)
	mux.HandleFunc("GET /v1/layers", n.serveLayers)
	mux.HandleFunc("GET /health", n.serveHealth)
	mux.HandleFunc("GET /metrics", n.serveMetrics)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.fail(fmt.Errorf("API on %v: %w", l.Addr(), err))
		}
	}()
	n.started("api", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err := s.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.Close() // a client that keeps a request open is not waited for
		}
		<-done
		return err
	})
}

func (n *Node) serveAbout(w http.ResponseWriter, _ *http.Request) {
	a := About{
		Cluster: n.settings.Cluster, Recovery: n.settings.Recovery, Node: n.settings.Name, Version: n.version,
		Etcd: n.records.Endpoints(), Exports: []Exported{},
	}
	for _, addr := range n.ExportAddrs() {
		a.Exports = append(a.Exports, Exported{Address: addr.String(), Unix: addr.Network() == "unix", TLS: n.settings.NBD.Cert != ""})
	}
	writeJSON(w, http.StatusOK, a)
}

func (n *Node) serveHealth(w http.ResponseWriter, r *http.Request) {
	h := n.health(r.Context())
	status := http.StatusOK
	if !h.Healthy {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, h)
}

// health says what keeps the node from doing its work.
func (n *Node) health(ctx context.Context) Health {
	h := Health{Reasons: []string{}}
	if err := n.Err(); err != nil {
		h.Reasons = append(h.Reasons, err.Error())
	}
	st := n.stat(ctx)
	if st.Failed != "" {
		h.Reasons = append(h.Reasons, "store: "+st.Failed)
	}
	if st.NoSpace {
		h.Reasons = append(h.Reasons, "store: no space left, writes are refused")
	}
	if st.Corrupt > 0 {
		h.Reasons = append(h.Reasons, fmt.Sprintf("store: %d pages found corrupt", st.Corrupt))
	}
	h.Healthy = len(h.Reasons) == 0
	return h
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the client is gone: nobody is left to tell
}
