package volume_test

import (
	"slices"
	"testing/synctest"
	"time"

	"torus/store"
	"torus/store/faultstore"
)

// The director decides what happens next, alone and in order, from the seed.

const (
	simSteps    = 260
	maxInFlight = 7 // of a session
)

// direct runs a whole run: a time of trouble, then peace, in which all must end
// well.
func (w *world) direct() {
	if w.with.rings {
		w.changeRings()
	}
	for step := 0; step < simSteps && !w.failed(); step++ {
		w.pause()
		if w.rng.IntN(14) == 0 {
			w.event()
			synctest.Wait() // so that it comes before what the clients ask for
		}
		if w.with.rings && w.rng.IntN(40) == 0 {
			w.turn()
		}
		w.clients()
	}
	w.heal()
	if !w.failed() {
		w.finish()
	}
	w.locked(func() {
		for _, x := range w.exporters {
			x.kill()
		}
	})
	close(w.over)
	gone := make(chan struct{})
	go func() { w.running.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(10 * time.Minute):
		w.fail("goroutines don't end")
		panic(w.report()) // synctest would panic over them without saying why
	}
}

// pause lets some time pass, mostly less than a message takes.
func (w *world) pause() {
	d := time.Duration(w.rng.Int64N(int64(400 * time.Microsecond)))
	switch w.rng.IntN(30) {
	case 0:
		d = time.Duration(w.rng.Int64N(int64(4 * time.Second)))
		if w.with.absences {
			d *= 2
		}
	case 1, 2, 3, 4:
		d = time.Duration(w.rng.Int64N(int64(10 * time.Millisecond)))
	}
	time.Sleep(d + time.Nanosecond)
	w.look()
	// When nobody serves, nothing is to be had from going on at this pace.
	idle := w.now()
	for !w.someoneServes() && !w.failed() {
		w.locked(w.attachSomeone)
		time.Sleep(time.Duration(1 + w.rng.Int64N(int64(500*time.Millisecond))))
		w.look()
		if w.now() > idle+5*time.Minute { // no trouble lasts so long
			w.fail("nobody could attach the volume in five minutes")
		}
	}
}

// look looks at what the volumes say of themselves.
func (w *world) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.exporters {
		if x.cur != nil {
			x.cur.looks()
		}
	}
}

func (w *world) someoneServes() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.exporters {
		if x.cur != nil && x.cur.serving {
			return true
		}
	}
	return false
}

// attachSomeone lets an exporter without a session try. Under mu.
func (w *world) attachSomeone() {
	x := w.exporters[w.rng.IntN(len(w.exporters))]
	if x.cur == nil {
		x.attach(w.with.force && w.rng.IntN(3) == 0)
	}
}

// clients lets the clients of whoever serves ask for something.
func (w *world) clients() {
	for _, x := range w.exporters {
		for range 1 + w.rng.IntN(3) {
			w.request(x)
			synctest.Wait() // or it would be chance which of them has the lower version
		}
	}
}

// request lets one client of an exporter ask for something.
func (w *world) request(x *exporter) {
	k, run := w.rng.IntN(100), simRuns[w.rng.IntN(len(simRuns))]
	c := &simChange{kind: writeOp, fua: w.rng.IntN(10) == 0}
	c.off, c.n = w.pick(run)
	w.mu.Lock()
	defer w.mu.Unlock()
	s := x.cur
	if s == nil || !s.serving || s.inFlight >= maxInFlight {
		return
	}
	if w.with.lulls && s.epoch < w.served {
		return // whoever was replaced doesn't notice
	}
	switch {
	case k < 8:
		s.inFlight++
		w.running.Go(s.flush)
		return
	case k < 40:
		s.inFlight++
		w.running.Go(func() { s.read(c.off, c.n) })
		return
	case k < 50:
		c.kind = trimOp
	case k < 52:
		c.kind, c.off, c.n = trimOp, 0, simSize
	case k < 56:
		c.kind = zeroOp
	case k < 60:
		c.kind = zeroDataOp
	}
	w.changes++
	c.id, c.began = w.changes, w.now()
	if s.admit(c) {
		w.running.Go(func() { s.change(c) })
	}
}

// pick chooses cells of a run of pages: whole pages mostly.
func (w *world) pick(run [2]int64) (off, n int64) {
	first := run[0] + w.rng.Int64N(run[1]-run[0])
	pages := 1 + w.rng.Int64N(run[1]-first)
	off, n = first*store.PageSize, pages*store.PageSize
	if w.rng.IntN(3) == 0 {
		cut := w.rng.Int64N(n / cellSize)
		off, n = off+cut*cellSize, n-cut*cellSize
		n = cellSize * (1 + w.rng.Int64N(n/cellSize))
	}
	return off, n
}

