package volume_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"torus/store"
)

// The model: for each page that the simulation works on, all versions that were
// ever sent, and which of them a reader may still see.
//
//	0 ── … ── durable ── … ── least ── … ── newest sent
//	              │             │        └ may be there: not acknowledged, not dead
//	              │             └ must be there: acknowledged, read, or recovered
//	              └ must be there after any power cut: flushed, or recovered (I3)
//
// A version is dead when a recovery has not kept it: it must never be seen
// again (I6). A power cut of the last copy that has it takes least back, at most
// to durable. The model looks at the disks directly (memstore.Disk.Look), past
// faults and network.

const (
	cellSize = 1024 // what a client's request is aligned to
	cells    = store.PageSize / cellSize
)

// simPages are the pages worked on: beside each other, over a chunk's end, and
// in a third chunk; in runs that one request may cover.
var (
	simRuns  = [][2]int64{{0, 4}, {1022, 1026}, {2048, 2050}}
	simPages = []int64{0, 1, 2, 3, 1022, 1023, 1024, 1025, 2048, 2049}
)

const simSize = 3 * store.ChunkSize

// content is what a page has, by the tag that each cell is full of; zero for zeroes.
type content [cells]uint64

// tag is what a request fills a cell with, so that no two cells ever look alike.
func tag(op uint64, page int64, cell int) uint64 {
	return op<<16 | uint64(slices.Index(simPages, page)+1)<<4 | uint64(cell+1)
}

// contentOf reads a page's tags; false if a cell is not of one piece.
func contentOf(p []byte) (c content, whole bool) {
	for i := range c {
		cell := p[i*cellSize:][:cellSize]
		c[i] = binary.BigEndian.Uint64(cell)
		if !bytes.Equal(cell[8:], cell[:cellSize-8]) {
			return c, false
		}
	}
	return c, true
}

// sent is a version of a page.
type sent struct {
	content content
	kind    store.Kind
	at      time.Duration // when it was sent first
	applied bool          // some node has, or had, it
	failed  bool          // its write ended in an error: a copy that is away may have it
	ended   time.Duration // when its write did
	reached bool          // min-copies copies in sync had it, when one of them was recorded stale
	dead    time.Duration // since when; -1: it isn't
}

// pageModel is what is known of a page.
type pageModel struct {
	page           int64
	versions       map[store.Version]*sent
	least, durable store.Version
}

type model struct {
	w       *world
	mu      sync.Mutex // guards all below
	pages   map[int64]*pageModel
	settled store.Version              // the highest mark seen: up to it holes may be forgotten, on a copy that never had them too
	stale   map[*simNode]time.Duration // when each was recorded so last
	lies    placing                    // the epoch is the last one that knew of no target
}

func newModel(w *world) *model {
	m := &model{w: w, pages: map[int64]*pageModel{}, stale: map[*simNode]time.Duration{}}
	for _, i := range simPages {
		m.pages[i] = &pageModel{page: i, versions: map[store.Version]*sent{}}
	}
	return m
}

// in yields the modelled pages that [off, off+n) touches.
func (m *model) in(off, n int64) []*pageModel {
	var found []*pageModel
	for _, i := range simPages {
		if at := i * store.PageSize; at < off+n && off < at+store.PageSize {
			found = append(found, m.pages[i])
		}
	}
	return found
}

// sends learns what a write of an exporter is; p is nil for a hole.
func (m *model) sends(e store.Epoch, off, n int64, p []byte, v store.Version) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v.Epoch() != e {
		m.w.fail("epoch %v sends version %v", e, v)
	}
	for _, pm := range m.in(off, n) {
		s := &sent{kind: store.Hole, at: m.w.now(), dead: -1}
		if p != nil {
			whole := false
			s.kind = store.Data
			if s.content, whole = contentOf(p[pm.page*store.PageSize-off:]); !whole {
				m.w.fail("page %d: version %v is sent with a torn cell", pm.page, v)
			}
		}
		if was := pm.versions[v]; was == nil {
			pm.versions[v] = s
		} else if was.content != s.content || was.kind != s.kind {
			m.w.fail("page %d: version %v is sent as %v %x, and was as %v %x", pm.page, v, s.kind, s.content, was.kind, was.content)
		}
	}
}

