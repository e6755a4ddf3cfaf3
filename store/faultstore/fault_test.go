package faultstore_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"torus/store"
	"torus/store/faultstore"
)

func TestFaultsPrintAndParse(t *testing.T) {
	for _, try := range []struct {
		text  string
		fault faultstore.Fault
	}{
		{"writes fail after 3", faultstore.Fault{Ops: faultstore.Write, Effect: faultstore.Fail, After: 3}},
		{"syncs fail once", faultstore.Fault{Ops: faultstore.Sync, Effect: faultstore.Fail, Times: 1}},
		{"writes hang", faultstore.Fault{Ops: faultstore.Write, Effect: faultstore.Hang}},
		{"reads delay 20ms after 4", faultstore.Fault{Ops: faultstore.Read, Effect: faultstore.Delay, Delay: 20 * time.Millisecond, After: 4}},
		{"reads of layer 00000000000000a1 corrupt", faultstore.Fault{Ops: faultstore.Read, Layer: 0xa1, Effect: faultstore.Corrupt}},
		{"reads of layer 00000000000000a1 at [4096,8192) corrupt", faultstore.Fault{Ops: faultstore.Read, Layer: 0xa1, Off: 4096, End: 8192, Effect: faultstore.Corrupt}},
		{"writes,zeroes apply and hang 2 times", faultstore.Fault{Ops: faultstore.Write | faultstore.Zero, Effect: faultstore.Hang, Applied: true, Times: 2}},
		{"requests fail with timeout", faultstore.Fault{Ops: faultstore.All, Effect: faultstore.Fail, Err: context.DeadlineExceeded}},
		{"adopts tear with no-space after 1 once", faultstore.Fault{Ops: faultstore.Adopt, Effect: faultstore.Tear, Err: store.ErrNoSpace, After: 1, Times: 1}},
		{"attaches,reads,drops,forgets,lists,stats,creates,extents,unstables,stables apply and crash", faultstore.Fault{
			Ops:    faultstore.All &^ (faultstore.Write | faultstore.Zero | faultstore.Sync | faultstore.Adopt),
			Effect: faultstore.Crash, Applied: true}},
	} {
		if got := try.fault.String(); got != try.text {
			t.Errorf("%#v prints as %q, want %q", try.fault, got, try.text)
		}
		if got, err := faultstore.Parse(try.text); err != nil || got != try.fault {
			t.Errorf("%q parses as %#v, %v, want %#v", try.text, got, err, try.fault)
		}
	}
}

func TestFromIsAfterOneLess(t *testing.T) {
	if got := faultstore.MustParse("reads delay 20ms from 5").String(); got != "reads delay 20ms after 4" {
		t.Error(got)
	}
	if got := faultstore.MustParse("reads fail from 1").String(); got != "reads fail" {
		t.Error(got)
	}
}

func TestParseErrorsNameTheWord(t *testing.T) {
	for text, word := range map[string]string{
		"":                                "the end stands where kinds",
		"writes":                          "the end stands where an effect",
		"scribbles fail":                  `"scribbles"`,
		"writes,scribbles fail":           `"writes,scribbles"`,
		"writes explode":                  `"explode"`,
		"writes fail with joy":            `"joy"`,
		"writes hang with failed":         `"with"`,
		"writes apply and tear":           `"tear"`,
		"writes fail after -1":            `"-1"`,
		"writes fail after 0":             `"0"`,
		"writes fail from 0":              `"0"`,
		"writes fail 3":                   `the end stands where "times"`,
		"writes fail once more":           `"more"`,
		"reads delay":                     "the end stands where a duration",
		"reads delay -1s":                 `"-1s"`,
		"reads of layer 0 corrupt":        `"0"`,
		"reads of layer xyz corrupt":      `"xyz"`,
		"reads at [8,8) corrupt":          `"[8,8)"`,
		"reads at 0..8 corrupt":           `"0..8"`,
		"reads corrupt with no-space":     `"with"`,
		"writes fail after 1 after 2":     `"after"`,
		"reads of layer ff of layer ff f": `"of"`,
	} {
		if f, err := faultstore.Parse(text); err == nil {
			t.Errorf("%q parses as %v", text, f)
		} else if !strings.Contains(err.Error(), word) {
			t.Errorf("%q: the error %q does not say %s", text, err, word)
		}
	}
}

func TestInjectRefusesMalformedFaults(t *testing.T) {
	for _, f := range []faultstore.Fault{
		{},
		{Ops: faultstore.Write},
		{Effect: faultstore.Fail},
		{Ops: faultstore.Write, Effect: 99},
		{Ops: faultstore.Read, Effect: faultstore.Delay},
		{Ops: faultstore.Read, Effect: faultstore.Fail, Delay: time.Second},
		{Ops: faultstore.Read, Effect: faultstore.Fail, Err: context.Canceled},
		{Ops: faultstore.Read, Effect: faultstore.Fail, After: -1},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%#v was injected", f)
				}
			}()
			faultstore.New(nil, faultstore.Options{}).Inject(f)
		}()
	}
}

func FuzzParse(f *testing.F) {
	f.Add("writes fail after 3")
	f.Add("reads,syncs of layer a1 at [0,4096) apply and fail with timeout from 7 2 times")
	f.Add("reads delay 1h2m after 9 once")
	f.Fuzz(func(t *testing.T, text string) {
		fault, err := faultstore.Parse(text)
		if err != nil {
			return
		}
		printed := fault.String()
		again, err := faultstore.Parse(printed)
		if err != nil {
			t.Fatalf("%q prints as %q: %v", text, printed, err)
		}
		if again.String() != printed {
			t.Fatalf("%q prints as %q, which prints as %q", text, printed, again)
		}
	})
}
