package nbd

import (
	"encoding/binary"
	"errors"
	"iter"
	"slices"
	"testing"
)

// status is a decoded reply to BLOCK_STATUS.
func status(t *testing.T, r rawReply, mode replyMode) (ext []Extent) {
	t.Helper()
	typ, head, size := chunkBlockStatus, 4, 8
	if mode == extendedReplies {
		typ, head, size = chunkBlockStatusExt, 8, 16
	}
	if r.err != eOK || r.typ != typ || r.flags != chunkFlagDone {
		t.Fatalf("reply of type %#x, error %v %s", r.typ, r.err, r.msg)
	}
	if id := binary.BigEndian.Uint32(r.data); id != allocationContext {
		t.Fatalf("context %d", id)
	}
	p := r.data[head:]
	if len(p) == 0 || len(p)%size != 0 {
		t.Fatalf("%d bytes of extents", len(p))
	}
	if mode == extendedReplies && int(binary.BigEndian.Uint32(r.data[4:])) != len(p)/size {
		t.Fatalf("count %d for %d extents", binary.BigEndian.Uint32(r.data[4:]), len(p)/size)
	}
	for ; len(p) > 0; p = p[size:] {
		n, flags := uint64(binary.BigEndian.Uint32(p)), uint64(binary.BigEndian.Uint32(p[4:]))
		if mode == extendedReplies {
			n, flags = binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])
		}
		ext = append(ext, Extent{Len: int64(n), Hole: flags&1 != 0, Zero: flags&2 != 0})
	}
	return ext
}

func data(n int64) Extent { return Extent{Len: n} }
func hole(n int64) Extent { return Extent{Len: n, Hole: true, Zero: true} }

func TestBlockStatus(t *testing.T) {
	for _, mode := range []replyMode{structuredReplies, extendedReplies} {
		dev := newMemDevice(1 << 20)
		_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
		c := enter(t, "unix", unix, "v", mode, true)
		dev.WriteAt(make([]byte, 8192), 4096)
		for _, tc := range []struct {
			flags  uint16
			off, n uint64
			want   []Extent
		}{
			{0, 0, 1 << 20, []Extent{hole(4096), data(8192), hole(1<<20 - 12288)}},
			{cmdFlagReqOne, 0, 1 << 20, []Extent{hole(4096)}},
			{cmdFlagReqOne, 5000, 100, []Extent{data(100)}},
			{cmdFlagReqOne, 4096, 1 << 19, []Extent{data(8192)}},
			{cmdFlagFUA, 4000, 200, []Extent{hole(96), data(104)}},
			{0, 1<<20 - 1, 1, []Extent{hole(1)}},
		} {
			c.write(rawRequest(mode, tc.flags, cmdBlockStatus, 3, tc.off, tc.n, nil))
			if got := status(t, c.reply(0), mode); !slices.Equal(got, tc.want) {
				t.Errorf("%v %+v: got %v", mode, tc, got)
			}
		}
		for _, bad := range [][2]uint64{{0, 0}, {0, 1<<20 + 1}, {1 << 20, 1}, {1 << 63, 1 << 30}} {
			c.write(rawRequest(mode, 0, cmdBlockStatus, 3, bad[0], bad[1], nil))
			if r := c.reply(0); r.err != eINVAL {
				t.Errorf("status of %v: %v, want EINVAL", bad, r.err)
			}
		}
	}
}

// TestBlockStatusPayload filters by context.
func TestBlockStatusPayload(t *testing.T) {
	_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: newMemDevice(1 << 20)}}})
	c := enter(t, "unix", unix, "v", extendedReplies, true)
	for _, tc := range []struct {
		payload string
		want    errno
	}{
		{be64(8192) + be32(allocationContext), eOK},
		{be64(8192), eINVAL},
		{be64(8192) + be32(7), eINVAL},
		{be64(8192) + be32(allocationContext) + be32(allocationContext), eINVAL},
		{be64(1<<20+1) + be32(allocationContext), eINVAL},
		{be64(0) + be32(allocationContext), eINVAL},
		{"short", eINVAL},
		{string(make([]byte, 100000)), eINVAL},
	} {
		c.write(rawRequest(extendedReplies, cmdFlagPayloadLen, cmdBlockStatus, 1, 0, uint64(len(tc.payload)), []byte(tc.payload)))
		r := c.reply(0)
		if r.err != tc.want {
			t.Errorf("payload of %d bytes: %v %s, want %v", len(tc.payload), r.err, r.msg, tc.want)
		} else if r.err == eOK {
			if got := status(t, r, extendedReplies); !slices.Equal(got, []Extent{hole(8192)}) {
				t.Errorf("got %v", got)
			}
		}
	}
}