// arrived learns that a node has dealt with a write.
func (m *model) arrived(n *simNode, off, size int64, v store.Version, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pm := range m.in(off, size) {
		if err == nil || n.diskNow().Look(simHead(m.w), pm.page*store.PageSize, false).Version == v {
			pm.versions[v].applied = true
		}
	}
}

// has returns the version that a disk has of a page, that of a hole that it has
// forgotten included. With durable: what a power cut leaves.
func (m *model) has(n *simNode, pm *pageModel, durable bool) store.Version {
	seen := n.diskNow().Look(simHead(m.w), pm.page*store.PageSize, durable)
	if seen.Kind == store.Absent {
		for _, c := range m.w.nodes {
			m.settled = max(m.settled, c.diskNow().Look(simHead(m.w), 0, false).Settled)
		}
		last := store.Version(0)
		for v, s := range pm.versions {
			if v <= m.settled && v > last && s.applied && s.dead < 0 {
				last = v
			}
		}
		if last != 0 && pm.versions[last].kind != store.Hole {
			return 0 // it has lost it
		}
		return last
	}
	s := pm.versions[seen.Version]
	if s == nil {
		m.w.fail("page %d: node %d has version %v, which nobody sent", pm.page, n.id, seen.Version)
		return 0
	}
	if seen.Kind != s.kind {
		m.w.fail("page %d: node %d has version %v as %v, it was sent as %v", pm.page, n.id, seen.Version, seen.Kind, s.kind)
	} else if s.kind == store.Data {
		if c, _ := contentOf(seen.Data); c != s.content {
			m.w.fail("page %d: node %d has version %v with %x, it was sent with %x", pm.page, n.id, seen.Version, c, s.content)
		}
	}
	return seen.Version
}

// onCopies fails unless every copy in sync that kept its power since a time has
// the page in version v or a later one, and reports whether any has.
func (m *model) onCopies(pm *pageModel, v store.Version, since time.Duration, durable bool, what string) bool {
	any := false
	for _, n := range m.w.current(pm.page) {
		have := m.has(n, pm, durable)
		if have >= v {
			any = true
		} else if durable || !n.cutSince(since) {
			m.w.fail("%s: page %d is to be %v, node %d has %v", what, pm.page, v, n.id, m.describe(n, pm))
		}
	}
	for _, n := range m.w.currentTargets(pm.page) {
		if m.has(n, pm, durable) < v && (durable || !n.cutSince(since)) {
			m.w.fail("%s: page %d is to be %v, node %d of the target has %v", what, pm.page, v, n.id, m.describe(n, pm))
		}
	}
	return any
}

// describe says what a node has of a page.
func (m *model) describe(n *simNode, pm *pageModel) string {
	show := func(s memSeen) string {
		return fmt.Sprintf("%v %v (stable %v, settled %v)", s.Kind, s.Version, s.Stable, s.Settled)
	}
	off := pm.page * store.PageSize
	disk := n.diskNow()
	return show(disk.Look(simHead(m.w), off, false)) + ", durable " + show(disk.Look(simHead(m.w), off, true))
}

// powerCut takes back what no copy in sync has any more.
func (m *model) powerCut(n *simNode) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range simPages {
		pm := m.pages[i]
		current := m.w.current(i)
		if slices.Contains(current, n) && m.has(n, pm, false) < pm.durable {
			m.w.fail("I3: page %d was durable with %v, a power cut of node %d leaves %v", i, pm.durable, n.id, m.describe(n, pm))
		}
		pm.least = min(pm.least, max(m.highest(pm, current), pm.durable))
	}
}

