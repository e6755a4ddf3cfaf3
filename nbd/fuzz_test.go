package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// fuzzServer is one server for all inputs of a process: what one input leaves
// behind, the next ones suffer from.
func fuzzServer(f *testing.F) *Server {
	s, err := NewServer(Options{Exports: memExports{
		"v": {dev: newMemDevice(1 << 20), desc: "d"}, "ro": {dev: newMemDevice(4097), readOnly: true},
	}, DefaultExport: "v", MaxConnInFlight: 4})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Shutdown(context.Background()) })
	return s
}

// socketpair returns a client's end; the server has the other.
func socketpair(t testing.TB, s *Server) *net.UnixConn {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	s.ServeConn(ends[0])
	ends[1].SetDeadline(time.Now().Add(testTimeout))
	return ends[1].(*net.UnixConn)
}

// exchange sends in and the end of it, and returns all that the server says
// until it closes the connection.
func exchange(t testing.TB, s *Server, in []byte) []byte {
	t.Helper()
	nc := socketpair(t, s)
	defer nc.Close()
	go func() {
		nc.Write(in) // the server may close before it has read all
		nc.CloseWrite()
	}()
	out, err := io.ReadAll(nc)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Fatal("the server did not close the connection")
	}
	waitFor(t, "the server to give all back", func() bool {
		s.mu.Lock()
		n := len(s.conns) + len(s.handshakes)
		s.mu.Unlock()
		slots, bytes := s.limit.left()
		return n == 0 && slots == s.opt.MaxInFlight && bytes == s.opt.MaxBytes
	})
	return out
}

// FuzzOptions sends any bytes as client flags and options. The server must
// close in the end, hold nothing, and have said only well-formed replies.
func FuzzOptions(f *testing.F) {
	flags := []byte(be32(clientFixedNewstyle))
	for _, opts := range [][]byte{
		rawOption(optList, nil), rawOption(optAbort, nil), rawOption(optStructuredReply, nil),
		rawOption(optInfo, goData("v", 0, 1, 2, 3)), rawOption(optGo, goData("")), rawOption(optExportName, []byte("v")),
		append(rawOption(optExtendedHeaders, nil), rawOption(optSetMetaContext, metaData("v", "base:allocation"))...),
		rawOption(optListMetaContext, metaData("v", "base:", "x:y")), rawOption(optStartTLS, nil), rawOption(99, []byte("x")),
	} {
		f.Add(append(flags[:4:4], opts...))
	}
	f.Add([]byte{0, 0, 0, 0})
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		out := exchange(t, s, in)
		if len(out) < 18 {
			t.Fatalf("greeting of %d bytes", len(out))
		}
		for out = out[18:]; len(out) > 0; {
			if len(out) < 20 || binary.BigEndian.Uint64(out) != magicReply {
				return // EXPORT_NAME was answered, or transmission begun
			}
			n := int(binary.BigEndian.Uint32(out[16:]))
			if len(out) < 20+n {
				t.Fatalf("reply of %d bytes is cut short", n)
			}
			out = out[20+n:]
		}
	})
}

// FuzzRequests sends any bytes as requests. Each complete request must have
// exactly one reply with its cookie, until the first that ends the connection.
func FuzzRequests(f *testing.F) {
	for mode := range byte(3) {
		m := replyMode(mode)
		for cmd := range uint16(9) {
			f.Add(mode, rawRequest(m, 0, cmd, 1, 4096, 512, make([]byte, 512)))
			f.Add(mode, rawRequest(m, cmdFlagPayloadLen|cmdFlagFUA, cmd, 1, 0, 12, []byte(be64(512)+be32(1))))
		}
		two := append(rawRequest(m, payloadFlag(m), cmdWrite, 2, 1, 3, []byte("abc")), rawRequest(m, 0, cmdRead, 3, 0, 10, nil)...)
		f.Add(mode, append(two, rawRequest(m, 0, cmdDisc, 0, 0, 0, nil)...))
	}
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, mode byte, in []byte) {
		m := replyMode(mode % 3)
		hello := []byte(be32(clientFixedNewstyle | clientNoZeroes))
		switch m {
		case structuredReplies:
			hello = append(hello, rawOption(optStructuredReply, nil)...)
		case extendedReplies:
			hello = append(hello, rawOption(optExtendedHeaders, nil)...)
		}
		if m != simpleReplies {
			hello = append(hello, rawOption(optSetMetaContext, metaData("v", allocationContextName))...)
		}
		hello = append(hello, rawOption(optGo, goData("v"))...)
		out := exchange(t, s, append(hello, in...))
		out = out[18:]
		for len(out) >= 20 && binary.BigEndian.Uint64(out) == magicReply {
			out = out[20+binary.BigEndian.Uint32(out[16:]):]
		}
		want, reads := expectedReplies(m, in)
		checkReplies(t, m, out, want, reads)
	})
}

