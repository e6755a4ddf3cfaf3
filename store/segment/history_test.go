package segment

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"torus/store"
)

const ps = store.PageSize

// A value is what a page may be in one layer; tag tells apart the bytes that
// adopting gives to one version.
type value struct {
	kind    store.Kind
	version store.Version
	tag     uint64
}

// bytes is what reading the page gives: every word of it depends on page,
// version and tag.
func (v value) bytes(page int64) []byte {
	p := alignedBuffer(ps)
	if v.kind != store.Data {
		return p
	}
	x := uint64(page)*0x9e3779b97f4a7c15 ^ uint64(v.version)*0xbf58476d1ce4e5b9 ^ v.tag<<56
	for i := 0; i < ps; i += 8 {
		x = x*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	return p
}

// pageHistory is what a page was since it was last on stable storage, that
// included; now is the last that was acknowledged. What was begun and not
// acknowledged is in flight, and so is what applied if a hole was forgotten.
type pageHistory struct {
	since    []value
	now      value
	inFlight []value
}

func (h *pageHistory) become(v value) {
	h.now, h.inFlight = v, nil
	h.since = append(h.since, v)
}

// A history is everything that was done to a store, in the words of its contract.
type history struct {
	layers   []store.LayerID // in order of the chain
	known    map[store.LayerID]bool
	unsure   map[store.LayerID]bool // its creation, or drop, is in flight
	pages    map[store.LayerID]map[int64]*pageHistory
	settled  map[store.LayerID]store.Version
	epoch    store.Epoch // acknowledged
	identity store.Identity
	sequence uint64
	tag      uint64
}

func newHistory() *history {
	return &history{known: map[store.LayerID]bool{}, unsure: map[store.LayerID]bool{},
		pages: map[store.LayerID]map[int64]*pageHistory{}, settled: map[store.LayerID]store.Version{}}
}

func (h *history) page(l store.LayerID, n int64) *pageHistory {
	if h.pages[l] == nil {
		h.pages[l] = map[int64]*pageHistory{}
	}
	p := h.pages[l][n]
	if p == nil {
		p = &pageHistory{since: []value{{}}}
		h.pages[l][n] = p
	}
	return p
}

// synced notes that everything acknowledged is on stable storage.
func (h *history) synced() {
	for _, pages := range h.pages {
		for _, p := range pages {
			p.since = append([]value{p.now}, p.inFlight...)
		}
	}
}

// A scribe does things to a store and writes the history. After an error it
// does nothing any more.
type scribe struct {
	t   testing.TB
	ctx context.Context
	h   *history
	rng *rand.Rand
	st  *Store
	r   store.Replica
	err error
}

func (s *scribe) attach(e store.Epoch) {
	if s.err != nil {
		return
	}
	if s.r, s.err = s.st.Attach(s.ctx, 1, e); s.err == nil {
		s.h.epoch = e
	}
}

func (s *scribe) create(l, parent store.LayerID) {
	if s.err != nil {
		return
	}
	s.h.unsure[l] = true
	if s.err = s.r.Create(s.ctx, l, parent); s.err == nil {
		s.h.known[l], s.h.unsure[l] = true, false
		s.h.layers = append(s.h.layers, l)
	}
}

func (s *scribe) version() store.Version {
	s.h.sequence++
	return store.NewVersion(s.h.epoch, s.h.sequence)
}

// The history looks at these pages only: around the end of a chunk.
const (
	windowFirst = store.PagesPerChunk - 100
	windowEnd   = store.PagesPerChunk + 100
)

// change does something to n pages, where their version is lower than below,
// and notes what they became.
func (s *scribe) change(l store.LayerID, page, n int64, v value, below store.Version, do func() error) {
	if s.err != nil {
		return
	}
	s.err = do()
	for i := max(page, windowFirst); i < min(page+n, windowEnd); i++ {
		switch p := s.h.page(l, i); {
		case p.now.version >= below:
			if p.now.kind == store.Hole && p.now.version <= s.h.settled[l] && s.err == nil {
				p.inFlight = append(p.inFlight, v) // it applies where the hole was forgotten
				p.since = append(p.since, v)
			}
		case s.err != nil:
			p.inFlight = append(p.inFlight, v)
		default:
			p.become(v)
		}
	}
}

func (s *scribe) bytes(page, n int64, v value) []byte {
	p := alignedBuffer(int(n * ps))
	for i := range n {
		copy(p[i*ps:], v.bytes(page+i))
	}
	return p
}

func (s *scribe) write(l store.LayerID, page, n int64) {
	v := value{kind: store.Data, version: s.version()}
	s.change(l, page, n, v, v.version, func() error {
		return s.r.Write(s.ctx, l, page*ps, s.bytes(page, n, v), v.version, 0)
	})
}

func (s *scribe) zero(l store.LayerID, page, n int64) {
	v := value{kind: store.Hole, version: s.version()}
	s.change(l, page, n, v, v.version, func() error { return s.r.Zero(s.ctx, l, page*ps, n*ps, v.version, 0) })
}

// adopt makes pages what a peer has under an older epoch; Absent with that version too.
func (s *scribe) adopt(l store.LayerID, page, n int64, kind store.Kind) {
	s.h.tag++
	v := value{kind, store.NewVersion(1, 1+s.h.tag), s.h.tag}
	var p []byte
	switch kind {
	case store.Data:
		p = s.bytes(page, n, v)
	case store.Hole:
		v.tag = 0
	default:
		v = value{}
	}
	below := max(store.NewVersion(s.h.epoch, 0), v.version+1)
	s.change(l, page, n, v, below, func() error {
		return s.r.Adopt(s.ctx, l, store.Extent{Off: page * ps, N: n * ps, Kind: kind, Version: v.version}, p)
	})
}

func (s *scribe) sync() {
	if s.err != nil {
		return
	}
	if s.err = s.r.Sync(s.ctx); s.err == nil {
		s.h.synced()
	}
}

// settle tells that everything so far is stable and settled.
func (s *scribe) settle(l store.LayerID) {
	if s.err != nil {
		return
	}
	v := store.NewVersion(s.h.epoch, s.h.sequence)
	s.h.settled[l] = v // from now on it may be forgotten
	if s.err = s.r.Stable(s.ctx, l, v, v); s.err == nil {
		s.err = s.st.recordMarks()
	}
}

func (s *scribe) dropChunk(l store.LayerID, chunk uint32) {
	if s.err != nil {
		return
	}
	s.err = s.st.Drop(s.ctx, l, store.Chunks{First: chunk, End: chunk + 1})
	for n, p := range s.h.pages[l] {
		if n/store.PagesPerChunk == int64(chunk) {
			p.dropped(s.err)
		}
	}
	if s.err == nil {
		s.h.synced()
	}
}

func (p *pageHistory) dropped(err error) {
	if err != nil {
		p.inFlight = append(p.inFlight, value{})
		return
	}
	p.become(value{})
}

func (s *scribe) dropLayer(l store.LayerID) {
	if s.err != nil {
		return
	}
	s.h.unsure[l] = true
	if s.err = s.st.Drop(s.ctx, l, store.AllChunks); s.err == nil {
		s.h.known[l], s.h.unsure[l] = false, false
		delete(s.h.pages, l)
		s.h.synced()
	}
}

func (s *scribe) do(f func() error) {
	if s.err == nil {
		s.err = f()
	}
}

// work does what the background would, as often as there is something.
func (s *scribe) work() {
	s.do(func() error { _, err := s.st.sweep(); return err })
	s.do(s.st.flush)
	s.do(func() error { s.st.forget(); return nil })
	s.do(func() error { _, err := s.st.collect(time.Now()); return err })
	for more := true; more && s.err == nil; {
		s.do(func() (err error) { more, err = s.st.collect(time.Now().Add(time.Hour)); return err })
	}
	if errors.Is(s.err, store.ErrNoSpace) {
		s.err = nil // the collector waits, like others
	}
}

// How a store ended.
type ending int

const (
	killed ending = iota
	powerCut
)

func (e ending) String() string {
	if e == killed {
		return "kill"
	}
	return "power cut"
}

// allowed reports whether a page may be v after the store ended.
func (p *pageHistory) allowed(v value, how ending, settled store.Version) bool {
	candidates := append([]value{p.now}, p.inFlight...)
	if how == powerCut {
		candidates = append(candidates, p.since...)
	}
	for _, c := range candidates {
		if c == v || v == (value{}) && c.kind == store.Hole && c.version <= settled {
			return true
		}
	}
	return false
}

// check reads everything and returns the first thing that the history does not
// allow; what is there is certain from then on (N5).
func (h *history) check(ctx context.Context, st *Store, how ending) error {
	if _, err := st.Attach(ctx, 1, h.epoch-1); h.epoch > 1 && !errors.Is(err, store.ErrFenced) {
		return fmt.Errorf("attaching at epoch %v below the fence %v: %v", h.epoch-1, h.epoch, err)
	}
	r, err := st.Attach(ctx, 1, h.epoch+1)
	if err != nil {
		return err
	}
	h.epoch++
	here := map[store.LayerID]bool{}
	for info, err := range st.Layers(ctx) {
		if err != nil {
			return err
		}
		here[info.ID] = true
	}
	for l := range h.pages {
		if here[l] != h.known[l] && !h.unsure[l] {
			return fmt.Errorf("layer %v is known: %v, want %v", l, here[l], h.known[l])
		}
		if h.known[l], h.unsure[l] = here[l], false; !here[l] {
			delete(h.pages, l)
			continue
		}
		for n, p := range h.pages[l] {
			if err := p.check(ctx, r, l, n, how, h.settled[l]); err != nil {
				return err
			}
		}
	}
	return recount(ctx, st)
}

func (p *pageHistory) check(ctx context.Context, r store.Replica, l store.LayerID, n int64, how ending, settled store.Version) error {
	buf, info := alignedBuffer(ps), make([]store.PageInfo, 1)
	if err := r.Read(ctx, []store.LayerID{l}, n*ps, buf, info); err != nil {
		return err
	}
	got := value{kind: info[0].Kind, version: info[0].Version}
	for _, c := range append(append([]value{p.now}, p.since...), p.inFlight...) {
		if c.kind == got.kind && c.version == got.version && c.tag != 0 && bytes.Equal(buf, c.bytes(n)) {
			got.tag = c.tag
		}
	}
	var forgotten []value // settled holes that an absent page may be
	for _, c := range append(append([]value{p.now}, p.since...), p.inFlight...) {
		if c.kind == store.Hole && c.version <= settled {
			forgotten = append(forgotten, c)
		}
	}
	if !p.allowed(got, how, settled) {
		return fmt.Errorf("after a %v page %d of layer %v is %+v, was %+v, since the last sync %+v, in flight %+v",
			how, n, l, got, p.now, p.since, p.inFlight)
	}
	if !bytes.Equal(buf, got.bytes(n)) {
		return fmt.Errorf("page %d of layer %v, %+v, has other bytes than were written", n, l, got)
	}
	*p = pageHistory{now: got, since: []value{got}}
	if got == (value{}) {
		p.inFlight = forgotten // they mean the same, and may be found again by a rebuild
	}
	return nil
}

// recount compares what the store counts with what its index says, and every
// page with its checksum.
func recount(ctx context.Context, st *Store) error {
	var r Report
	c := checker{st: st, report: &r, counts: map[segNum]*segCounts{}}
	if err := c.run(ctx); err != nil {
		return err
	}
	if !r.OK() {
		return fmt.Errorf("the store contradicts itself: %q", r.Problems)
	}
	for _, l := range st.tables.allLayers() {
		live := int64(0)
		chunks, _ := l.chunksIn(0, noChunk)
		for _, ch := range chunks {
			for i := range bucketsPerChunk {
				b, err := st.index.hold(ch, ch.bucket(i), false)
				if err != nil || b == nil {
					continue // the checker would have said so
				}
				for j := range b.pages {
					if b.pages[j].pos != 0 && b.pages[j].kind == store.Data {
						live++
					}
				}
				st.index.release(b)
			}
		}
		if live != l.live.Load() {
			return fmt.Errorf("layer %v counts %d pages, the index has %d", l.id, l.live.Load(), live)
		}
	}
	return nil
}
