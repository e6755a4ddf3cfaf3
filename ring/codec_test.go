package ring

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func mustEncode(t testing.TB, r *Ring) []byte {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEncodedRingsAreTheSame(t *testing.T) {
	for _, c := range []struct{ copies, members int }{{1, 1}, {2, 3}, {3, 256}, {3, 257}, {16, 1000}} {
		r := mustRing(t, c.copies, cluster(c.members), nil)
		b := mustEncode(t, r)
		var again Ring
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatal(err)
		}
		if again.copies != r.copies || !slices.Equal(again.members, r.members) || !slices.Equal(again.table, r.table) {
			t.Errorf("%+v: another ring after decoding", c)
		}
		if len(b) >= 1<<20 {
			t.Errorf("%+v: encoded in %d bytes, more than 1 MiB", c, len(b))
		}
	}
}

// table replaces bytes of the encoded table of a ring.
func table(t *testing.T, encoded []byte, change func(raw []byte) []byte) string {
	var e encodedRing
	if err := json.Unmarshal(encoded, &e); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(e.Table)
	if err != nil {
		t.Fatal(err)
	}
	e.Table = base64.StdEncoding.EncodeToString(change(raw))
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDecodingRefuses(t *testing.T) {
	good := mustEncode(t, mustRing(t, 2, cluster(3), nil))
	first := cluster(3)[1].ID.String() // the lowest ID
	swap := func(old, by string) string {
		if !strings.Contains(string(good), old) {
			t.Fatalf("no %q in %.300s", old, good)
		}
		return strings.Replace(string(good), old, by, 1)
	}
	for _, c := range []struct {
		encoded string
		err     error
		says    string
	}{
		{"", ErrInvalid, "EOF"},
		{"null", ErrInvalid, "format 0"},
		{string(good) + "{}", ErrInvalid, "something follows the ring"},
		{swap(`"format":1`, `"format":2`), ErrInvalid, "format 2: this release reads format 1"},
		{swap(`"format":1`, `"format":1,"more":1`), ErrInvalid, "more"},
		{swap(`"copies":2`, `"copies":4`), ErrTooFewMembers, "4 copies need 4 members, there are 3"},
		{swap(`"copies":2`, `"copies":3`), ErrInvalid, "table of 43692 characters: must be 65536"},
		{swap(`"copies":2`, `"copies":-1`), ErrInvalid, "-1 copies: must be 1 to 16"},
		{swap(`"partitions":16384`, `"partitions":8192`), ErrInvalid, "8192 partitions"},
		{swap(`"weight":4398046511104`, `"weight":0`), ErrInvalid, "weight 0"},
		{swap(`"weight":4398046511104`, `"weight":1e30`), ErrInvalid, "1e30"},
		{swap(`"id":"`, `"id":"+`), ErrInvalid, "16 hexadecimal digits"},
		{swap(`"id":"`+first, `"id":"ffffffffffffffff`), ErrInvalid, "not in order of ID"},
		{table(t, good, func(raw []byte) []byte { return raw[1:] }), ErrInvalid, "table"},
		{table(t, good, func(raw []byte) []byte { raw[5] = 3; return raw }), ErrInvalid, "partition 2 is on member 3 of 3"},
		{table(t, good, func(raw []byte) []byte { raw[5] = raw[4]; return raw }), ErrInvalid, "partition 2 is twice on node"},
		{swap(`"table":"`, `"table":"*`), ErrInvalid, "table of 43693 characters"},
	} {
		var r Ring
		err := r.UnmarshalJSON([]byte(c.encoded))
		if !errors.Is(err, c.err) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%.80q: %v, want %q", c.encoded, err, c.says)
		}
		if r.copies != 0 {
			t.Errorf("%.80q: refused, but the ring has changed", c.encoded)
		}
	}
}

// What is decoded can be used, and encodes to a ring that is the same. The table is
// long, so it is not left to chance: head is all before it, and one byte is changed.
func FuzzDecode(f *testing.F) {
	const one = `{"format":1,"copies":1,"partitions":16384,"members":[{"id":"0000000000000001","weight":1,"zone":"","host":""}]`
	f.Add([]byte(one), uint16(0), byte(0))
	f.Add([]byte(strings.Replace(one, `}]`, `},{"id":"0000000000000002","weight":9e3,"zone":"b","host":"h"}]`, 1)), uint16(7), byte(1))
	f.Add([]byte(one+`,"table":""}`), uint16(7), byte(1))
	f.Add([]byte(strings.Replace(one, `[{"id"`, `[{},null,{"id"`, 1)), uint16(7), byte(1))
	f.Fuzz(func(t *testing.T, head []byte, at uint16, by byte) {
		decodeAnything(t, head)
		raw := make([]byte, Partitions)
		raw[int(at)%Partitions] = by
		decodeAnything(t, fmt.Appendf(nil, `%s,"table":"%s"}`, head, base64.StdEncoding.EncodeToString(raw)))
	})
}

func decodeAnything(t *testing.T, b []byte) {
	var r, again Ring
	if err := r.UnmarshalJSON(b); err != nil {
		if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooFewMembers) {
			t.Fatalf("neither of the two errors: %v", err)
		}
		return
	}
	encoded := mustEncode(t, &r)
	if err := again.UnmarshalJSON(encoded); err != nil || !bytes.Equal(encoded, mustEncode(t, &again)) {
		t.Fatalf("decoded, encoded and decoded again: %v", err)
	}
	if n := len(r.Nodes(1, 2)); n != r.Copies() {
		t.Fatalf("%d nodes for %d copies", n, r.Copies())
	}
	for _, s := range r.Shares() {
		if !(s.Best > 0 && s.Best <= 1.0001) {
			t.Fatalf("a best share of %v", s.Best)
		}
	}
}
