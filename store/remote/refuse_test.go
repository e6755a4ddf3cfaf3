package remote_test

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
	"torus/store/remote"
)

// TestPeersThatAreOthers are refused by name, at once, by every method.
func TestPeersThatAreOthers(t *testing.T) {
	for name, try := range map[string]struct {
		change func(*remote.ClientOptions)
		want   error
		says   string
	}{
		"cluster": {func(o *remote.ClientOptions) { o.Cluster = "another" }, remote.ErrOtherCluster, `"c1"`},
		"node":    {func(o *remote.ClientOptions) { o.Node = 8 }, remote.ErrOtherNode, "0000000000000007"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			c := h.client(try.change)
			began := time.Now()
			_, attach := c.Attach(t.Context(), volume, epoch)
			_, stat := c.Stat(t.Context())
			for _, err := range []error{attach, stat, c.Drop(t.Context(), layer, store.AllChunks)} {
				fails(t, err, try.want)
				fails(t, err, store.ErrUnreachable)
				var refused *remote.RefusedError
				if !errors.As(err, &refused) || refused.Addr != h.addr || !strings.Contains(err.Error(), try.says) {
					t.Errorf("error %q does not name %s and %s", err, h.addr, try.says)
				}
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// TestPeerWithAnotherProtocol, whatever else it says.
func TestPeerWithAnotherProtocol(t *testing.T) {
	for name, hello := range map[string]string{
		"newer":   "TorusBlk\x02\x00\x00\x00\x00\x04\x00\x00" + strings.Repeat("x", 1024),
		"foreign": "HTTP/1.1 400 Bad Request\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, "tcp")
			defer l.Close()
			go func() {
				for {
					nc, err := l.Accept()
					if err != nil {
						return
					}
					io.WriteString(nc, hello)
					io.Copy(io.Discard, nc)
					nc.Close()
				}
			}()
			c := remote.NewClient(remote.ClientOptions{Addr: l.Addr().String(), Cluster: cluster, Node: node})
			defer c.Close()
			_, err := c.Stat(t.Context())
			fails(t, err, remote.ErrOtherProtocol)
		})
	}
}

// TestRefusedIsNotTriedInAHotLoop, and a peer that is put right is found.
func TestRefusedIsNotTriedInAHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPipedHost(t)
		h.down()
		var dials atomic.Int64
		c := h.client(func(o *remote.ClientOptions) {
			o.Connections = 1
			o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
				dials.Add(1)
				return h.pipes.dial(ctx, addr)
			}
			o.Node = 8
		})
		h.up()
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			_, err := c.Stat(t.Context())
			fails(t, err, remote.ErrOtherNode)
		}
		if n := dials.Load(); n > 130 {
			t.Errorf("%d attempts in a minute", n)
		}
	})
}

// rawHello is what a client says first, put together here from the layout.
func rawHello(version uint32, cluster string, node uint64) []byte {
	le := binary.LittleEndian
	b := []byte("TorusBlk")
	b = le.AppendUint32(b, version)
	b = le.AppendUint32(b, uint32(28+len(cluster)))
	b = le.AppendUint64(b, node)
	b = le.AppendUint64(b, 0x5e5510)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(len(cluster)))
	b = append(b, cluster...)
	return le.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// TestClientsThatAreOthers get the server's greeting, which tells them, and
// nothing else; and no harm is done to others.
func TestClientsThatAreOthers(t *testing.T) {
	h := newHost(t)
	r := attach(t, h.client(), epoch)
	for name, hello := range map[string][]byte{
		"version": rawHello(2, cluster, node),
		"cluster": rawHello(1, "another", node),
		"node":    rawHello(1, cluster, 8),
		"foreign": []byte("GET / HTTP/1.1\r\n\r\n"),
		"damaged": append([]byte("TorusBlk\x01\x00\x00\x00\x1c\x00\x00\x00"), make([]byte, 28)...),
		"endless": []byte("TorusBlk\x01\x00\x00\x00\xff\xff\xff\xff"),
	} {
		nc, err := net.Dial("tcp", h.addr)
		ok(t, err)
		_, err = nc.Write(hello)
		ok(t, err)
		answer, err := io.ReadAll(nc)
		if err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v", name, err)
		}
		if told := len(answer) > 0; told != (name == "version" || name == "cluster" || name == "node") {
			t.Errorf("%s: answered with %q", name, answer)
		}
		nc.Close()
	}
	write(t, r, 0, 1)
}