// event lets something befall an exporter, a node, the network or the records.
func (w *world) event() {
	x := w.exporters[w.rng.IntN(len(w.exporters))]
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	soon := time.Duration(1 + w.rng.Int64N(int64(2*time.Second)))
	w.mu.Lock()
	defer w.mu.Unlock()
	switch k, with := w.rng.IntN(18), w.with; {
	case k < 2 && with.kills:
		w.happens("fault: exporter killed")
		x.kill()
	case k < 4 && with.pauses:
		w.happens("fault: exporter paused")
		w.note("%s: paused for %v", x.proc.name, soon*8)
		x.proc.pause()
		w.later(soon*8, x.proc.resume)
	case k < 4 && x.cur == nil:
		x.attach(with.force)
	case k == 4 && x.cur != nil:
		w.running.Go(x.cur.end)
	case k == 5 && with.partitions:
		w.part(x.proc, n, soon*3)
	case k == 6 && with.records:
		w.happens("fault: records away")
		w.note("the records are away for %v", soon*8)
		w.away = w.now() + soon*8
	case k == 7 && with.nodeKills:
		w.happens("fault: node killed")
		w.stopNodes(true, soon, n)
	case k == 8 && with.powerCuts:
		w.happens("fault: power cut")
		w.stopNodes(false, soon, n)
	case k == 9 && with.blackouts:
		w.happens("fault: power cut everywhere")
		w.stopNodes(false, soon, w.nodes...)
	case k < 12 && with.disks:
		w.inject(n, "fail", "apply and fail", "tear")
	case k == 12 && with.corrupt:
		w.rot()
	case k == 12 && with.full:
		w.fill(n, soon)
	case k == 13 && x.cur == nil:
		x.attach(with.force)
	case k < 16 && with.absences:
		w.happens("fault: node down for long")
		w.stopNodes(!with.powerCuts || k == 14, w.long(), n)
	case k == 16 && with.swaps:
		if i := slices.IndexFunc(w.nodes, w.stale); i >= 0 {
			w.swap(w.nodes[i])
		}
	case k == 17 && with.stops && x.cur != nil && x.cur.serving:
		w.plannedStop(x.cur, n)
	}
}

// long draws a time after which a node's copy is recorded stale, mostly.
func (w *world) long() time.Duration {
	most := 20
	if w.rng.IntN(4) == 0 {
		most = 60
	}
	return 5*time.Second + time.Duration(w.rng.Int64N(int64(most-5)*int64(time.Second)))
}

// part cuts a process from a node, in both directions or in one. Under mu.
func (w *world) part(p *process, n *simNode, d time.Duration) {
	if w.with.longCuts {
		d *= 4
	}
	end := w.now() + d
	c := simCut{end, end}
	if w.with.oneWay {
		switch w.rng.IntN(3) {
		case 0:
			c.there = 0
		case 1:
			c.back = 0
		}
	}
	w.happens("fault: link cut" + map[bool]string{true: " in one direction"}[c.there == 0 || c.back == 0])
	w.note("%s and node %d: cut for %v (there %v, back %v)", p.name, n.id, d, c.there != 0, c.back != 0)
	w.cuts[cutLink{p, n}] = c
}

// plannedStop lets a node stop as on SIGTERM: it says so, and is waited for until
// that is recorded, but not for ever. Under mu.
func (w *world) plannedStop(s *session, n *simNode) {
	w.happens("fault: planned stop")
	w.note("node %d: is about to stop", n.id)
	down := w.long() / 2
	w.running.Go(func() {
		s.letGo(n)
		for end := w.now() + 10*time.Second; !w.stale(n) && w.now() < end && !w.healed(); time.Sleep(50 * time.Millisecond) {
		}
		w.note("node %d: stops, for %v", n.id, down)
		n.end(true)
		w.later(down, func() { n.begin(); w.wake(n) })
	})
}

// wake tells the exporters that a node is there again. Not everybody hears of it.
func (w *world) wake(n *simNode) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.exporters {
		if s := x.cur; s != nil && s.serving && !s.proc.isPaused() {
			s.vol.Wake(n.id)
			s.vol.Wake(^n.id)
		}
	}
}

// swap gives a node an empty disk: one that is stale, so that no other lacks
// anything that it alone has. Under mu.
func (w *world) swap(n *simNode) {
	w.happens("fault: another disk")
	w.note("node %d: gets an empty disk", n.id)
	n.end(false)
	n.swap()
	w.later(w.long()/4, n.begin)
}

// later does something after a while, or when all is healed.
func (w *world) later(after time.Duration, do func()) {
	w.running.Go(func() {
		select {
		case <-time.After(after):
		case <-w.peace:
		}
		do()
	})
}

// stopNodes ends the processes of nodes, with their machines or without, each
// for a while of its own.
func (w *world) stopNodes(power bool, down time.Duration, nodes ...*simNode) {
	for i, n := range nodes {
		w.note("node %d %s, for %v", n.id, map[bool]string{true: "is killed", false: "loses power"}[power], down)
		n.end(power)
		told := w.rng.IntN(2) == 0
		w.later(down+time.Duration(i)*down/3, func() {
			n.begin()
			if told {
				w.wake(n)
			}
		})
	}
}

