package main_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A tortured volume is written by several writers, each in a region of its own,
// one request after the other, so that what each unit of it may hold is known; and
// read by readers everywhere.
const (
	tortureWriters = 8
	tortureReaders = 2
	tortureRegion  = 8 << 20
	tortureSize    = tortureWriters * tortureRegion
	// The first region is written in sectors, so that pages are merged.
	sectorSize = 512
)

// tortureLoad is the load and its model.
type tortureLoad struct {
	addr    string
	regions []*region
	numbers atomic.Uint64
	flood   atomic.Bool // no pauses between requests
	noSpace atomic.Bool // some disk is full, or was until a moment ago
	mayEnd  atomic.Bool // the exporter was ended, has lost its lease, or copies were started anew

	quit    chan struct{}
	running sync.WaitGroup
	failed  chan error // capacity 1: what a read showed, or a request was answered, that must not be

	requests, refused, breaks atomic.Int64
	slowest                   atomic.Int64
}

// A write that a unit may hold: the number that it was filled with, 0 for zeroes.
type held struct{ order, number uint64 }

// A region is what one writer writes.
type region struct {
	off, unit int64
	done      atomic.Int64 // requests answered

	mu    sync.Mutex
	may   [][]held // of each unit, oldest first
	reads []*strangeRead
}

// A strangeRead is a read by another than the writer: it may show what was there
// when it began, and all that was written meanwhile.
type strangeRead struct {
	first int
	may   [][]held
}

func newTortureLoad(addr string) *tortureLoad {
	l := &tortureLoad{addr: addr, quit: make(chan struct{}), failed: make(chan error, 1)}
	for i := range tortureWriters {
		r := &region{off: int64(i) * tortureRegion, unit: 4096}
		if i == 0 {
			r.unit = sectorSize
		}
		r.may = make([][]held, tortureRegion/r.unit)
		for u := range r.may {
			r.may[u] = []held{{}}
		}
		l.regions = append(l.regions, r)
	}
	return l
}

// begin runs the load until end.
func (l *tortureLoad) begin(seed uint64) {
	for i, r := range l.regions {
		l.running.Go(func() { l.write(r, rand.New(rand.NewPCG(seed, uint64(100+i)))) })
	}
	for i := range tortureReaders {
		l.running.Go(func() { l.readAll(rand.New(rand.NewPCG(seed, uint64(200+i)))) })
	}
}

func (l *tortureLoad) end() {
	close(l.quit)
	l.running.Wait()
}

// fail keeps the first failure.
func (l *tortureLoad) fail(err error) {
	select {
	case l.failed <- err:
	default:
	}
}

// ended reports whether the load is to end.
func (l *tortureLoad) ended() bool {
	select {
	case <-l.quit:
		return true
	default:
		return false
	}
}

// A tortureClient is a connection that is made again when it breaks.
type tortureClient struct {
	l *tortureLoad
	c *nbdClient
}

