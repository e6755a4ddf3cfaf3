package faultstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"torus/store"
)

// Op is a set of kinds of requests.
type Op uint16

// The kinds of requests; each is a method, but List is Layers and Fences, and
// Read is ReadSealed too.
const (
	Attach Op = 1 << iota
	Read
	Drop
	Forget
	List
	Stat
	Create
	Write
	Zero
	Sync
	Extents
	Unstable
	Adopt
	Stable

	// All is every kind of request.
	All = 1<<iota - 1
)

// opNames are in order of the bits.
var opNames = [...]string{
	"attaches", "reads", "drops", "forgets", "lists", "stats", "creates",
	"writes", "zeroes", "syncs", "extents", "unstables", "adopts", "stables",
}

// String names the kinds, with commas between them; all of them are "requests".
func (o Op) String() string {
	if o == All {
		return "requests"
	}
	var names []string
	for i, name := range opNames {
		if o&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// Effect is what befalls a request.
type Effect uint8

const (
	// Fail returns an error. A Sync that fails with ErrFailed gives the store
	// another incarnation, as a failed fdatasync does (N2).
	Fail Effect = iota + 1
	// Hang waits until the request's context is done, which is its error, or
	// the fault is removed, whereupon the request goes on, late.
	Hang
	// Delay waits, and lets the request go on.
	Delay
	// Corrupt makes a read that comes upon a page return a *CorruptError. A
	// page that was written, zeroed or adopted since is sound again.
	Corrupt
	// Tear applies the first half of the pages of a Write, Zero or Adopt and
	// returns an error; of anything else it applies nothing.
	Tear
	// Crash is Store.Crash.
	Crash
)

var effectNames = [...]string{
	Fail: "fail", Hang: "hang", Delay: "delay", Corrupt: "corrupt", Tear: "tear", Crash: "crash",
}

// A Fault befalls some requests, which it counts itself. Two Faults are the
// same if they are equal.
type Fault struct {
	Ops    Op
	Layer  store.LayerID // only requests that touch it; 0: any
	Off    int64         // bytes; only requests that touch [Off, End)
	End    int64         // 0: anywhere
	Effect Effect
	// Applied lets the request be carried out before it fails, hangs or
	// crashes the store: its answer is what gets lost.
	Applied bool
	Err     error         // of Fail and Tear, one of Errors; nil: store.ErrFailed
	Delay   time.Duration // of Delay
	After   int           // so many requests are spared first
	Times   int           // then so many are befallen; 0: all
}

// errorNames are the errors that Fail and Tear can return.
var errorNames = map[string]error{
	"failed":        store.ErrFailed,
	"fenced":        store.ErrFenced,
	"incarnation":   store.ErrIncarnation,
	"unknown-layer": store.ErrUnknownLayer,
	"corrupt":       store.ErrCorrupt,
	"no-space":      store.ErrNoSpace,
	"closed":        store.ErrClosed,
	"unreachable":   store.ErrUnreachable,
	"timeout":       context.DeadlineExceeded,
}

// String returns the fault as Parse reads it.
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.Ops.String())
	if f.Layer != 0 {
		fmt.Fprintf(&b, " of layer %v", f.Layer)
	}
	if f.End != 0 {
		fmt.Fprintf(&b, " at [%d,%d)", f.Off, f.End)
	}
	if f.Applied {
		b.WriteString(" apply and")
	}
	b.WriteString(" " + f.effect())
	if f.After > 0 {
		fmt.Fprintf(&b, " after %d", f.After)
	}
	switch {
	case f.Times == 1:
		b.WriteString(" once")
	case f.Times > 1:
		fmt.Fprintf(&b, " %d times", f.Times)
	}
	return b.String()
}

// effect returns the effect with what belongs to it.
func (f Fault) effect() string {
	if f.Effect < Fail || f.Effect > Crash {
		return fmt.Sprintf("effect(%d)", uint8(f.Effect))
	}
	name := effectNames[f.Effect]
	if f.Effect == Delay {
		return name + " " + f.Delay.String()
	}
	for text, err := range errorNames {
		if f.Err == err && err != store.ErrFailed {
			return name + " with " + text
		}
	}
	return name
}

// check says what is wrong with a fault that Parse would not return.
func (f Fault) check() error {
	again, err := Parse(f.String())
	if err == nil && again.normal() != f.normal() {
		err = fmt.Errorf("faultstore: %q is not all of %#v", f, f)
	}
	return err
}

// normal has the one form of what can be said in two.
func (f Fault) normal() Fault {
	if f.Err == nil && (f.Effect == Fail || f.Effect == Tear) {
		f.Err = store.ErrFailed
	}
	return f
}