// inject lets the next requests of some kind to a node fail in one of some ways.
func (w *world) inject(n *simNode, how ...string) {
	what := []string{"writes", "writes,zeroes", "zeroes"}[w.rng.IntN(3)]
	if len(how) > 1 {
		what = []string{"writes", "zeroes", "writes,adopts", "syncs", "reads", "unstables", "creates", "stables", "adopts"}[w.rng.IntN(9)]
	}
	text := what + " " + how[w.rng.IntN(len(how))] + " once"
	f, err := faultstore.Parse(text)
	if err != nil {
		w.fail("%v", err)
		return
	}
	w.happens("fault: a request fails")
	w.note("node %d: %v", n.id, f)
	n.fs.Inject(f)
}

// fill lets a disk, or all of them, refuse what needs space, once or for a while.
func (w *world) fill(n *simNode, d time.Duration) {
	nodes, what := []*simNode{n}, "fault: a disk is full"
	if w.rng.IntN(2) == 0 {
		nodes, what = w.nodes, "fault: all disks are full"
	}
	f := faultstore.MustParse([]string{"writes,zeroes", "writes,zeroes,adopts"}[w.rng.IntN(2)] + " fail with no-space")
	if w.rng.IntN(2) == 0 {
		f.Times = 1
	}
	w.happens(what)
	for _, n := range nodes {
		w.note("node %d: %v, for %v", n.id, f, d)
		n.fs.Inject(f)
		w.later(d, func() { n.fs.Remove(f) })
	}
}

// rot makes a page of node 1 corrupt until it is written again.
func (w *world) rot() {
	off := simPages[w.rng.IntN(len(simPages))] * store.PageSize
	f := faultstore.Fault{Ops: faultstore.Read, Off: off, End: off + store.PageSize, Effect: faultstore.Corrupt}
	w.happens("fault: page rots")
	w.note("node 1: %v", f)
	w.nodes[0].fs.Inject(f)
}

// heal ends all trouble.
func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("all is healed")
	w.quiet = true
	close(w.peace)
	for _, n := range w.nodes {
		n.fs.Clear()
	}
	for _, x := range w.exporters {
		x.proc.resume()
	}
}

// finish is the time of peace: everybody lets go, late messages arrive, and then
// each exporter in turn attaches, works and ends clean.
func (w *world) finish() {
	time.Sleep(time.Second) // nodes start
	if !w.letAllGo() {
		return
	}
	time.Sleep(20 * time.Second)
	if w.with.rings && (!w.settleRings() || !w.letAllGo()) {
		return
	}
	var s *session
	for i, x := range w.exporters {
		w.locked(func() { x.attach(true) })
		serving := func() bool { s = x.cur; return s != nil && s.serving }
		if !w.await("an exporter to serve", time.Minute, serving) || w.failed() {
			return
		}
		if i > 0 && !s.att.Volume.Clean {
			w.fail("the volume was closed in peace, and is not clean")
		}
		w.readAll(s)
		for range 20 {
			w.request(x)
			time.Sleep(time.Millisecond)
		}
		if !w.await("requests to end", time.Minute, func() bool { return s.inFlight == 0 }) ||
			!w.await("all copies to be in sync", time.Minute, func() bool { return len(w.pairs(staleKeys)) == 0 }) {
			return
		}
		w.readAll(s)
		w.locked(func() { w.running.Go(s.end) })
		if !w.await("a clean end", time.Minute, w.idle) {
			return
		}
	}
	w.model.everywhere()
}

// letAllGo has all sessions end.
func (w *world) letAllGo() bool {
	w.locked(func() {
		for _, x := range w.exporters {
			if x.cur != nil {
				w.running.Go(x.cur.end)
			}
		}
	})
	return w.await("the exporters to let go", 2*time.Minute, w.idle)
}

// idle reports whether no exporter has anything. Under mu.
func (w *world) idle() bool { return w.exporters[0].cur == nil && w.exporters[1].cur == nil }

// readAll reads everything, and nothing may go wrong.
func (w *world) readAll(s *session) {
	before := 0
	w.locked(func() { before = w.erred })
	for _, run := range simRuns {
		w.locked(func() { s.inFlight++ })
		s.read(run[0]*store.PageSize, (run[1]-run[0])*store.PageSize)
	}
	w.locked(func() {
		if w.erred != before {
			w.fail("a read fails in peace")
		}
	})
}

// await waits for something to be so, under mu, and fails if it takes too long.
func (w *world) await(what string, limit time.Duration, is func() bool) bool {
	for end := w.now() + limit; w.now() < end; time.Sleep(5 * time.Millisecond) {
		so := false
		w.locked(func() { so = is() })
		if so {
			return true
		}
	}
	w.fail("waiting for %s took more than %v", what, limit)
	return false
}
