package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"
)

var allModes = []replyMode{simpleReplies, structuredReplies, extendedReplies}

// payloadFlag is what a write must carry in mode.
func payloadFlag(mode replyMode) uint16 {
	if mode == extendedReplies {
		return cmdFlagPayloadLen
	}
	return 0
}

// TestCommands sends requests, good and bad, and compares the errors. After
// each a read must still work: the stream is in step.
func TestCommands(t *testing.T) {
	const size = 1 << 20
	page := make([]byte, 4096)
	big := newMemDevice(64 << 20)
	type tc struct {
		name       string
		flags, cmd uint16
		off, n     uint64
		payload    []byte
		want       errno
		only       []replyMode         // nil: all
		export     string              // "": vol1
		wantMode   map[replyMode]errno // exceptions from want
	}
	ext, notExt := []replyMode{extendedReplies}, []replyMode{simpleReplies, structuredReplies}
	for _, tc := range []tc{
		{name: "read", cmd: cmdRead, n: 4096},
		{name: "read odd", cmd: cmdRead, off: 1, n: 3},
		{name: "read last byte", cmd: cmdRead, off: size - 1, n: 1},
		{name: "read past end", cmd: cmdRead, off: size - 1, n: 2, want: eINVAL},
		{name: "read beyond end", cmd: cmdRead, off: size + 1, n: 1, want: eINVAL},
		{name: "read far", cmd: cmdRead, off: 1<<64 - 1, n: 4096, want: eINVAL},
		{name: "read wraps", cmd: cmdRead, off: 1<<64 - 4096, n: 8192, want: eINVAL},
		{name: "read nothing", cmd: cmdRead},
		{name: "read nothing at end", cmd: cmdRead, off: size},
		{name: "read FUA", flags: cmdFlagFUA, cmd: cmdRead, n: 512},
		{name: "read DF", flags: cmdFlagDF, cmd: cmdRead, n: 65536, wantMode: map[replyMode]errno{simpleReplies: eINVAL}},
		{name: "read NO_HOLE", flags: cmdFlagNoHole, cmd: cmdRead, n: 512, want: eINVAL},
		{name: "read REQ_ONE", flags: cmdFlagReqOne, cmd: cmdRead, n: 512, want: eINVAL},
		{name: "read unknown flag", flags: 1 << 15, cmd: cmdRead, n: 512, want: eINVAL},
		{name: "read over maximum", export: "big", cmd: cmdRead, n: maxPayload + 1, want: eOVERFLOW, wantMode: map[replyMode]errno{simpleReplies: eINVAL}},
		{name: "read at maximum", export: "big", cmd: cmdRead, off: 1, n: maxPayload},

		{name: "write", cmd: cmdWrite, n: 4096, payload: page},
		{name: "write odd", cmd: cmdWrite, off: 4095, n: 3, payload: page[:3]},
		{name: "write FUA", flags: cmdFlagFUA, cmd: cmdWrite, n: 4096, payload: page},
		{name: "write nothing", cmd: cmdWrite},
		{name: "write past end", cmd: cmdWrite, off: size - 4095, n: 4096, payload: page, want: eNOSPC},
		{name: "write far", cmd: cmdWrite, off: 1 << 63, n: 4096, payload: page, want: eNOSPC},
		{name: "write read-only", export: "ro", cmd: cmdWrite, n: 4096, payload: page, want: ePERM},
		{name: "write DF", flags: cmdFlagDF, cmd: cmdWrite, n: 4096, payload: page, want: eINVAL},
		{name: "write over maximum", only: notExt, export: "big", cmd: cmdWrite, n: maxPayload + 1, payload: make([]byte, maxPayload+1), want: eINVAL},
		{name: "write at maximum", export: "big", cmd: cmdWrite, off: 7, n: maxPayload, payload: make([]byte, maxPayload)},

		{name: "flush", cmd: cmdFlush},
		{name: "flush FUA", flags: cmdFlagFUA, cmd: cmdFlush},
		{name: "flush with length", cmd: cmdFlush, n: 1, want: eINVAL},
		{name: "flush with offset", cmd: cmdFlush, off: 1, want: eINVAL},
		{name: "flush read-only", export: "ro", cmd: cmdFlush},

		{name: "trim", cmd: cmdTrim, off: 4096, n: 8192},
		{name: "trim FUA", flags: cmdFlagFUA, cmd: cmdTrim, n: size},
		{name: "trim nothing", cmd: cmdTrim},
		{name: "trim past end", cmd: cmdTrim, off: 4096, n: size, want: eINVAL},
		{name: "trim read-only", export: "ro", cmd: cmdTrim, n: 4096, want: ePERM},
		{name: "trim NO_HOLE", flags: cmdFlagNoHole, cmd: cmdTrim, n: 4096, want: eINVAL},

		{name: "zeroes", cmd: cmdWriteZeroes, off: 5, n: 70000},
		{name: "zeroes over maximum", export: "big", cmd: cmdWriteZeroes, n: 40 << 20},
		{name: "zeroes all flags", flags: cmdFlagFUA | cmdFlagNoHole, cmd: cmdWriteZeroes, n: 4096},
		{name: "zeroes fast", flags: cmdFlagFastZero, cmd: cmdWriteZeroes, n: 4096},
		{name: "zeroes fast, no hole", flags: cmdFlagFastZero | cmdFlagNoHole, cmd: cmdWriteZeroes, n: 4096, want: eNOTSUP},
		{name: "zeroes fast, no hole, can", export: "fast", flags: cmdFlagFastZero | cmdFlagNoHole, cmd: cmdWriteZeroes, n: 4096},
		{name: "zeroes past end", cmd: cmdWriteZeroes, off: size, n: 1, want: eNOSPC},
		{name: "zeroes read-only", export: "ro", cmd: cmdWriteZeroes, n: 1, want: ePERM},
		{name: "zeroes REQ_ONE", flags: cmdFlagReqOne, cmd: cmdWriteZeroes, n: 1, want: eINVAL},

		{name: "cache", cmd: cmdCache, off: 100, n: size - 100},
		{name: "cache past end", cmd: cmdCache, n: size + 1, want: eINVAL},
		{name: "cache flag", flags: 1 << 10, cmd: cmdCache, n: 1, want: eINVAL},
		{name: "cache over maximum", export: "big", cmd: cmdCache, n: 40 << 20},

		{name: "status without context", cmd: cmdBlockStatus, n: 4096, want: eINVAL},
		{name: "unknown command", cmd: 8, n: 4096, want: eINVAL},
		{name: "unknown high command", cmd: 0xffff, want: eINVAL},
		{name: "PAYLOAD_LEN in compact", only: notExt, flags: cmdFlagPayloadLen, cmd: cmdRead, n: 4096, want: eINVAL},
		{name: "write PAYLOAD_LEN in compact", only: notExt, flags: cmdFlagPayloadLen, cmd: cmdWrite, n: 4096, payload: page, want: eINVAL},
		{name: "read with payload", only: ext, flags: cmdFlagPayloadLen, cmd: cmdRead, n: 4096, payload: page, want: eINVAL},
		{name: "unknown with payload", only: ext, flags: cmdFlagPayloadLen, cmd: 99, n: 4096, payload: page, want: eINVAL},
		{name: "flush with payload", only: ext, flags: cmdFlagPayloadLen, cmd: cmdFlush, n: 4096, payload: page, want: eINVAL},
		{name: "64-bit trim past end", only: ext, cmd: cmdTrim, n: 1 << 40, want: eINVAL},
		{name: "64-bit zeroes past end", only: ext, cmd: cmdWriteZeroes, n: 1<<64 - 1, want: eNOSPC},
		{name: "status with payload, no context", only: ext, flags: cmdFlagPayloadLen, cmd: cmdBlockStatus, n: 12, payload: []byte(be64(4096) + be32(1)), want: eINVAL},
	} {
		modes := tc.only
		if modes == nil {
			modes = allModes
		}
		for _, mode := range modes {
			t.Run(fmt.Sprintf("%s/%s", tc.name, mode), func(t *testing.T) {
				exports := testExports()
				if tc.export == "big" {
					exports["big"] = &memExport{dev: big}
				}
				exports["fast"] = &memExport{dev: fastZeroDevice{newMemDevice(size)}}
				if tc.export == "" {
					tc.export = "vol1"
				}
				_, tcp, _ := startServer(t, Options{Exports: exports})
				c := enter(t, "tcp", tcp, tc.export, mode, false)
				flags := tc.flags
				if tc.cmd == cmdWrite {
					flags |= payloadFlag(mode)
				}
				c.write(rawRequest(mode, flags, tc.cmd, 1234567890123, tc.off, tc.n, tc.payload))
				dataLen := 0
				if tc.cmd == cmdRead {
					dataLen = int(tc.n)
				}
				want := tc.want
				if e, ok := tc.wantMode[mode]; ok {
					want = e
				}
				r := c.reply(dataLen)
				if r.err != want || r.cookie != 1234567890123 {
					t.Fatalf("error %v %q, want %v; cookie %d", r.err, r.msg, want, r.cookie)
				}
				c.checkForm(r, mode, tc.cmd, tc.off, tc.n)
				c.write(rawRequest(mode, 0, cmdRead, 2, 512, 1024, nil))
				if r := c.reply(1024); r.err != eOK || r.cookie != 2 {
					t.Fatalf("the request after it: %v, cookie %d", r.err, r.cookie)
				}
			})
		}
	}
}