// request makes one; sent is false if the load ended before it was. Its error is
// that of a connection that broke, or of the volume.
func (tc *tortureClient) request(make func(c *nbdClient) *nbdCall) (sent bool, err error) {
	for tc.c == nil {
		c, err := dialNBD(tc.l.addr, "vol1")
		if err == nil {
			tc.c = c
			break
		}
		select {
		case <-tc.l.quit:
			return false, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
	begun := time.Now()
	err = <-make(tc.c).done
	took := int64(time.Since(begun))
	for was := tc.l.slowest.Load(); took > was && !tc.l.slowest.CompareAndSwap(was, took); was = tc.l.slowest.Load() {
	}
	tc.l.requests.Add(1)
	switch {
	case err == nil:
	case err.Error() == "NBD error 28" && tc.l.noSpace.Load():
		tc.l.refused.Add(1)
	case err.Error() == "NBD error 108" && tc.l.mayEnd.Load(): // the connection is about to end
		tc.l.breaks.Add(1)
		tc.c.close()
		tc.c = nil
	case strings.HasPrefix(err.Error(), "NBD error"):
		tc.l.fail(fmt.Errorf("a request was answered with %w", err))
	case !tc.l.mayEnd.Load():
		tc.l.fail(fmt.Errorf("a connection broke though nothing had been done to the exporter: %w", err))
	default:
		tc.l.breaks.Add(1)
		tc.c.close()
		tc.c = nil
	}
	return true, err
}

func (tc *tortureClient) close() {
	if tc.c != nil {
		tc.c.close()
	}
}

// write is a writer's life.
func (l *tortureLoad) write(r *region, rng *rand.Rand) {
	tc := &tortureClient{l: l}
	defer tc.close()
	buf := make([]byte, 256<<10)
	for !l.ended() {
		units := 1 + rng.IntN(8)
		if rng.IntN(8) == 0 {
			units = 1 + rng.IntN(len(buf)/int(r.unit))
		}
		first := rng.IntN(len(r.may) - units)
		var sent bool
		var err error
		switch op := rng.IntN(20); {
		case op < 12:
			sent, err = l.change(tc, r, first, units, nbdWrite, buf)
		case op < 13:
			sent, err = l.change(tc, r, first, units, nbdZero, buf)
		case op < 14 && r.unit == 4096: // of parts of pages nothing is promised
			sent, err = l.change(tc, r, first, units, nbdTrim, buf)
		case op < 18:
			sent, err = tc.request(func(c *nbdClient) *nbdCall { return c.read(buf[:units*int(r.unit)], r.off+int64(first)*r.unit) })
			if sent && err == nil {
				err = r.own(first, buf[:units*int(r.unit)])
				if err != nil {
					l.fail(err)
					return
				}
			}
		default:
			sent, err = tc.request((*nbdClient).flush)
		}
		if sent && err == nil {
			r.done.Add(1)
		}
		if !l.flood.Load() {
			select {
			case <-l.quit:
			case <-time.After(time.Duration(rng.IntN(6)) * time.Millisecond):
			}
		}
	}
}

// change writes, zeroes or trims some units.
func (l *tortureLoad) change(tc *tortureClient, r *region, first, units int, cmd uint16, buf []byte) (sent bool, err error) {
	order := l.numbers.Add(1)
	h := held{order: order}
	var payload []byte
	off, n := r.off+int64(first)*r.unit, units*int(r.unit)
	if cmd == nbdWrite {
		h.number = order
		payload = buf[:n]
		for i := range units {
			fill(payload[i*int(r.unit):][:r.unit], r.place(first+i), order)
		}
	}
	sent, err = tc.request(func(c *nbdClient) *nbdCall {
		r.sent(first, units, h)
		return c.send(cmd, off, n, payload, nil)
	})
	if sent && err == nil {
		r.settled(first, units, h)
	}
	return sent, err
}

// place is what fill is told of a unit.
func (r *region) place(u int) int { return int((r.off + int64(u)*r.unit) / sectorSize) }

// sent notes what units may hold from now on.
func (r *region) sent(first, units int, h held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for u := first; u < first+units; u++ {
		r.may[u] = append(r.may[u], h)
		for _, s := range r.reads {
			if i := u - s.first; i >= 0 && i < len(s.may) {
				s.may[i] = append(s.may[i], h)
			}
		}
	}
}

// settled notes that nothing else is in units any more.
func (r *region) settled(first, units int, h held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for u := first; u < first+units; u++ {
		r.may[u] = append(r.may[u][:0:0], h)
	}
}

// own checks what the writer reads. With no write under way, what was read stays
// (I6).
func (r *region) own(first int, b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range len(b) / int(r.unit) {
		u := first + i
		match, err := r.find(u, b[i*int(r.unit):][:r.unit], r.may[u])
		if err != nil {
			return err
		}
		r.may[u] = append(r.may[u][:0:0], match[len(match)-1])
	}
	return nil
}

// find returns which of the writes a unit holds.
func (r *region) find(u int, got []byte, may []held) ([]held, error) {
	number := binary.LittleEndian.Uint64(got)
	var match []held
	for _, h := range may {
		if h.number == number {
			match = append(match, h)
		}
	}
	want := make([]byte, r.unit)
	fill(want, r.place(u), number)
	switch {
	case !bytes.Equal(got, want):
		at := 0
		for got[at] == want[at] {
			at++
		}
		return nil, fmt.Errorf("the %d bytes at %d are mixed: they begin with %x, and at %d with %x; they may be of one of %v",
			r.unit, r.off+int64(u)*r.unit, got[:16], at, got[at/16*16:][:16], may)
	case match == nil:
		return nil, fmt.Errorf("the %d bytes at %d are of write %d, and may be of one of %v (order, number)",
			r.unit, r.off+int64(u)*r.unit, number, may)
	}
	return match, nil
}

// readAll is a reader's life.
func (l *tortureLoad) readAll(rng *rand.Rand) {
	tc := &tortureClient{l: l}
	defer tc.close()
	buf := make([]byte, 512<<10)
	for !l.ended() {
		r := l.regions[rng.IntN(len(l.regions))]
		units := 1 + rng.IntN(len(buf)/int(r.unit))
		if err := l.readStrange(tc, r, rng.IntN(len(r.may)-units), buf[:units*int(r.unit)]); err != nil {
			l.fail(err)
			return
		}
		select {
		case <-l.quit:
		case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
		}
	}
}

// readStrange reads units beside their writer and checks them.
func (l *tortureLoad) readStrange(tc *tortureClient, r *region, first int, b []byte) error {
	s := &strangeRead{first: first}
	sent, err := tc.request(func(c *nbdClient) *nbdCall {
		r.mu.Lock()
		defer r.mu.Unlock()
		for u := range len(b) / int(r.unit) {
			s.may = append(s.may, slices.Clone(r.may[first+u]))
		}
		r.reads = append(r.reads, s)
		return c.read(b, r.off+int64(first)*r.unit)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads = slices.DeleteFunc(r.reads, func(o *strangeRead) bool { return o == s })
	if !sent || err != nil {
		return nil // what kind of error is judged by request
	}
	for i := range s.may {
		match, err := r.find(first+i, b[i*int(r.unit):][:r.unit], s.may[i])
		if err != nil {
			return err
		}
		// What was there before it can't be read any more.
		u := first + i
		r.may[u] = slices.DeleteFunc(r.may[u], func(h held) bool { return h.order < match[0].order })
	}
	return nil
}

// progress returns how many requests of each writer were answered.
func (l *tortureLoad) progress() []int64 {
	var all []int64
	for _, r := range l.regions {
		all = append(all, r.done.Load())
	}
	return all
}

// content reads everything when nothing is written, and returns it.
func (l *tortureLoad) content() ([]byte, error) {
	c, err := dialNBD(l.addr, "vol1")
	if err != nil {
		return nil, err
	}
	defer c.close()
	all := make([]byte, tortureSize)
	for off := 0; off < len(all); off += 1 << 20 {
		if err := <-c.read(all[off:off+1<<20], int64(off)).done; err != nil {
			return nil, fmt.Errorf("read at %d: %w", off, err)
		}
	}
	for _, r := range l.regions {
		if err := r.own(0, all[r.off:r.off+tortureRegion]); err != nil {
			return nil, err
		}
	}
	return all, nil
}
