package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

func be16(v uint16) string { return string(binary.BigEndian.AppendUint16(nil, v)) }
func be32(v uint32) string { return string(binary.BigEndian.AppendUint32(nil, v)) }
func be64(v uint64) string { return string(binary.BigEndian.AppendUint64(nil, v)) }

// testExports has vol1 (the default in these tests), a read-only export and
// one that cannot be opened.
func testExports() memExports {
	return memExports{
		"vol1":   {dev: newMemDevice(1 << 20), desc: "first"},
		"ro":     {dev: newMemDevice(1 << 20), readOnly: true},
		"broken": {dev: newMemDevice(1 << 20), openErr: errors.New("two replicas of three are down")},
		"denied": {dev: newMemDevice(1 << 20), openErr: ErrNotAllowed},
	}
}

const (
	flagsRW = flagHasFlags | flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes |
		flagCanMultiConn | flagSendCache | flagSendFastZero
	flagsRO = flagHasFlags | flagReadOnly | flagSendFlush | flagSendFUA | flagCanMultiConn | flagSendCache
)

// TestOptions sends options and compares all replies. Data of errors, a
// sentence for people, is not compared.
func TestOptions(t *testing.T) {
	export := func(flags uint16) optReply {
		return optReply{repInfo, be16(infoExport) + be64(1<<20) + be16(flags)}
	}
	ack := optReply{typ: repAck}
	fail := func(typ replyType) []optReply { return []optReply{{typ: typ}} }
	alloc := func(id uint32) []optReply {
		return []optReply{{repMetaContext, be32(id) + "base:allocation"}, ack}
	}
	long := strings.Repeat("x", maxString+1)
	type step struct {
		opt  option
		data []byte
		want []optReply
	}
	structured := step{optStructuredReply, nil, []optReply{ack}}
	extended := step{optExtendedHeaders, nil, []optReply{ack}}
	for name, steps := range map[string][]step{
		"info":             {{optInfo, goData("vol1"), []optReply{export(flagsRW), ack}}},
		"info of default":  {{optInfo, goData("", infoName), []optReply{export(flagsRW), {repInfo, be16(infoName) + "vol1"}, ack}}},
		"info read-only":   {{optInfo, goData("ro"), []optReply{export(flagsRO), ack}}},
		"info unknown":     {{optInfo, goData("none"), fail(repErrUnknown)}, {optGo, goData("none"), fail(repErrUnknown)}},
		"go broken":        {{optGo, goData("broken"), fail(repErrUnknown)}, {optGo, goData("denied"), fail(repErrPolicy)}},
		"info of broken":   {{optInfo, goData("broken"), []optReply{export(flagsRW), ack}}},
		"info all":         {{optInfo, goData("vol1", infoBlockSize, infoDescription, infoExport, infoName, 77), []optReply{export(flagsRW), {repInfo, be16(infoName) + "vol1"}, {repInfo, be16(infoDescription) + "first"}, {repInfo, be16(infoBlockSize) + be32(1) + be32(4096) + be32(32<<20)}, ack}}},
		"info, no desc":    {{optInfo, goData("ro", infoDescription), []optReply{export(flagsRO), ack}}},
		"info structured":  {structured, {optInfo, goData("vol1"), []optReply{export(flagsRW | flagSendDF), ack}}},
		"info extended":    {extended, {optInfo, goData("vol1"), []optReply{export(flagsRW | flagSendDF), ack}}},
		"info with status": {extended, {optSetMetaContext, metaData("vol1", "base:allocation"), alloc(1)}, {optInfo, goData("vol1"), []optReply{export(flagsRW | flagSendDF | flagBlockStatusPayload), ack}}, {optInfo, goData("ro"), []optReply{export(flagsRO | flagSendDF), ack}}},

		"info empty":           {{optInfo, nil, fail(repErrInvalid)}},
		"info short":           {{optInfo, []byte{0, 0, 0, 0, 0}, fail(repErrInvalid)}},
		"info name too long":   {{optInfo, goData(long), fail(repErrInvalid)}},
		"info name past end":   {{optInfo, []byte("\x00\x00\x00\x05vol1\x00\x00"), fail(repErrInvalid)}, {optInfo, []byte("\xff\xff\xff\xffvol1\x00\x00"), fail(repErrInvalid)}},
		"info name with NUL":   {{optInfo, goData("vol1\x00"), fail(repErrInvalid)}},
		"info name not UTF-8":  {{optInfo, goData("vol\xff"), fail(repErrInvalid)}},
		"info count too high":  {{optInfo, append(goData("vol1")[:8], 0, 3, 0, 1), fail(repErrInvalid)}},
		"info count too low":   {{optInfo, append(goData("vol1", 1, 2), 0), fail(repErrInvalid)}},
		"go invalid goes on":   {{optGo, []byte("x"), fail(repErrInvalid)}, {optInfo, goData("vol1"), []optReply{export(flagsRW), ack}}},
		"unknown option":       {{77, []byte("whatever"), fail(repErrUnsup)}, {4, nil, fail(repErrUnsup)}, {optInfo, goData("vol1"), []optReply{export(flagsRW), ack}}},
		"too big":              {{optInfo, make([]byte, maxOptionData+1), fail(repErrTooBig)}, {optInfo, goData("vol1"), []optReply{export(flagsRW), ack}}},
		"list with data":       {{optList, []byte("x"), fail(repErrInvalid)}},
		"structured with data": {{optStructuredReply, []byte("x"), fail(repErrInvalid)}},
		"structured twice":     {structured, {optStructuredReply, nil, fail(repErrInvalid)}},
		"extended with data":   {{optExtendedHeaders, []byte("x"), fail(repErrInvalid)}},
		"extended twice":       {extended, {optExtendedHeaders, nil, fail(repErrInvalid)}},
		"structured, extended": {structured, extended},
		"extended, structured": {extended, {optStructuredReply, nil, fail(repErrExtHeaderRequired)}},
		"starttls off":         {{optStartTLS, nil, fail(repErrPolicy)}, {optStartTLS, []byte("x"), fail(repErrInvalid)}},

		"set without structured": {{optSetMetaContext, metaData("vol1", "base:allocation"), fail(repErrInvalid)}},
		"set":                    {structured, {optSetMetaContext, metaData("vol1", "base:allocation"), alloc(1)}},
		"set extended":           {extended, {optSetMetaContext, metaData("vol1", "base:allocation"), alloc(1)}},
		"set twice in one":       {structured, {optSetMetaContext, metaData("vol1", "base:allocation", "base:allocation"), alloc(1)}},
		"set none":               {structured, {optSetMetaContext, metaData("vol1"), []optReply{ack}}},
		"set wildcard":           {structured, {optSetMetaContext, metaData("vol1", "base:"), []optReply{ack}}},
		"set unknown leaf":       {structured, {optSetMetaContext, metaData("vol1", "base:more", "x-torus:y", "qemu:"), []optReply{ack}}},
		"set no namespace":       {structured, {optSetMetaContext, metaData("vol1", "allocation"), fail(repErrInvalid)}},
		"set unknown export":     {structured, {optSetMetaContext, metaData("none", "base:allocation"), fail(repErrUnknown)}},
		"set long query":         {structured, {optSetMetaContext, metaData("vol1", "base:"+long), fail(repErrInvalid)}},
		"set short":              {structured, {optSetMetaContext, []byte{0, 0, 0, 0, 0, 0, 0}, fail(repErrInvalid)}, {optSetMetaContext, nil, fail(repErrInvalid)}},
		"set query past end":     {structured, {optSetMetaContext, []byte(be32(4) + "vol1" + be32(1) + be32(16) + "base:allocation"), fail(repErrInvalid)}, {optSetMetaContext, []byte(be32(4) + "vol1" + be32(1<<31)), fail(repErrInvalid)}},
		"set trailing bytes":     {structured, {optSetMetaContext, append(metaData("vol1", "base:allocation"), 0), fail(repErrInvalid)}},
		"list contexts":          {{optListMetaContext, metaData("vol1"), alloc(0)}, {optListMetaContext, metaData("vol1", "base:"), alloc(0)}, {optListMetaContext, metaData("vol1", "base:allocation"), alloc(0)}, {optListMetaContext, metaData("vol1", "base:x", "other:"), []optReply{ack}}, {optListMetaContext, metaData("none"), fail(repErrUnknown)}},
		"failed set deselects":   {extended, {optSetMetaContext, metaData("vol1", "base:allocation"), alloc(1)}, {optSetMetaContext, nil, fail(repErrInvalid)}, {optInfo, goData("vol1"), []optReply{export(flagsRW | flagSendDF), ack}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, tcp, _ := startServer(t, Options{Exports: testExports(), DefaultExport: "vol1"})
			c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
			for i, s := range steps {
				got := c.option(s.opt, s.data)
				if !sameReplies(got, s.want) {
					t.Fatalf("step %d, option %d: replies %x\nwant %x", i, s.opt, got, s.want)
				}
			}
		})
	}
}