// checkForm checks that a reply has the form that mode asks for.
func (c *rawClient) checkForm(r rawReply, mode replyMode, cmd uint16, off, n uint64) {
	c.t.Helper()
	switch {
	case mode == extendedReplies:
		if r.magic != magicExtendedReply || r.off != off {
			c.t.Errorf("reply magic %#x offset %d in extended mode", r.magic, r.off)
		}
	case mode == structuredReplies && (cmd == cmdRead || r.err != eOK):
		if r.magic != magicStructuredReply {
			c.t.Errorf("reply magic %#x to command %d in structured mode", r.magic, cmd)
		}
	default:
		if r.magic != magicSimpleReply {
			c.t.Errorf("reply magic %#x to command %d in mode %v", r.magic, cmd, mode)
		}
		return
	}
	if r.flags != chunkFlagDone {
		c.t.Errorf("chunk flags %#x", r.flags)
	}
	switch {
	case r.err != eOK:
		if r.typ != chunkError || r.msg == "" {
			c.t.Errorf("error chunk of type %#x with message %q", r.typ, r.msg)
		}
	case cmd == cmdRead && n > 0:
		if r.typ != chunkOffsetData || len(r.data) != 8+int(n) || binary.BigEndian.Uint64(r.data) != off {
			c.t.Errorf("read chunk of type %d with %d bytes", r.typ, len(r.data))
		}
	case r.typ != chunkNone || len(r.data) != 0:
		c.t.Errorf("chunk of type %d with %d bytes", r.typ, len(r.data))
	}
}