func (m *model) highest(pm *pageModel, copies []*simNode) store.Version {
	v := store.Version(0)
	for _, n := range copies {
		v = max(v, m.has(n, pm, false))
	}
	return v
}

// recorded checks that the copies which the records leave have what was
// acknowledged, but for what power cuts took of all of them.
func (m *model) recorded() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range simPages {
		pm, current := m.pages[i], m.w.current(i)
		if len(current) == 0 {
			m.w.fail("the records leave no copy of page %d in sync", i)
			return
		}
		v := m.highest(pm, current)
		if v >= pm.least {
			continue
		}
		was := pm.versions[pm.least]
		if v < pm.durable || !slices.ContainsFunc(current, func(n *simNode) bool { return n.cutSince(was.at) }) {
			m.w.fail("I4: page %d was %v, and the records leave only copies in sync that lack it, the highest has %v", i, pm.least, v)
		}
		pm.least = max(v, pm.durable)
	}
}

// marked learns that a stale record was written, and checks that its node has all
// that the record says. It was in sync until now, unless again says that there was
// a record, so a write may have had its copies, and be answered yet.
func (m *model) marked(key string, since store.Version, again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.w.nodeOf(key)
	m.stale[n] = m.w.now()
	if m.w.recordedDisk(m.w.pairs(incarnationKeys), n) {
		m.durableUpTo(n, since, "I4: it is recorded stale since then")
	}
	if again {
		return
	}
	for _, i := range simPages {
		copies := m.w.current(i)
		if slices.Contains(m.w.copies(i), n) {
			copies = append(copies, n)
		}
		for v, s := range m.pages[i].versions {
			have := 0
			for _, c := range copies {
				if c.cutSince(s.at) || m.has(c, m.pages[i], false) >= v {
					have++
				}
			}
			s.reached = s.reached || s.ended == 0 && have >= m.w.with.minCopies
		}
	}
}

// joins checks that a node whose stale record goes has all that was acknowledged,
// what was flushed durably, and nothing that was refused; but for what a power
// cut took, which its incarnation tells. A node may have got another disk meanwhile,
// which its identity tells.
func (m *model) joins(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.w.nodeOf(key)
	for _, i := range simPages {
		pm := m.pages[i]
		current := m.w.current(i)
		if !slices.Contains(current, n) {
			continue
		}
		v := m.hasAll(n, pm)
		others := slices.DeleteFunc(current, func(other *simNode) bool { return other == n })
		lostPower := slices.ContainsFunc(others, func(other *simNode) bool { return other.cutSince(0) })
		if s := pm.versions[v]; s != nil && s.failed && v > m.highest(pm, others) && !lostPower {
			m.w.fail("I6: node %d is recorded in sync with %v of page %d, which was refused", n.id, v, i)
		}
	}
}

// hasAll fails unless a node that is recorded in sync has what it must have of a page,
// and returns its version.
func (m *model) hasAll(n *simNode, pm *pageModel) store.Version {
	v := m.has(n, pm, false)
	if v < pm.least && !n.cutSince(pm.versions[pm.least].at) {
		m.w.fail("I4: node %d is recorded in sync, page %d was %v, it has %v", n.id, pm.page, pm.least, m.describe(n, pm))
	}
	if m.has(n, pm, true) < pm.durable {
		m.w.fail("I3: node %d is recorded in sync, page %d was durable with %v, it has %v", n.id, pm.page, pm.durable, m.describe(n, pm))
	}
	return v
}

// durableUpTo fails unless a node has all durable that was acknowledged up to a
// version.
func (m *model) durableUpTo(n *simNode, mark store.Version, why string) {
	for _, i := range simPages {
		pm, last := m.pages[i], store.Version(0)
		for v, s := range pm.versions {
			if v <= mark && v > last && s.ended > 0 && !s.failed && s.dead < 0 {
				last = v
			}
		}
		if last > 0 && slices.Contains(m.w.copies(i), n) && m.has(n, pm, true) < last {
			m.w.fail("%s: node %d has not all up to %v durable: page %d was %v, it has %v", why, n.id, mark, i, last, m.describe(n, pm))
		}
	}
}

