package remote

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"unsafe"

	"torus/store"
	"torus/store/memstore"
)

// aligning is a store that looks at where the pages lie that it is given.
type aligning struct {
	store.Store
	unaligned atomic.Int64
}

type aligningReplica struct {
	store.Replica
	s *aligning
}

func (s *aligning) Attach(ctx context.Context, vol store.VolumeID, e store.Epoch) (store.Replica, error) {
	r, err := s.Store.Attach(ctx, vol, e)
	return &aligningReplica{r, s}, err
}

func (r *aligningReplica) look(p []byte) {
	if uintptr(unsafe.Pointer(&p[0]))%store.PageSize != 0 {
		r.s.unaligned.Add(1)
	}
}

func (r *aligningReplica) Write(ctx context.Context, layer store.LayerID, off int64, p []byte, v store.Version, f store.Flags) error {
	r.look(p)
	return r.Replica.Write(ctx, layer, off, p, v, f)
}

func (r *aligningReplica) Read(ctx context.Context, chain []store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	r.look(p)
	return r.Replica.Read(ctx, chain, off, p, info)
}

// TestNothingIsAllocatedPerRequest, on both sides together; and the store's
// buffers are aligned.
func TestNothingIsAllocatedPerRequest(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	inner := &aligning{Store: memstore.New()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerOptions{Store: inner, Cluster: "c", Node: 1})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := NewClient(ClientOptions{Addr: l.Addr().String(), Cluster: "c", Node: 1})
	r, err := c.Attach(t.Context(), 1, 1)
	if err == nil {
		err = r.Create(t.Context(), 1, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{4 << 10, 128 << 10} {
		p, info, chain := make([]byte, n), make([]store.PageInfo, n/store.PageSize), []store.LayerID{1}
		version := store.NewVersion(1, 1)
		write := func() {
			version++
			if err := r.Write(t.Context(), 1, 0, p, version, 0); err != nil {
				t.Error(err)
			}
		}
		read := func() {
			if err := r.Read(t.Context(), chain, 0, p, info); err != nil {
				t.Error(err)
			}
		}
		for name, do := range map[string]func(){"write": write, "read": read} {
			for range 200 {
				do()
			}
			if a := testing.AllocsPerRun(500, do); a > 0 { // it rounds down
				t.Errorf("%s of %d bytes: %v allocations", name, n, a)
			}
		}
	}
	if n := inner.unaligned.Load(); n > 0 {
		t.Errorf("%d requests had pages in unaligned memory", n)
	}
	if err := errors.Join(c.Close(), s.Close(), <-served); err != nil {
		t.Error(err)
	}
}
