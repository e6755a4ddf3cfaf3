package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"torus/store"
)

// Why a peer is refused; see RefusedError.
var (
	ErrOtherCluster  = errors.New("belongs to another cluster")
	ErrOtherNode     = errors.New("is another node")
	ErrOtherProtocol = errors.New("speaks another protocol")
)

// A RefusedError says that a connection was made, and with whom it must not
// be. It is also store.ErrUnreachable: nothing was sent.
type RefusedError struct {
	Addr   string
	Reason error // one of the above
	Detail string
}

// Error names the address, who is there and who was looked for.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s %v: %s", e.Addr, e.Reason, e.Detail)
}

// Unwrap returns the reason.
func (e *RefusedError) Unwrap() error { return e.Reason }

// Is makes the error store.ErrUnreachable.
func (e *RefusedError) Is(target error) bool { return target == store.ErrUnreachable }

// A hello is the first that each side says; the client begins.
//
//	 0  8 bytes "TorusBlk"
//	 8  u32  protocol version
//	12  u32  length of what follows, at most 1024; up to here for all versions
//	16  u64  node: that is looked for, or that answers
//	24  u64  client: its session, drawn at random; server: requests that one
//	         connection may have under way
//	32  u32  client: number of the connection within the session; server: 0
//	36  u32  length of the cluster's name, and that
//	    u32  CRC32C of all before
//
// A session has one connection of each number: a new one ends the one before,
// and is answered when nothing that came over it is under way any more. So
// what a client sends again is never followed by its first copy, which could
// undo what was done since (a drop, late, would take what was written after).
type hello struct {
	version uint32
	node    uint64
	session uint64
	number  uint32
	cluster string
}

const (
	helloMagic      = "TorusBlk"
	protocolVersion = 1
	helloFixed      = 16
	maxHello        = 1024
	maxClusterName  = 255
)

func (h *hello) append(b []byte) []byte {
	b = append(b, helloMagic...)
	b = le.AppendUint32(b, h.version)
	b = le.AppendUint32(b, uint32(8+8+4+4+len(h.cluster)+4))
	b = le.AppendUint64(b, h.node)
	b = le.AppendUint64(b, h.session)
	b = le.AppendUint32(b, h.number)
	b = le.AppendUint32(b, uint32(len(h.cluster)))
	b = append(b, h.cluster...)
	return le.AppendUint32(b, checksum(b))
}

// errNoHello: whoever is there, it is not this program.
var errNoHello = errors.New("no greeting of a torus block server or client")

// readHello reads one. Of another protocol version it returns only that.
func readHello(r io.Reader) (*hello, error) {
	b := make([]byte, helloFixed, helloFixed+maxHello)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	size := le.Uint32(b[12:])
	if !bytes.Equal(b[:8], []byte(helloMagic)) || size > maxHello {
		return nil, errNoHello
	}
	h := &hello{version: le.Uint32(b[8:])}
	if h.version != protocolVersion {
		return h, nil
	}
	b = b[:helloFixed+size]
	if _, err := io.ReadFull(r, b[helloFixed:]); err != nil {
		return nil, unexpected(err)
	}
	return h, h.decode(b)
}

func (h *hello) decode(b []byte) error {
	if len(b) < 44 || int64(len(b)) != 44+int64(le.Uint32(b[36:])) || checksum(b[:len(b)-4]) != le.Uint32(b[len(b)-4:]) {
		return fmt.Errorf("greeting of %d bytes is damaged", len(b))
	}
	h.node, h.session, h.number = le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint32(b[32:])
	h.cluster = string(b[40 : len(b)-4])
	return nil
}

// compare says why the peer that said h is not the one that own looks for.
func (h *hello) compare(own *hello, addr string) error {
	switch {
	case h.version != own.version:
		return &RefusedError{addr, ErrOtherProtocol, fmt.Sprintf("version %d, this program speaks %d", h.version, own.version)}
	case h.cluster != own.cluster:
		return &RefusedError{addr, ErrOtherCluster, fmt.Sprintf("%q, this is %q", h.cluster, own.cluster)}
	case h.node != own.node:
		return &RefusedError{addr, ErrOtherNode, fmt.Sprintf("%016x, looked for is %016x", h.node, own.node)}
	}
	return nil
}

// greet is the client's side. It returns how many requests the server takes
// at a time.
func greet(nc net.Conn, own *hello, addr string, timeout time.Duration) (inFlight int, err error) {
	if err := nc.SetDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	if _, err := nc.Write(own.append(nil)); err != nil {
		return 0, err
	}
	h, err := readHello(nc)
	if errors.Is(err, errNoHello) {
		return 0, &RefusedError{addr, ErrOtherProtocol, err.Error()}
	}
	if err != nil {
		return 0, fmt.Errorf("greeting %s: %w", addr, err)
	}
	if err := h.compare(own, addr); err != nil {
		return 0, err
	}
	return int(min(max(h.session, 1), 1<<16)), nc.SetDeadline(time.Time{})
}