// fastZeroDevice zeroes fast in every way.
type fastZeroDevice struct{ *memDevice }

func (fastZeroDevice) FastZero(bool) bool { return true }

// TestClosingRequests cannot be skipped over: the connection must end.
func TestClosingRequests(t *testing.T) {
	for _, tc := range []struct {
		name string
		mode replyMode
		send []byte
	}{
		{"bad magic", simpleReplies, make([]byte, requestSize)},
		{"compact magic in extended mode", extendedReplies, append(rawRequest(simpleReplies, 0, cmdRead, 1, 0, 1, nil), 0, 0, 0, 0)},
		{"extended magic in compact mode", structuredReplies, rawRequest(extendedReplies, 0, cmdRead, 1, 0, 1, nil)},
		{"huge write", simpleReplies, rawRequest(simpleReplies, 0, cmdWrite, 1, 0, maxSkip+1, nil)},
		{"huge extended payload", extendedReplies, rawRequest(extendedReplies, cmdFlagPayloadLen, cmdWrite, 1, 0, maxPayload+1, nil)},
		{"endless extended payload", extendedReplies, rawRequest(extendedReplies, cmdFlagPayloadLen, 99, 1, 0, 1<<64-1, nil)},
		{"disconnect", simpleReplies, rawRequest(simpleReplies, 0, cmdDisc, 0, 0, 0, nil)},
		{"disconnect with length", extendedReplies, rawRequest(extendedReplies, 0, cmdDisc, 0, 5, 5, nil)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			exports := testExports()
			_, tcp, _ := startServer(t, Options{Exports: exports})
			c := enter(t, "tcp", tcp, "vol1", tc.mode, false)
			c.write(tc.send)
			c.closed()
			waitFor(t, "the export to be released", func() bool { return exports["vol1"].closes.Load() == 1 })
		})
	}
}

