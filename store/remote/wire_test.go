package remote

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"torus/store"
)

// TestErrnos pins the table: it is append only, as peers of other versions
// have it too.
func TestErrnos(t *testing.T) {
	pinned := []error{nil, nil, store.ErrInvalid, store.ErrFenced, store.ErrIncarnation, store.ErrUnknownLayer, store.ErrCorrupt,
		store.ErrNoSpace, store.ErrFailed, store.ErrClosed, store.ErrUnreachable, context.Canceled, context.DeadlineExceeded}
	if len(pinned) != int(errnoCount) {
		t.Fatalf("%d numbers, %d of them pinned", errnoCount, len(pinned))
	}
	for n, want := range pinned {
		if errnos[n] != want {
			t.Errorf("number %d is %v, was %v", n, errnos[n], want)
		}
		if want == nil {
			continue
		}
		sent := fmt.Errorf("segment 7: %w", want)
		if got := errnoOf(sent); got != errno(n) {
			t.Errorf("%v is number %d, want %d", want, got, n)
		}
		back := roundTrip(t, sent)
		if !errors.Is(back, want) || back.Error() != sent.Error() {
			t.Errorf("%v came as %v", sent, back)
		}
		for _, other := range pinned {
			if other != nil && other != want && errors.Is(back, other) {
				t.Errorf("%v came as %v too", want, other)
			}
		}
	}
}

func roundTrip(t *testing.T, err error) error {
	t.Helper()
	b := appendError(nil, err)
	if len(b) > maxErrorBody {
		t.Fatalf("%d bytes, at most %d", len(b), maxErrorBody)
	}
	back, bad := decodeError(errnoOf(err), b)
	if bad != nil {
		t.Fatal(bad)
	}
	return back
}

func TestErrorsKeepTheirFields(t *testing.T) {
	fenced := &store.FencedError{Volume: 1 << 63, Epoch: 3, Recorded: store.MaxEpoch}
	corrupt := &store.CorruptError{Layer: 9, Off: 1 << 40, Detail: "checksum of the page, segment 4 block 7"}
	for _, sent := range []error{fenced, corrupt, store.ErrNoSpace, errors.New("what nobody knows")} {
		for _, wrapped := range []error{
			sent,
			&store.Error{Op: "write", Layer: 1<<64 - 1, Off: 4096, Err: sent},
			&store.Error{Op: "create", Layer: 2, Off: -1, Err: fmt.Errorf("twice: %w", sent)},
		} {
			back := roundTrip(t, wrapped)
			var f *store.FencedError
			var c *store.CorruptError
			var was, is *store.Error
			if errors.As(wrapped, &was) != errors.As(back, &is) || was != nil && (was.Op != is.Op || was.Layer != is.Layer || was.Off != is.Off) {
				t.Errorf("%v came as %v", wrapped, back)
			}
			switch sent {
			case fenced:
				if !errors.As(back, &f) || *f != *fenced {
					t.Errorf("%v came as %v", wrapped, back)
				}
			case corrupt:
				if !errors.As(back, &c) || *c != *corrupt {
					t.Errorf("%v came as %v", wrapped, back)
				}
			default:
				if back.Error() != wrapped.Error() {
					t.Errorf("%v came as %v", wrapped, back)
				}
			}
		}
	}
}

func TestLongErrorsAreCut(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, err := range []error{errors.New(long), &store.Error{Op: long, Err: errors.New(long)}, &store.CorruptError{Detail: long}} {
		if back := roundTrip(t, err); len(back.Error()) < 1000 {
			t.Errorf("%d bytes are left", len(back.Error()))
		}
	}
}

// TestErrnoOfANewerPeer: what is unknown here is an error all the same.
func TestErrnoOfANewerPeer(t *testing.T) {
	err, bad := decodeError(errnoCount+5, appendError(nil, errors.New("too warm")))
	if bad != nil || err == nil || err.Error() != "too warm" {
		t.Fatalf("got %v, %v", err, bad)
	}
}

func everyField() request {
	return request{op: opRead, flags: 1, count: 2, body: 16, bodySum: 0x01020304, id: 0x1112131415161718, volume: 0x2122232425262728,
		incarnation: 0x3132333435363738, layer: 0x4142434445464748, off: 0x5152535455565758, n: 0x1717,
		version: 0x7172737475767778, extra: 0x0102030405060708, epoch: 0x414243}
}

