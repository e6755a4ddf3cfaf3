package segment

import (
	"errors"
	"time"

	"torus/store"
)

// What segments may take, over what is live in them: at rest the collector
// brings it down to restRatio; while clients write it lets it grow to
// busyRatio, since copying less often copies fewer pages.
const (
	restRatio = 1.15
	busyRatio = 2.0
	restAfter = time.Second

	punchRun   = 64 << 10 / blockSize // shorter dead runs are not worth a call
	minGarbage = 64                   // blocks; less is not worth a copy,
	leastShare = 1.0 / 16             // nor is a smaller share of the segment
)

// collector remembers between rounds; it belongs to the background goroutine.
type collector struct {
	cold     coldLog
	lastLog  int64 // requests of clients when last looked at
	restedAt time.Time
	paced    time.Time // end of the last pause
	requests int64     // of clients, when last counted
	asked    time.Time // when there were others than before
	tended   time.Time // when tend last looked around
}

// atRest reports whether clients have written nothing for a while.
func (st *Store) atRest(now time.Time) bool {
	c := &st.collector
	if n := st.stats.writes.Load(); n != c.lastLog {
		c.lastLog, c.restedAt = n, now
	}
	return now.Sub(c.restedAt) >= restAfter
}

// collect frees dead segments, and brings the space that the others take under
// the limit. It returns after a bounded piece of work; more reports whether
// there is more to do at once.
func (st *Store) collect(now time.Time) (more bool, err error) {
	if err := st.freeDead(); err != nil {
		return false, err
	}
	rest := st.atRest(now)
	if rest {
		st.segments.setWant(spareOfCollector)
		if err := st.segments.tidy(); err != nil {
			return false, err
		}
	}
	victim := chooseVictim(st.segments.all(), st.limit(rest))
	if victim == nil {
		return false, nil
	}
	st.collector.paced = time.Now()
	if err := st.evacuate(victim); err != nil {
		return false, err
	}
	return true, st.freeDead()
}

// requests counts what clients asked for.
func (st *Store) requests() int64 {
	return st.stats.reads.Load() + st.stats.writes.Load() + st.stats.syncs.Load()
}

// yieldFactor is how many times as long as it worked the collector then leaves
// the disk to clients, if there are any; it works for paceUnit at a time. A client
// that waits for each of its requests asks seldom while the disk is busy: it is
// still there if it asked within askedLately.
const (
	yieldFactor = 3
	paceUnit    = 2 * time.Millisecond
	askedLately = 100 * time.Millisecond
)

// pace is called after each small piece of work. Where nobody asks
// for anything, or space has run out, the collector goes on at once; it waits
// the less, the less space is left.
func (st *Store) pace() {
	c, now := &st.collector, time.Now()
	if n := st.requests(); n != c.requests {
		c.requests, c.asked = n, now
	}
	worked := now.Sub(c.paced)
	if worked < paceUnit {
		return
	}
	if pause := time.Duration(float64(worked*yieldFactor) * st.segments.ease()); pause > 0 && now.Sub(c.asked) < askedLately {
		select {
		case <-st.stop:
		case <-time.After(pause):
		}
	}
	c.paced = time.Now()
}

// tend is called after each small piece of work too: evacuating a segment takes
// many ticks, in which the disk may fill, or others may free space.
func (st *Store) tend() error {
	c := &st.collector
	if time.Since(c.tended) < tick {
		return nil
	}
	c.tended = time.Now()
	st.segments.supplyAgain()
	return st.segments.ballast.adjust()
}

// limit lets less be taken, the less space is left: clients are not to be
// refused for garbage.
func (st *Store) limit(rest bool) float64 {
	ease := st.segments.ease()
	switch {
	case ease == 0:
		return 1
	case rest:
		return restRatio
	}
	return restRatio + (busyRatio-restRatio)*ease
}

// taken returns the blocks of a sealed segment that lie on disk.
func (g *seg) taken() uint32 { return g.used.Load() - g.punched.Load() }

// garbage returns how many blocks less the segment would take if what lives in
// it were copied. Copies have headers too: those of a cold segment are what they
// were, and else at most one block for 32 pages.
func (g *seg) garbage() int64 {
	live := int64(g.live.Load())
	return int64(g.taken()) - live - max(live/32, int64(g.headers.Load()))
}

// chooseVictim returns the sealed segment of which the largest share is garbage,
// if all of them take more than ratio times what is live; nil otherwise, or
// where nothing is worth a copy.
func chooseVictim(all map[segNum]*seg, ratio float64) *seg {
	var taken, live int64
	var victim *seg
	most := leastShare
	for _, g := range all {
		if !g.sealed.Load() || g.damaged.Load() {
			continue
		}
		t, n := int64(g.taken()), g.garbage()
		taken, live = taken+t, live+int64(g.live.Load())
		if share := float64(n) / float64(t); share > most && n >= minGarbage {
			most, victim = share, g
		}
	}
	if float64(taken) <= ratio*float64(live) {
		return nil
	}
	return victim
}

// freeDead gives back segments that nothing points to. What supersedes their
// pages is durable, and the index that doesn't point to them too, before a
// record says that they are freed, and that record is durable before they are.
func (st *Store) freeDead() error {
	var dead []*seg
	for _, g := range st.segments.all() {
		if g.sealed.Load() && g.live.Load() == 0 && g.tombs.Load() == 0 {
			dead = append(dead, g)
		}
	}
	if len(dead) == 0 {
		return nil
	}
	if err := st.flush(); err != nil {
		return err
	}
	free, err := st.recordFreed(dead)
	if err != nil {
		return err
	}
	var errs []error
	for _, g := range free {
		errs = append(errs, st.segments.recycle(g))
	}
	return errors.Join(errs...)
}

// recordFreed logs, durably, which of the dead segments are in use no more.
func (st *Store) recordFreed(dead []*seg) ([]*seg, error) {
	st.flushMu.Lock()
	defer st.flushMu.Unlock()
	r := newRequest()
	r.need = forSpace
	var free []*seg
	for _, g := range dead {
		// The segment in which the replay would begin stays.
		if g.num != st.persisted.segment && st.doubt.Load() == nil {
			free = append(free, g)
			r.add(record{kind: recFreed, layer: store.LayerID(g.num)})
		}
	}
	if len(free) == 0 {
		return nil, nil
	}
	if st.collector.cold.seg != nil {
		r.add(st.collector.cold.extent()) // where what was copied out of them is now
	}
	r.meta = func() {
		// In log order: the snapshot of a segment that is opened behind the record
		// must not name them any more.
		for _, g := range free {
			st.segments.drop(g.num)
		}
	}
	if err := st.commitDurable(r); err != nil {
		return nil, err
	}
	st.freedSegments = append(st.freedSegments, free...)
	return free, nil
}
