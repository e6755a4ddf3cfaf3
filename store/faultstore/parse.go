package faultstore

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"torus/store"
)

// Parse reads a fault as Fault.String prints it:
//
//	kind[,kind…] [of layer ID] [at [OFF,END)] EFFECT [after N] [once | N times]
//
// kind: attaches, reads, drops, forgets, lists, stats, creates, writes, zeroes,
// syncs, extents, unstables, adopts, stables, or requests for all of them.
//
// EFFECT: fail [with ERROR], tear [with ERROR], hang, crash, delay DURATION,
// corrupt; before fail, hang and crash also "apply and", which carries the
// request out first. ERROR: failed, fenced, incarnation, unknown-layer, corrupt,
// no-space, closed, timeout.
//
// "from N" may stand for "after N-1". Examples: "writes fail after 3",
// "reads delay 20ms from 5", "syncs fail once", "writes,zeroes apply and hang",
// "reads of layer 00000000000000a1 at [0,4096) corrupt".
func Parse(text string) (Fault, error) {
	p := parser{words: strings.Fields(text)}
	f := Fault{Ops: p.ops()}
	if p.accept("of", "layer") {
		f.Layer = p.layer()
	}
	if p.accept("at") {
		f.Off, f.End = p.byteRange()
	}
	f.Applied = p.accept("apply", "and")
	f.Effect = p.effect(f.Applied)
	switch {
	case f.Effect == Delay:
		f.Delay = p.duration()
	case (f.Effect == Fail || f.Effect == Tear) && p.accept("with"):
		f.Err = p.errorName()
	}
	switch {
	case p.accept("after"):
		f.After = p.number(1)
	case p.accept("from"):
		f.After = p.number(1) - 1
	}
	switch {
	case p.accept("once"):
		f.Times = 1
	case len(p.words) > 0:
		f.Times = p.number(1)
		if !p.accept("times") {
			p.fail(`"times"`)
		}
	}
	if len(p.words) > 0 {
		p.fail("the end")
	}
	if p.err != nil {
		return Fault{}, fmt.Errorf("fault %q: %w", text, p.err)
	}
	return f, nil
}

// MustParse is Parse for faults that stand in the code; it panics on an error.
func MustParse(text string) Fault {
	f, err := Parse(text)
	if err != nil {
		panic(err)
	}
	return f
}

// A parser takes words from the front and keeps the first error.
type parser struct {
	words []string
	err   error
}

func (p *parser) fail(wanted string) {
	if p.err == nil {
		here := "the end"
		if len(p.words) > 0 {
			here = strconv.Quote(p.words[0])
		}
		p.err = fmt.Errorf("%s stands where %s should", here, wanted)
	}
	p.words = nil
}

// accept takes these words if they come next.
func (p *parser) accept(words ...string) bool {
	if len(p.words) < len(words) || !slices.Equal(p.words[:len(words)], words) {
		return false
	}
	p.words = p.words[len(words):]
	return true
}

// next takes the next word if read understands it.
func (p *parser) next(wanted string, read func(word string) bool) {
	if len(p.words) == 0 || !read(p.words[0]) {
		p.fail(wanted)
		return
	}
	p.words = p.words[1:]
}

func (p *parser) ops() (ops Op) {
	p.next("kinds of requests", func(word string) bool {
		if word == Op(All).String() {
			ops = All
			return true
		}
		for name := range strings.SplitSeq(word, ",") {
			i := slices.Index(opNames[:], name)
			if i < 0 {
				return false
			}
			ops |= 1 << i
		}
		return true
	})
	return ops
}

func (p *parser) layer() (id store.LayerID) {
	p.next("a layer's ID in hexadecimal", func(word string) bool {
		n, err := strconv.ParseUint(word, 16, 64)
		id = store.LayerID(n)
		return err == nil && n != 0
	})
	return id
}

func (p *parser) byteRange() (off, end int64) {
	p.next("a range of bytes like [0,4096)", func(word string) bool {
		inner, open := strings.CutPrefix(word, "[")
		inner, closed := strings.CutSuffix(inner, ")")
		a, b, two := strings.Cut(inner, ",")
		var err1, err2 error
		off, err1 = strconv.ParseInt(a, 10, 64)
		end, err2 = strconv.ParseInt(b, 10, 64)
		return open && closed && two && err1 == nil && err2 == nil && 0 <= off && off < end
	})
	return off, end
}

func (p *parser) effect(applied bool) (e Effect) {
	p.next("an effect", func(word string) bool {
		e = Effect(max(0, slices.Index(effectNames[:], word)))
		return e != 0 && (!applied || e == Fail || e == Hang || e == Crash)
	})
	return e
}

func (p *parser) duration() (d time.Duration) {
	p.next("a duration", func(word string) bool {
		var err error
		d, err = time.ParseDuration(word)
		return err == nil && d > 0
	})
	return d
}

func (p *parser) errorName() (err error) {
	p.next("the name of an error", func(word string) bool {
		err = errorNames[word]
		return err != nil
	})
	return err
}

func (p *parser) number(least int) (n int) {
	p.next(fmt.Sprintf("a number of at least %d", least), func(word string) bool {
		var err error
		n, err = strconv.Atoi(word)
		return err == nil && n >= least
	})
	return n
}