// A stripedDevice is a hole in every other page, or whatever else it is given.
type stripedDevice struct {
	*memDevice
	size    int64
	extents func(yield func(Extent, error) bool)
}

func (d stripedDevice) Size() int64 { return d.size }

func (d stripedDevice) Extents(off, n int64) iter.Seq2[Extent, error] {
	if d.extents != nil {
		return d.extents
	}
	return func(yield func(Extent, error) bool) {
		for end := off + n; off < end; off += 4096 {
			if !yield(Extent{Off: off, Len: 4096, Hole: off/4096%2 == 0}, nil) {
				return
			}
		}
	}
}

// TestBlockStatusFull: a reply that would grow large ends early, and the
// client gets on from there.
func TestBlockStatusFull(t *testing.T) {
	for _, mode := range []replyMode{structuredReplies, extendedReplies} {
		dev := stripedDevice{memDevice: newMemDevice(0), size: 1 << 40}
		_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
		c := enter(t, "unix", unix, "v", mode, true)
		c.write(rawRequest(mode, 0, cmdBlockStatus, 3, 0, 1<<31, nil))
		r := c.reply(0)
		got := status(t, r, mode)
		if len(got) < 1000 || len(r.data) > extentsSize {
			t.Errorf("%v: %d extents in %d bytes", mode, len(got), len(r.data))
		}
	}
}

// TestBadExtents: a device that breaks its contract gets no false extents
// through.
func TestBadExtents(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		yield []Extent
		err   error
		want  []Extent // nil: EIO
	}{
		"none":              {nil, nil, nil},
		"error at once":     {nil, boom, nil},
		"error later":       {[]Extent{{Off: 0, Len: 4096}}, boom, []Extent{data(4096)}},
		"gap":               {[]Extent{{Off: 0, Len: 4096}, {Off: 8192, Len: 4096}}, nil, nil},
		"empty":             {[]Extent{{Off: 0, Len: 0}}, nil, nil},
		"wrong start":       {[]Extent{{Off: 4096, Len: 4096}}, nil, nil},
		"longer than asked": {[]Extent{{Off: 0, Len: 1 << 40}}, nil, []Extent{data(65536)}},
	} {
		dev := stripedDevice{memDevice: newMemDevice(0), size: 1 << 40, extents: func(yield func(Extent, error) bool) {
			for _, e := range tc.yield {
				if !yield(e, nil) {
					return
				}
			}
			if tc.err != nil {
				yield(Extent{}, tc.err)
			}
		}}
		_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
		c := enter(t, "unix", unix, "v", structuredReplies, true)
		c.write(rawRequest(structuredReplies, 0, cmdBlockStatus, 3, 0, 65536, nil))
		r := c.reply(0)
		if tc.want == nil {
			if r.err != eIO {
				t.Errorf("%s: %v, want EIO", name, r.err)
			}
		} else if got := status(t, r, structuredReplies); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Test64BitStatus: extended replies have extents beyond 4 GiB.
func Test64BitStatus(t *testing.T) {
	dev := stripedDevice{memDevice: newMemDevice(0), size: 1 << 50, extents: func(yield func(Extent, error) bool) {
		_ = yield(Extent{Off: 0, Len: 1 << 45, Hole: true, Zero: true}, nil) &&
			yield(Extent{Off: 1 << 45, Len: 1 << 45, Hole: true, Zero: true}, nil) &&
			yield(Extent{Off: 1 << 46, Len: 1<<50 - 1<<46}, nil)
	}}
	_, _, unix := startServer(t, Options{Exports: memExports{"v": {dev: dev}}})
	c := enter(t, "unix", unix, "v", extendedReplies, true)
	c.write(rawRequest(extendedReplies, 0, cmdBlockStatus, 3, 0, 1<<50, nil))
	got := status(t, c.reply(0), extendedReplies)
	if want := []Extent{hole(1 << 46), data(1<<50 - 1<<46)}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