// tells checks what the marks promise: what is stable is durable on every copy in
// sync, and holes may be forgotten only when nobody is known to lack them (I7).
func (m *model) tells(e store.Epoch, stable, settled store.Version) {
	m.mu.Lock()
	defer m.mu.Unlock()
	inSync := m.w.inSync()
	for _, n := range m.w.nodes {
		if inSync(n) {
			m.durableUpTo(n, stable, "stable is told")
		}
	}
	if settled == 0 {
		return
	}
	m.w.happens("settled is told")
	if m.changes(e) {
		m.w.fail("I7: epoch %v tells that %v is settled, while the ring changes", e, settled)
	}
	for _, n := range m.w.nodes {
		if by, is := m.w.staleEpoch(n); is && by <= e {
			m.w.fail("I7: epoch %v tells that %v is settled, node %d is recorded stale", e, settled, n.id)
		}
	}
}

// recovered checks what an exporter finds before it serves: every page in one
// version, durable on all copies that are to be in sync, and one that may be there.
func (m *model) recovered(s *session, inSync func(*simNode) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.w.nodes {
		if inSync(n) && n.fence() != s.epoch {
			return // somebody else is coming already
		}
	}
	s.since = m.w.now()
	for _, i := range simPages {
		pm := m.pages[i]
		copies := slices.DeleteFunc(m.w.copies(i), func(n *simNode) bool { return !inSync(n) })
		if len(copies) == 0 {
			m.w.fail("page %d has no copy in sync when epoch %v begins to serve", i, s.epoch)
			return
		}
		v := m.equal(pm, copies, fmt.Sprintf("when epoch %v begins to serve", s.epoch))
		if v < pm.least {
			m.w.fail("I6: page %d was %v, and is %v when epoch %v begins to serve", i, pm.least, v, s.epoch)
		}
		if was := pm.versions[v]; was != nil && was.dead >= 0 {
			m.w.fail("I6: page %d is %v when epoch %v begins to serve, which was gone", i, v, s.epoch)
		}
		s.base[i] = v
	}
}

// served learns that the records have what recovered saw: versions of lower
// epochs above it are dead from now on. Not before, as a copy that was left out
// may be in sync yet when nothing was recorded.
func (m *model) served(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, v := range s.base {
		pm := m.pages[i]
		for other, was := range pm.versions {
			if other > v && other.Epoch() < s.epoch && was.dead < 0 {
				was.dead = m.w.now()
			}
		}
		pm.least, pm.durable = max(pm.least, v), max(pm.durable, v)
	}
}

// equal fails unless the copies of a page are one, and durable, and returns the version.
func (m *model) equal(pm *pageModel, copies []*simNode, when string) store.Version {
	v := m.has(copies[0], pm, false)
	for _, n := range copies {
		if m.has(n, pm, false) != v {
			m.w.fail("I6: %s, page %d is not the same on all copies: node %d has %v; node %d %v", when, pm.page,
				copies[0].id, m.describe(copies[0], pm), n.id, m.describe(n, pm))
		}
		if m.has(n, pm, true) < v {
			m.w.fail("I3: %s, page %d is not durable: node %d has %v", when, pm.page, n.id, m.describe(n, pm))
		}
	}
	return v
}

// everywhere fails unless all copies are one at last.
func (m *model) everywhere() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range simPages {
		if n := len(m.w.current(i)); n != m.w.with.copies {
			m.w.fail("page %d has %d copies in sync at last, of %d", i, n, m.w.with.copies)
		}
		m.equal(m.pages[i], m.w.copies(i), "at last")
	}
}

// closed checks what a clean end promises: equal and durable copies.
func (m *model) closed(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range simPages {
		if slices.ContainsFunc(m.w.copies(i), func(n *simNode) bool { return !m.w.stale(n) && n.fence() != s.epoch }) {
			return
		}
	}
	for _, i := range simPages {
		m.equal(m.pages[i], m.w.current(i), fmt.Sprintf("after the clean end of epoch %v", s.epoch))
	}
}