func sameReplies(got, want []optReply) bool {
	if len(got) != len(want) {
		return false
	}
	for i, g := range got {
		if g.typ != want[i].typ || g.typ < 1<<31 && g.data != want[i].data {
			return false
		}
		if g.typ >= 1<<31 && g.data == "" {
			return false // errors explain themselves
		}
	}
	return true
}

func TestList(t *testing.T) {
	exports := testExports()
	_, tcp, _ := startServer(t, Options{Exports: exports})
	c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	for range 2 {
		got := map[string]bool{}
		replies := c.mustAck(optList, nil)
		for _, r := range replies[:len(replies)-1] {
			if r.typ != repServer {
				t.Fatalf("reply %#x", uint32(r.typ))
			}
			got[r.data] = true
		}
		for name, e := range exports {
			if !got[be32(uint32(len(name)))+name+e.desc] {
				t.Errorf("%s is missing in %v", name, got)
			}
		}
		if len(got) != len(exports) {
			t.Errorf("%d exports, want %d", len(got), len(exports))
		}
	}
	if n := exports["vol1"].opens.Load(); n != 0 {
		t.Errorf("listing opened the export %d times", n)
	}
}

func TestAbort(t *testing.T) {
	_, tcp, _ := startServer(t, Options{Exports: testExports()})
	c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
	c.mustAck(optAbort, []byte("data with it is ignored"))
	c.closed()
}