// expectedReplies walks requests as the document describes the stream, apart
// from the server's code: how many replies each cookie gets, and what reads
// ask for.
func expectedReplies(mode replyMode, in []byte) (want map[uint64]int, reads map[uint64][]uint64) {
	want, reads = map[uint64]int{}, map[uint64][]uint64{}
	size, magic := 28, magicRequest
	if mode == extendedReplies {
		size, magic = 32, magicExtendedRequest
	}
	for len(in) >= size && binary.BigEndian.Uint32(in) == magic {
		flags, cmd := binary.BigEndian.Uint16(in[4:]), binary.BigEndian.Uint16(in[6:])
		cookie := binary.BigEndian.Uint64(in[8:])
		n := uint64(binary.BigEndian.Uint32(in[24:]))
		if mode == extendedReplies {
			n = binary.BigEndian.Uint64(in[24:])
		}
		in = in[size:]
		if cmd == cmdDisc {
			break
		}
		if mode == extendedReplies && flags&cmdFlagPayloadLen != 0 || mode != extendedReplies && cmd == cmdWrite {
			if n > uint64(len(in)) {
				break
			}
			in = in[n:]
		}
		want[cookie]++
		if cmd == cmdRead {
			reads[cookie] = append(reads[cookie], n)
		}
	}
	return want, reads
}

// checkReplies takes the replies apart and counts them off.
func checkReplies(t *testing.T, mode replyMode, out []byte, want map[uint64]int, reads map[uint64][]uint64) {
	for cookie := range reads {
		if mode == simpleReplies && want[cookie] != 1 {
			return // a cookie used twice: nobody can tell how long its replies are
		}
	}
	for len(out) > 0 {
		if len(out) < simpleReplySize {
			t.Fatalf("%d bytes at the end", len(out))
		}
		cookie := binary.BigEndian.Uint64(out[8:])
		n := uint64(0)
		switch magic := binary.BigEndian.Uint32(out); {
		case magic == magicSimpleReply && mode != extendedReplies:
			if mode == simpleReplies && binary.BigEndian.Uint32(out[4:]) == 0 && len(reads[cookie]) > 0 {
				n = reads[cookie][0]
			}
			out = out[simpleReplySize:]
		case magic == magicStructuredReply && mode == structuredReplies && len(out) >= structuredReplySize:
			n = uint64(binary.BigEndian.Uint32(out[16:]))
			out = out[structuredReplySize:]
		case magic == magicExtendedReply && mode == extendedReplies && len(out) >= extendedReplySize:
			n = binary.BigEndian.Uint64(out[24:])
			out = out[extendedReplySize:]
		default:
			t.Fatalf("reply magic %#x in mode %v", magic, mode)
		}
		if n > uint64(len(out)) {
			t.Fatalf("reply of %d bytes is cut short", n)
		}
		out = out[n:]
		if want[cookie]--; want[cookie] < 0 {
			t.Fatalf("a reply too many to %#x", cookie)
		}
	}
	for cookie, n := range want {
		if n != 0 {
			t.Fatalf("%d replies to %#x are missing", n, cookie)
		}
	}
}