// TestWriteWithoutPayloadFlag: in extended mode the flag alone says that a
// payload follows.
func TestWriteWithoutPayloadFlag(t *testing.T) {
	_, tcp, _ := startServer(t, Options{Exports: testExports()})
	c := enter(t, "tcp", tcp, "vol1", extendedReplies, false)
	c.write(rawRequest(extendedReplies, 0, cmdWrite, 1, 0, 4096, nil))
	if r := c.reply(0); r.err != eINVAL {
		t.Fatalf("got %v, want EINVAL", r.err)
	}
}

// TestData writes and reads unaligned ranges against a model.
func TestData(t *testing.T) {
	for _, mode := range allModes {
		t.Run(mode.String(), func(t *testing.T) {
			dev := newMemDevice(1 << 20)
			_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
			c := enter(t, "unix", unix, "v", mode, false)
			model := make([]byte, 1<<20)
			for i, rng := range [][2]int{{0, 4096}, {4096, 8192}, {511, 2}, {70000, 131072}, {1<<20 - 3, 3}, {12345, 54321}} {
				p := bytes.Repeat([]byte{byte(i + 1), byte(i + 101)}, rng[1])[:rng[1]]
				copy(model[rng[0]:], p)
				c.write(rawRequest(mode, payloadFlag(mode), cmdWrite, uint64(i), uint64(rng[0]), uint64(rng[1]), p))
				if r := c.reply(0); r.err != eOK {
					t.Fatalf("write: %v", r.err)
				}
				c.write(rawRequest(mode, 0, cmdRead, 7, uint64(rng[0]/2), uint64(rng[1]), nil))
				r := c.reply(rng[1])
				if mode != simpleReplies {
					r.data = r.data[8:]
				}
				if !bytes.Equal(r.data, model[rng[0]/2:][:rng[1]]) {
					t.Fatalf("range %v reads something else", rng)
				}
			}
			if !dev.holds(model, 0) {
				t.Fatal("the device holds something else")
			}
		})
	}
}

func TestFUAReachesTheDevice(t *testing.T) {
	dev := newMemDevice(1 << 20)
	_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	for i, req := range [][]byte{
		rawRequest(0, cmdFlagFUA, cmdWrite, 1, 0, 1, []byte{1}),
		rawRequest(0, cmdFlagFUA, cmdTrim, 1, 0, 4096, nil),
		rawRequest(0, cmdFlagFUA, cmdWriteZeroes, 1, 0, 4096, nil),
	} {
		c.write(req)
		if r := c.reply(0); r.err != eOK {
			t.Fatal(r.err)
		}
		if n := dev.fuas.Load(); n != int64(i+1) {
			t.Errorf("after %d requests with FUA the device saw %d", i+1, n)
		}
	}
	c.write(rawRequest(0, 0, cmdWrite, 1, 0, 1, []byte{1}))
	c.reply(0)
	c.write(rawRequest(0, 0, cmdFlush, 1, 0, 0, nil))
	c.reply(0)
	if n, s := dev.fuas.Load(), dev.syncs.Load(); n != 3 || s != 1 {
		t.Errorf("%d FUA, %d syncs; want 3, 1", n, s)
	}
}

