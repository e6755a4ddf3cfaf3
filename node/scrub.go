package node

import (
	"context"
	"maps"
	"sync"
	"time"

	"torus/cluster"
	"torus/store"
	"torus/volume"
)

const (
	// scrubRetry is how long after a failure the records are asked again, and a volume
	// is scrubbed again.
	scrubRetry = 5 * time.Second
	// scrubEveryAgain is how often the node asks how often volumes are to be scrubbed.
	scrubEveryAgain = 10 * time.Minute
	// scrubTell is how often it is told how far a scrub is.
	scrubTell = 5 * time.Second
)

// scrubs is what the records say of scrubs, and this process's turn to do one: one
// volume after the other.
type scrubs struct {
	turn chan struct{} // holds one element while a volume is scrubbed

	mu      sync.Mutex                       // guards what follows
	known   map[store.VolumeID]cluster.Scrub // nil until the records have been read
	every   time.Duration                    // 0: never without being asked, or not known yet
	changed chan struct{}                    // closed, and replaced, when something of it changes
}

func newScrubs() *scrubs {
	return &scrubs{turn: make(chan struct{}, 1), changed: make(chan struct{})}
}

// startScrubs follows the records of scrubs.
func (n *Node) startScrubs() {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := n.followScrubs(ctx); err != nil && ctx.Err() == nil {
				n.log.Debug("watch of scrubs ended", "err", err)
			}
			pause(ctx, scrubRetry)
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			again := scrubEveryAgain
			every, err := n.cluster.ScrubEvery(ctx)
			if err == nil {
				n.scrubs.change(func(s *scrubs) { s.every = every })
			} else {
				again = scrubRetry
			}
			pause(ctx, again)
		}
	})
	n.started("scrubs", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

func (n *Node) followScrubs(ctx context.Context) error {
	for u, err := range n.cluster.WatchScrubs(ctx) {
		if err != nil {
			return err
		}
		n.scrubs.change(func(s *scrubs) {
			if u.Reset {
				s.known = map[store.VolumeID]cluster.Scrub{}
			}
			maps.Copy(s.known, u.Put)
			for _, id := range u.Gone {
				delete(s.known, id)
			}
		})
	}
	return nil
}

func (s *scrubs) change(f func(*scrubs)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
	close(s.changed)
	s.changed = make(chan struct{})
}

// of returns what is known of a volume, how often it is to be scrubbed (0: never),
// and what is closed when either changes.
func (s *scrubs) of(id store.VolumeID) (known cluster.Scrub, every time.Duration, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		return cluster.Scrub{}, 0, s.changed
	}
	return s.known[id], s.every, s.changed
}

// due returns when a volume is to be scrubbed: the zero time for never.
func due(s cluster.Scrub, every time.Duration, created time.Time) time.Time {
	switch {
	case s.Asked > s.Answered:
		return created // long ago
	case !s.Began.IsZero() && s.Ended.IsZero():
		return s.Began // it was left off
	case every == 0:
		return time.Time{}
	case s.Began.IsZero():
		return created.Add(every)
	}
	return s.Ended.Add(every)
}

// scrubWhenDue scrubs a volume when it is time to, until ctx ends.
func (n *Node) scrubWhenDue(ctx context.Context, a *attached) {
	var last cluster.Scrub // that this process did
	for ctx.Err() == nil {
		known, every, changed := n.scrubs.of(a.att.Volume.ID)
		if !known.Began.After(last.Began) { // we have not been told yet of our own
			last.Asked = known.Asked
			known = last
		}
		at := due(known, every, a.att.Volume.Created)
		wait := scrubEveryAgain
		if !at.IsZero() {
			wait = min(wait, time.Until(at))
		}
		if wait > 0 {
			await(ctx, changed, wait)
			continue
		}
		select {
		case n.scrubs.turn <- struct{}{}:
		case <-ctx.Done():
			return
		}
		done, err := n.scrub(ctx, a, known, every)
		<-n.scrubs.turn
		if err != nil && ctx.Err() == nil {
			n.log.Warn("scrub ended early, it goes on later", "volume", a.att.Volume.Name, "err", err)
			pause(ctx, scrubRetry)
		}
		if err == nil {
			last = done
		}
	}
}

// scrub scrubs a volume, of which s is known, or goes on with a scrub that was left
// off, and tells the records how that is. One that nobody asked for leaves clients the
// first place, until it has taken as long as it may be until the next.
func (n *Node) scrub(ctx context.Context, a *attached, s cluster.Scrub, every time.Duration) (cluster.Scrub, error) {
	name := a.att.Volume.Name
	if s.Began.IsZero() || !s.Ended.IsZero() || s.Asked != s.Answered {
		s = cluster.Scrub{Answered: s.Asked, Began: time.Now().UTC(), Idle: s.Asked == s.Answered}
	}
	if err := a.att.TellScrub(ctx, s); err != nil {
		return s, err
	}
	n.log.Info("scrub begins", "volume", name, "done", s.Done, "idle", s.Idle)
	told := time.Now()
	found, err := a.vol.Scrub(ctx, volume.ScrubOptions{
		Begun: volume.Scrubbed{Done: s.Done, Total: s.Total, Bytes: s.Bytes, Corrupt: s.Corrupt, Unlike: s.Unlike, Lost: s.Lost},
		Idle: func() bool {
			now, _, _ := n.scrubs.of(a.att.Volume.ID)
			return s.Idle && now.Asked == s.Answered && time.Since(s.Began) < every
		},
		Tell: func(found volume.Scrubbed) {
			if time.Since(told) < scrubTell {
				return
			}
			told = time.Now()
			if err := a.att.TellScrub(ctx, progressed(s, found)); err != nil && ctx.Err() == nil {
				n.log.Debug("not told how far a scrub is", "volume", name, "err", err)
			}
		},
	})
	if err != nil {
		return s, err
	}
	s = progressed(s, found)
	s.Ended = time.Now().UTC()
	n.log.Info("scrubbed", "volume", name, "bytes", s.Bytes, "corrupt", s.Corrupt, "unlike", s.Unlike, "lost", s.Lost)
	return s, a.att.TellScrub(ctx, s)
}

// progressed returns a scrub's record with what was found so far.
func progressed(s cluster.Scrub, found volume.Scrubbed) cluster.Scrub {
	s.Done, s.Total, s.Bytes = found.Done, found.Total, found.Bytes
	s.Corrupt, s.Unlike, s.Lost = found.Corrupt, found.Unlike, found.Lost
	return s
}

// await waits for changed, at most for d, or until ctx ends.
func await(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-t.C:
	}
}
