package remote

import (
	"log/slog"
	"net"

	"torus/store"
)

// ServerOptions say what to serve, as whom. Store, Cluster and Node are needed;
// the limits have defaults.
type ServerOptions struct {
	Store   store.Store
	Cluster string // clients of another are refused
	Node    uint64 // clients that look for another are refused

	MaxConnections int   // 0: 1024
	MaxInFlight    int   // requests of one connection; 0: 256
	MaxBytes       int64 // memory for the requests of one connection; 0: 128 MiB, at least 80 MiB

	// Logger nil discards.
	Logger *slog.Logger
}

// A Server serves one store on any number of listeners.
type Server struct{ options ServerOptions }

// NewServer does no I/O.
func NewServer(o ServerOptions) *Server { return &Server{options: o} }

// Serve accepts connections until Close, and then returns nil; it closes l.
func (s *Server) Serve(l net.Listener) error { return errNotYet }

// Close finishes requests under way, bounded in time, and ends all
// connections. The store stays open.
func (s *Server) Close() error { return nil }
