package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"torus/store"
	"torus/store/memstore"
)

// FuzzServer feeds a greeted connection anything: the server answers or ends
// it, and is there for the next.
func FuzzServer(f *testing.F) {
	const incarnation = 5
	page := make([]byte, 4096)
	f.Add(frame(write4K(incarnation, 1), page))
	f.Add(append(frame(write4K(incarnation, 1), page), frame(request{op: opRead, volume: 1, epoch: 1, layer: 1, n: 8192, flags: flagInfo}, nil)...))
	f.Add(frame(request{op: opRead, volume: 1, epoch: 1, layer: 1, n: 4096, count: 1}, make([]byte, 8)))
	for o := range opCount {
		f.Add(frame(request{op: o, volume: 1, epoch: 1, layer: 1, n: 4096, version: 1 << 41}, nil))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		s := NewServer(ServerOptions{Store: memstore.New(), Cluster: "c", Node: 1})
		l := &onePipe{conns: make(chan net.Conn, 2), closed: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		near, far := net.Pipe()
		l.conns <- far
		own := hello{version: protocolVersion, node: 1, session: 9, cluster: "c"}
		if _, err := greet(near, &own, "", time.Second); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, near)
		// Its own checksums are hard to guess: mend those of the first header.
		if len(sent) >= requestSize {
			sent = bytes.Clone(sent)
			le.PutUint32(sent[84:], checksum(sent[:84]))
			if body := le.Uint32(sent[8:]); uint64(body) <= uint64(len(sent)-requestSize) {
				le.PutUint32(sent[12:], checksum(sent[requestSize:requestSize+body]))
				le.PutUint32(sent[84:], checksum(sent[:84]))
			}
		}
		if _, err := near.Write(sent); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Fatal(err)
		}
		near.Close()
		if err := errors.Join(s.Close(), <-served); err != nil {
			t.Fatal(err)
		}
	})
}

// onePipe is a listener for net.Pipe.
type onePipe struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *onePipe) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *onePipe) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *onePipe) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func answerFrame(a answer, body []byte) []byte {
	a.body, a.bodySum = uint32(len(body)), checksum(body)
	h := make([]byte, answerSize)
	a.encode(h)
	return append(h, body...)
}

// FuzzClient feeds a client with requests under way anything: it takes an
// answer for what it is, or ends the connection.
func FuzzClient(f *testing.F) {
	const write, read, list = 1 << 32, 1<<32 | 1, 1<<32 | 2
	page := bytes.Repeat([]byte{7}, 4096)
	info := appendRuns(nil, []store.PageInfo{{Layer: 1, Kind: store.Data, Version: 5}})
	f.Add(answerFrame(answer{op: opWrite, id: write}, nil))
	f.Add(answerFrame(answer{op: opRead, id: read}, append(bytes.Clone(page), info...)))
	f.Add(answerFrame(answer{op: opRead, id: read}, page))
	f.Add(answerFrame(answer{op: opRead, id: read, errno: errnoCorrupt}, appendError(nil, &store.CorruptError{Layer: 1})))
	f.Add(answerFrame(answer{op: opExtents, id: list, flags: flagMore}, appendExtent(nil, store.Extent{N: 4096})))
	f.Add(answerFrame(answer{op: opExtents, id: list}, make([]byte, 70000)))
	f.Add(append(answerFrame(answer{op: opWrite, id: write}, nil), answerFrame(answer{op: opWrite, id: write}, nil)...))
	f.Fuzz(func(t *testing.T, came []byte) {
		if len(came) >= answerSize {
			came = bytes.Clone(came)
			if body := le.Uint32(came[8:]); uint64(body) <= uint64(len(came)-answerSize) {
				le.PutUint32(came[12:], checksum(came[answerSize:answerSize+body]))
			}
			le.PutUint32(came[28:], checksum(came[:28]))
		}
		client := NewClient(ClientOptions{})
		near, far := net.Pipe()
		c := newConn(client.lanes[0], near, 4)
		var calls []*call
		for _, o := range []op{opWrite, opRead, opExtents} {
			k := client.getCall(o)
			if o == opRead {
				k.in, k.info = make([]byte, 4096), make([]store.PageInfo, 1)
			}
			c.start(k)
			calls = append(calls, k)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.run(context.Background()) }()
		if _, err := io.ReadFull(far, make([]byte, 3*requestSize)); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, far)
		far.Write(came) // fails when the client has had enough
		far.Close()
		if err := <-ended; err == nil {
			t.Fatal("the connection ended without a reason")
		}
		for i, k := range calls {
			select {
			case <-k.done:
			default:
				t.Fatalf("call %d was not let go", i)
			}
			if i == 1 && k.err == nil && k.info[0].Version == 0 && k.info[0].Layer == 0 && !bytes.Contains(came, k.in) {
				t.Fatal("a read was answered with what did not come")
			}
		}
	})
}

func FuzzHello(f *testing.F) {
	h := hello{version: protocolVersion, node: 1, session: 2, number: 3, cluster: "c"}
	f.Add(h.append(nil))
	f.Add([]byte(helloMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 16 {
			b = bytes.Clone(b)
			le.PutUint32(b[len(b)-4:], checksum(b[:len(b)-4]))
		}
		h, err := readHello(bytes.NewReader(b))
		if err != nil || h.version != protocolVersion {
			return
		}
		if again := h.append(nil); !bytes.Equal(again, b[:len(again)]) {
			t.Errorf("%x is read as %+v", b, h)
		}
	})
}

func FuzzError(f *testing.F) {
	f.Add(uint16(errnoFenced), appendError(nil, &store.FencedError{Volume: 1}))
	f.Add(uint16(errnoOther), appendError(nil, &store.Error{Op: "write", Err: errors.New("x")}))
	f.Fuzz(func(t *testing.T, n uint16, b []byte) {
		if err, bad := decodeError(errno(n), b); bad == nil && err.Error() == "" && len(b) > errorFixed+int(b[41]) {
			t.Error("an error that says nothing")
		}
	})
}