// TestExportName is the old way in, with and without zeroes, and after it a
// request must work.
func TestExportName(t *testing.T) {
	_, tcp, _ := startServer(t, Options{Exports: testExports(), DefaultExport: "vol1"})
	for _, flags := range []uint32{0, clientFixedNewstyle, clientNoZeroes, clientFixedNewstyle | clientNoZeroes} {
		for _, name := range []string{"", "vol1"} {
			c := dialRaw(t, "tcp", tcp, flags)
			c.write(rawOption(optExportName, []byte(name)))
			want := be64(1<<20) + be16(flagsRW)
			if flags&clientNoZeroes == 0 {
				want += string(make([]byte, 124))
			}
			got := make([]byte, len(want))
			c.read(got)
			if string(got) != want {
				t.Errorf("flags %d: %x, want %x", flags, got, want)
			}
			c.write(rawRequest(simpleReplies, 0, cmdRead, 9, 0, 512, nil))
			if r := c.reply(512); r.err != eOK || r.cookie != 9 || !bytes.Equal(r.data, make([]byte, 512)) {
				t.Errorf("read after EXPORT_NAME: %v", r.err)
			}
		}
	}
}

// TestBadHandshakes must each end with a closed connection.
func TestBadHandshakes(t *testing.T) {
	_, tcp, _ := startServer(t, Options{Exports: testExports()})
	for name, tc := range map[string]struct {
		flags uint32
		send  []byte
	}{
		"unknown client flag":       {1 << 2, nil},
		"high client flag":          {1 << 31, nil},
		"bad magic":                 {1, make([]byte, 16)},
		"unknown export by name":    {1, rawOption(optExportName, []byte("none"))},
		"long export name":          {1, rawOption(optExportName, make([]byte, maxString+1))},
		"huge option":               {1, rawOption(optInfo, nil)[:12]},
		"option without fixed":      {0, rawOption(optList, nil)},
		"huge export name":          {1, append(rawOption(optExportName, nil)[:12], 0xff, 0xff, 0xff, 0xff)},
		"export name with NUL":      {1, rawOption(optExportName, []byte("a\x00b"))},
		"export name after headers": {1, append(rawOption(optExtendedHeaders, nil), rawOption(optExportName, []byte("vol1"))...)},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialRaw(t, "tcp", tcp, tc.flags)
			if name == "huge option" {
				tc.send = append(tc.send, 0xff, 0xff, 0xff, 0xff)
			}
			c.nc.Write(tc.send) // the server may be gone already
			if name == "export name after headers" {
				c.optionReplies(optExtendedHeaders)
			}
			c.closed()
		})
	}
}

// TestContextOfAnotherExport: a context selected for one export does not hold
// for another, and an export's aliases are one.
func TestContextOfAnotherExport(t *testing.T) {
	_, tcp, _ := startServer(t, Options{Exports: testExports(), DefaultExport: "vol1"})
	for _, tc := range []struct {
		set, open string
		want      errno
	}{{"vol1", "vol1", eOK}, {"", "vol1", eOK}, {"vol1", "", eOK}, {"ro", "vol1", eINVAL}} {
		c := dialRaw(t, "tcp", tcp, clientFixedNewstyle)
		c.mustAck(optStructuredReply, nil)
		c.mustAck(optSetMetaContext, metaData(tc.set, "base:allocation"))
		c.mustAck(optGo, goData(tc.open))
		c.write(rawRequest(structuredReplies, 0, cmdBlockStatus, 1, 0, 4096, nil))
		if r := c.reply(0); r.err != tc.want {
			t.Errorf("set %q, open %q: %v, want %v", tc.set, tc.open, r.err, tc.want)
		}
	}
}