// TestDeviceErrors is the table of errors to numbers, through the wire.
func TestDeviceErrors(t *testing.T) {
	dev := newMemDevice(1 << 20)
	var fail error
	dev.before = func(string, int64, int64) error { return fail }
	_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
	c := enter(t, "unix", unix, "v", structuredReplies, false)
	for _, tc := range []struct {
		err         error
		read, write errno
	}{
		{errors.New("bad disk"), eIO, eIO},
		{io.EOF, eIO, eIO},
		{ErrNoSpace, eNOSPC, eNOSPC},
		{fmt.Errorf("volume v: %w", ErrNoSpace), eNOSPC, eNOSPC},
		{syscall.EDQUOT, eNOSPC, eNOSPC},
		{ErrReadOnly, ePERM, ePERM},
		{ErrOutOfRange, eINVAL, eNOSPC},
		{ErrInvalid, eINVAL, eINVAL},
		{ErrNotSupported, eINVAL, eINVAL},
		{ErrShutdown, eSHUTDOWN, eSHUTDOWN},
		{syscall.EIO, eIO, eIO},
		{syscall.ENOMEM, eNOMEM, eNOMEM},
	} {
		fail = tc.err
		c.write(rawRequest(1, 0, cmdRead, 1, 0, 512, nil))
		if r := c.reply(0); r.err != tc.read {
			t.Errorf("%v: read fails with %v, want %v", tc.err, r.err, tc.read)
		}
		c.write(rawRequest(1, 0, cmdWrite, 1, 0, 512, make([]byte, 512)))
		if r := c.reply(0); r.err != tc.write {
			t.Errorf("%v: write fails with %v, want %v", tc.err, r.err, tc.write)
		}
	}
	fail = ErrNotSupported
	c.write(rawRequest(1, cmdFlagFastZero, cmdWriteZeroes, 1, 0, 512, nil))
	if r := c.reply(0); r.err != eNOTSUP {
		t.Errorf("fast zero fails with %v, want ENOTSUP", r.err)
	}
}

// TestAlignment: a buffer begins where its offset does in a page.
func TestAlignment(t *testing.T) {
	var bad error
	dev := &alignDevice{memDevice: newMemDevice(1 << 20), bad: &bad}
	_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
	c := enter(t, "unix", unix, "v", simpleReplies, false)
	for _, off := range []uint64{0, 1, 512, 4096, 5000, 65536 + 4095} {
		for _, n := range []uint64{1, 512, 4096, 5000, 65536, 262144} {
			c.write(rawRequest(0, 0, cmdWrite, 1, off, n, make([]byte, n)))
			c.reply(0)
			c.write(rawRequest(0, 0, cmdRead, 1, off, n, nil))
			c.reply(int(n))
			if bad != nil {
				t.Fatal(bad)
			}
		}
	}
}

type alignDevice struct {
	*memDevice
	bad *error
}

func (d *alignDevice) check(p []byte, off int64) {
	if misaligned(p) != int(off%pageSize) {
		*d.bad = fmt.Errorf("%d bytes at %d: buffer is at %d in its page", len(p), off, misaligned(p))
	}
}

func (d *alignDevice) ReadAt(p []byte, off int64) (int, error) {
	d.check(p, off)
	return d.memDevice.ReadAt(p, off)
}

func (d *alignDevice) WriteAt(p []byte, off int64) (int, error) {
	d.check(p, off)
	return d.memDevice.WriteAt(p, off)
}