// TestLayout pins the frames byte by byte.
func TestLayout(t *testing.T) {
	r := everyField()
	h := make([]byte, requestSize)
	r.encode(h)
	const wantRequest = "54727131" + "0b" + "01" + "0200" + "10000000" + "04030201" + "1817161514131211" + "2827262524232221" +
		"3837363534333231" + "4847464544434241" + "5857565554535251" + "1717000000000000" + "7877767574737271" + "0807060504030201" +
		"43424100" + "113aa2db"
	if got := hex.EncodeToString(h); got != wantRequest {
		t.Errorf("request is\n%s, want\n%s", got, wantRequest)
	}
	var back request
	if err := back.decode(h); err != nil || back != r {
		t.Errorf("got %+v, %v, want %+v", back, err, r)
	}
	a := answer{op: opStable, flags: 1, errno: 3, body: 513, bodySum: 0x01020304, id: 0x1112131415161718}
	h = make([]byte, answerSize)
	a.encode(h)
	const wantAnswer = "54616e31" + "10" + "01" + "0300" + "01020000" + "04030201" + "1817161514131211" + "00000000" + "581d9ca1"
	if got := hex.EncodeToString(h); got != wantAnswer {
		t.Errorf("answer is\n%s, want\n%s", got, wantAnswer)
	}
	var backAnswer answer
	if err := backAnswer.decode(h); err != nil || backAnswer != a {
		t.Errorf("got %+v, %v, want %+v", backAnswer, err, a)
	}
}

// TestDamagedHeaders: no flipped bit is overlooked.
func TestDamagedHeaders(t *testing.T) {
	r := everyField()
	a := answer{op: opRead, id: 9}
	request1, answer1 := make([]byte, requestSize), make([]byte, answerSize)
	r.encode(request1)
	a.encode(answer1)
	for bit := range 8 * requestSize {
		request1[bit/8] ^= 1 << (bit % 8)
		if err := new(request).decode(request1); err == nil {
			t.Errorf("request with bit %d flipped is accepted", bit)
		}
		request1[bit/8] ^= 1 << (bit % 8)
	}
	for bit := range 8 * answerSize {
		answer1[bit/8] ^= 1 << (bit % 8)
		if err := new(answer).decode(answer1); err == nil {
			t.Errorf("answer with bit %d flipped is accepted", bit)
		}
		answer1[bit/8] ^= 1 << (bit % 8)
	}
}

// TestRequestsNoClientSends are refused by their header, before anything is
// allocated for them.
func TestRequestsNoClientSends(t *testing.T) {
	for name, r := range map[string]request{
		"unknown":                  {op: opCount},
		"write longer than MaxIO":  {op: opWrite, n: store.MaxIO + 4096, body: store.MaxIO + 4096},
		"write shorter than body":  {op: opWrite, n: 4096, body: 8192},
		"write without body":       {op: opWrite, n: 4096},
		"read longer than MaxIO":   {op: opRead, layer: 1, n: store.MaxIO + 1},
		"read of nothing":          {op: opRead, layer: 1},
		"read of less":             {op: opReadSealed, layer: 1, n: -1},
		"read without its chain":   {op: opRead, layer: 1, n: 4096, count: 3, body: 16},
		"read of an endless chain": {op: opRead, layer: 1, n: 4096, count: maxChain, body: maxChain * 8},
		"read with a hole first":   {op: opRead, n: 4096, count: 1, body: 8},
		"adopt with other length":  {op: opAdopt, count: uint16(store.Data), n: 8192, body: 4096},
		"hole with bytes":          {op: opAdopt, count: uint16(store.Hole), n: 4096, body: 4096},
		"sync with a body":         {op: opSync, body: 1},
	} {
		h := make([]byte, requestSize)
		r.encode(h)
		if err := new(request).decode(h); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestStatKeepsItsFields(t *testing.T) {
	want := store.Stat{Identity: 1 << 63, Incarnation: 2, Capacity: 3, Used: 4, Live: 5, Corrupt: 6, NoSpace: true, Failed: "the disk is gone",
		Writes: 7, Reads: 8, Syncs: 9, BytesWritten: 10, BytesRead: 11, BytesToDisk: 12, BytesCollected: 13}
	got, err := decodeStat(appendStat(nil, want))
	if err != nil || got != want {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := decodeStat(make([]byte, statFixed-1)); err == nil {
		t.Error("a short one is accepted")
	}
}

func TestInfosInRuns(t *testing.T) {
	a := store.PageInfo{Layer: 1, Kind: store.Data, Version: 5}
	b := store.PageInfo{Layer: 2, Kind: store.Hole, Version: 5}
	want := []store.PageInfo{a, a, b, {}, {}, {}, a}
	k := &call{body: appendRuns(nil, want), info: make([]store.PageInfo, len(want))}
	if len(k.body) != 4*runSize {
		t.Errorf("%d bytes for 4 runs", len(k.body))
	}
	if err := k.decodeInfos(); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if k.info[i] != want[i] {
			t.Errorf("page %d is %+v, want %+v", i, k.info[i], want[i])
		}
	}
	for name, bad := range map[string][]byte{
		"too few":  k.body[:3*runSize],
		"too many": append(appendRuns(nil, want), k.body[:runSize]...),
		"torn":     k.body[:4*runSize-1],
		"empty":    append(make([]byte, runSize), k.body...),
	} {
		if err := (&call{body: bad, info: make([]store.PageInfo, len(want))}).decodeInfos(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