// snapshot returns what must be there of some pages when a read begins.
func (m *model) snapshot(off, n int64) map[int64]store.Version {
	m.mu.Lock()
	defer m.mu.Unlock()
	least := map[int64]store.Version{}
	for _, pm := range m.in(off, n) {
		least[pm.page] = pm.least
	}
	return least
}

// read checks the answer of a read that began at since, when least had to be
// there at the least.
func (m *model) read(s *session, off int64, p []byte, since time.Duration, least map[int64]store.Version) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pm := range m.in(off, int64(len(p))) {
		v, highest, err := m.seen(pm, off, p, since, least[pm.page])
		if err != nil {
			m.w.fail("page %d, read under epoch %v: %v", pm.page, s.epoch, err)
			continue
		}
		for other, was := range pm.versions { // an error is no reason to read it later
			if other > highest && other.Epoch() == s.epoch && was.failed && was.ended < since && was.dead < 0 {
				was.dead = m.w.now()
			}
		}
		if v == 0 || pm.versions[v].dead >= 0 {
			continue
		}
		sentAt := pm.versions[v].at // of the copies that lost power since then another answers
		if v.Epoch() < s.epoch {
			sentAt = s.since
		}
		if m.onCopies(pm, v, sentAt, false, "I6: a read has shown it") {
			pm.least = max(pm.least, v)
		}
	}
}

// seen returns the lowest and the highest version that a reader may have seen.
func (m *model) seen(pm *pageModel, off int64, p []byte, since time.Duration, least store.Version) (lowest, highest store.Version, err error) {
	at := pm.page * store.PageSize
	first, end := max(at, off), min(at+store.PageSize, off+int64(len(p)))
	padded := make([]byte, store.PageSize)
	copy(padded[first-at:], p[first-off:end-off])
	got, whole := contentOf(padded)
	if !whole {
		return 0, 0, errors.New("a torn cell")
	}
	from, to := int(first-at)/cellSize, int(end-at)/cellSize
	same := func(c content) bool { return slices.Equal(c[from:to], got[from:to]) }
	var candidates []store.Version
	for v, s := range pm.versions {
		if same(s.content) && s.applied {
			candidates = append(candidates, v)
		}
	}
	slices.Sort(candidates)
	if len(candidates) > 0 {
		highest = candidates[len(candidates)-1]
	}
	if least == 0 && same(content{}) {
		return 0, highest, nil
	}
	for _, v := range candidates {
		if dead := pm.versions[v].dead; v >= least && (dead < 0 || dead > since) {
			return v, highest, nil
		}
	}
	wanted := m.contentOf(pm, least)
	return 0, 0, fmt.Errorf("I6: cells %d to %d are %x, that is one of the versions %v; at least %v had to be there, in which they are %x",
		from, to-1, got[from:to], candidates, least, wanted[from:to])
}

// contentOf returns what a version of a page has.
func (m *model) contentOf(pm *pageModel, v store.Version) content {
	if s := pm.versions[v]; s != nil {
		return s.content
	}
	return content{}
}

// acknowledged checks the answer of a change, and returns nothing less than what
// its version must be on each page: it is on every copy in sync, and on min-copies
// (I4), with FUA durably (I3), and nothing is lost of the page around it.
func (m *model) acknowledged(s *session, c *simChange) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pm := range m.in(c.off, c.n) {
		v := c.versions[pm.page]
		if v == 0 {
			m.w.fail("page %d: %v was acknowledged under epoch %v, and never sent", pm.page, c, s.epoch)
			continue
		}
		if m.onCopies(pm, v, c.began, false, fmt.Sprintf("I4: %v was acknowledged", c)) && pm.versions[v].dead < 0 {
			pm.least = max(pm.least, v)
			s.acked[pm.page] = max(s.acked[pm.page], v)
		}
		m.enough(s, pm, v, c.began, c.ended, c.fua, fmt.Sprintf("%v was acknowledged", c))
		if c.fua {
			m.onCopies(pm, v, c.began, true, fmt.Sprintf("I3: %v was acknowledged with FUA", c))
			pm.durable = max(pm.durable, v)
		}
		m.checkMerge(s, pm, c, v)
	}
}

// enough fails unless min-copies copies in sync have what was acknowledged to a
// session at ended, or lost it since began: copies that only a later holder, or
// the same one later, recorded stale were.
func (m *model) enough(s *session, pm *pageModel, v store.Version, began, ended time.Duration, durable bool, what string) {
	have := 0
	for _, n := range m.w.copies(pm.page) {
		by, stale := m.w.staleEpoch(n)
		inSync := !stale || by > s.epoch || m.stale[n] > ended
		if inSync && (m.has(n, pm, durable) >= v || n.cutSince(began)) {
			have++
		}
	}
	if have < m.w.with.minCopies && !pm.versions[v].reached {
		m.w.fail("page %d: %s with version %v, which %d copies in sync have, and min-copies is %d", pm.page, what, v, have, m.w.with.minCopies)
	}
}

// checkMerge fails if a change of a part of a page lost another one's.
func (m *model) checkMerge(s *session, pm *pageModel, c *simChange, v store.Version) {
	first, end := c.cellsOf(pm.page)
	if end-first == cells || c.ambiguous {
		return
	}
	got := m.contentOf(pm, v)
	fits := func(under content) bool {
		copy(under[first:end], got[first:end])
		return got == under
	}
	below := []store.Version{s.base[pm.page]}
	for other, was := range pm.versions {
		if other < v && other > below[0] && other.Epoch() == s.epoch && was.applied {
			below = append(below, other)
		}
	}
	slices.Sort(below[1:])
	before := below[0]
	for _, before = range slices.Backward(below) {
		if fits(m.contentOf(pm, before)) {
			return
		}
		if was := pm.versions[before]; was == nil || !was.failed {
			break
		}
	}
	for other, was := range pm.versions {
		if other > v && other.Epoch() == s.epoch && fits(was.content) {
			return // it came first, and stays
		}
	}
	m.w.fail("page %d: %v made version %v %x of version %v, which was %x", pm.page, c, v, got, before, m.contentOf(pm, before))
}

// identify finds the version of a change that has ended, well or not.
func (m *model) identify(s *session, c *simChange, failed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c.versions = map[int64]store.Version{}
	for _, pm := range m.in(c.off, c.n) {
		first, end := c.cellsOf(pm.page)
		var found []store.Version
		for v, was := range pm.versions {
			if v.Epoch() != s.epoch || was.at < c.began || end-first == cells && (was.kind == store.Hole) != (c.kind == trimOp || c.kind == zeroOp) {
				continue
			}
			mine := true
			for i := first; i < end; i++ {
				mine = mine && was.content[i] == c.tag(pm.page, i)
			}
			if mine {
				found = append(found, v)
			}
		}
		for _, v := range found {
			pm.versions[v].failed, pm.versions[v].ended = failed, m.w.now()
		}
		slices.Sort(found)
		if len(found) > 0 {
			c.versions[pm.page] = found[0]
			c.ambiguous = c.ambiguous || len(found) > 1
		}
	}
}

// flushed checks that what was acknowledged before a flush is durable on all
// copies, and on enough.
func (m *model) flushed(s *session, acked map[int64]store.Version, began, ended time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range simPages {
		if v := acked[i]; v != 0 {
			m.onCopies(m.pages[i], v, 0, true, fmt.Sprintf("I3: a flush was acknowledged under epoch %v", s.epoch))
			m.enough(s, m.pages[i], v, began, ended, true, "a flush was acknowledged")
			m.pages[i].durable = max(m.pages[i].durable, v)
		}
	}
}
