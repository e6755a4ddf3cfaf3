package volume_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"torus/cluster"
	"torus/ring"
	"torus/store"
	"torus/volume"
)

// An exporter is a place where processes run that attach the volume, one after
// the other.
type exporter struct {
	w     *world
	index int
	proc  *process
	cur   *session // of proc, from its attach to its detach; nil: it holds nothing
}

// A session is one attachment of a process, or its attempt:
//
//	attaching ─► serving ─► ending, and the exporter has no session any more
type session struct {
	x       *exporter
	proc    *process
	att     *cluster.Attachment
	vol     *volume.Volume // once it serves
	epoch   store.Epoch
	serving bool
	ending  bool
	reloads bool          // it is to end, since the ring has changed
	said    time.Duration // when Status last said that requests wait, or the process could not

	// What the checks need to know; guarded by model.mu.
	base  map[int64]store.Version // what each page was when it began to serve
	since time.Duration           // when that was
	acked map[int64]store.Version // the highest version acknowledged

	// Changes under way; guarded by world.mu.
	inFlight  int
	busy      map[int64]int  // changes of a page
	zeroing   map[int64]bool // one of them makes zeroes
	exclusive map[int64]bool // and must be the only one
}

// restart gives the exporter another process. Under mu.
func (x *exporter) restart() {
	x.w.pids++
	x.proc, x.cur = newProcess(x.w, fmt.Sprintf("x%d.%d", x.index, x.w.pids), x.w.pids), nil
}

// attach begins an attachment, by force or if the holder gives way. Under mu.
func (x *exporter) attach(force bool) {
	w := x.w
	s := &session{x: x, proc: x.proc, base: map[int64]store.Version{}, acked: map[int64]store.Version{},
		busy: map[int64]int{}, zeroing: map[int64]bool{}, exclusive: map[int64]bool{}}
	x.cur = s
	w.note("%s: attaches%s", s.proc.name, map[bool]string{true: " by force"}[force])
	w.running.Go(func() {
		err := s.begin(force)
		if err != nil {
			w.note("%s: attach under epoch %v: %v", s.proc.name, s.epoch, err)
			s.end()
		}
	})
}

var errEnded = errors.New("simulation: the session ended meanwhile")

// records opens the cluster's records as this process reaches them.
func (s *session) records(ctx context.Context) (*cluster.Cluster, error) {
	w := s.x.w
	return cluster.Open(ctx, simKV{w.kv, s.proc}, "", cluster.Options{
		Now: w.now, Wall: time.Now, Random: byteReader{s.proc.draws("random")}, Lease: leaseTime,
	})
}

const leaseTime = 10 * time.Second

// begin attaches and opens the volume, as package node does.
func (s *session) begin(force bool) error {
	w := s.x.w
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	c, err := s.records(ctx)
	if err != nil {
		return err
	}
	h := cluster.Holder{Name: s.proc.name, Process: cluster.Process{BootID: "sim", PID: s.proc.pid}}
	att, err := c.Attach(ctx, simVolume, h, cluster.AttachOptions{Force: force, Dead: w.provenDead})
	if err != nil {
		return err
	}
	ended := false
	w.locked(func() {
		s.epoch = att.Epoch
		if ended = s.ending; !ended {
			s.att = att
		}
	})
	if ended {
		return errors.Join(errEnded, att.Detach(ctx, false))
	}
	v, err := s.open(ctx)
	if err != nil {
		return err
	}
	w.note("%s: serves under epoch %v (clean before: %v)", s.proc.name, s.epoch, att.Volume.Clean)
	if err := s.proc.pass(); err != nil {
		v.Close()
		return err
	}
	w.locked(func() {
		if ended = s.ending; !ended {
			s.vol, s.serving = v, true
		}
	})
	if ended {
		v.Close()
		return errEnded
	}
	w.happens("attach: serves")
	w.serves(s.epoch)
	w.running.Go(s.watch)
	return nil
}

// open opens the volume, which records that it is about to serve.
func (s *session) open(ctx context.Context) (*volume.Volume, error) {
	w, att := s.x.w, s.att
	stores := map[ring.NodeID]store.Store{}
	for _, n := range w.nodes {
		stores[n.id] = &link{s.proc, n}
	}
	recorded := map[ring.NodeID]volume.Copy{}
	for _, i := range att.Incarnations {
		recorded[copyOf(i.Node, i.Target)] = volume.Copy{Identity: i.Identity, Incarnation: i.Incarnation}
	}
	var stale []volume.Stale
	for _, r := range att.Stale {
		stale = append(stale, volume.Stale{Node: copyOf(r.Node, r.Target), Layer: r.Layer, Since: r.Since, Why: r.Why})
	}
	var heldUntil time.Time
	if !att.Volume.Clean {
		heldUntil = time.Now().Add(leaseTime)
	}
	o := volume.Options{
		ID: att.Volume.ID, Epoch: att.Epoch, Chain: att.Chain, Size: att.Volume.Size,
		Stores: stores, Place: w.placeFor(s.x.index), MinCopies: att.MinCopies(),
		Clean: att.Volume.Clean, Recorded: recorded, Stale: stale, Records: simRecords{s},
		Held: s.held, HeldUntil: heldUntil, Logger: slog.New(simLog{s.proc}),
		SyncBytes: w.with.syncBytes, SyncEvery: w.with.syncEvery,
	}
	if !w.with.rings {
		return volume.Open(ctx, o)
	}
	s.place(&o)
	v, err := volume.Open(ctx, o)
	if err == nil {
		if err = att.TellPlaced(ctx); err != nil {
			v.Close()
		}
	}
	return v, err
}

// held is asked when a read arrives.
func (s *session) held() bool {
	held := s.att.Held()
	if !held {
		s.x.w.happens("lease may have run out")
	}
	return held
}

// simRecords is where a session writes down what its copies lack, as package
// node has it, with the model looking on.
type simRecords struct{ *session }

var _ volume.Records = simRecords{}

func (r simRecords) Serving(ctx context.Context, f volume.Found) error {
	w := r.x.w
	w.model.recovered(r.session, func(n *simNode) bool { _, is := f.Copies[n.id]; return is })
	for what, is := range map[string]bool{"pages reconciled": f.Repaired > 0, "a copy left out": len(f.Stale) > 0, "reborn": len(f.Reborn) > 0,
		"unflushed writes may be gone": f.UnflushedGone, "by force": r.att.Replaced != nil} {
		if is {
			w.happens("attach: " + what)
		}
	}
	var found []cluster.Incarnation
	for _, n := range w.nodes {
		for _, id := range []ring.NodeID{n.id, ^n.id} {
			if c, is := f.Copies[id]; is {
				found = append(found, r.incarnation(id, c))
			}
		}
	}
	var stale []cluster.Stale
	for _, s := range f.Stale {
		node, target := r.roleOf(s.Node)
		stale = append(stale, cluster.Stale{Layer: s.Layer, Node: node, Target: target, Since: s.Since, Epoch: r.epoch, At: time.Now(), Why: s.Why})
	}
	err := outcome(r.att.Serving(ctx, found, stale))
	if err == nil {
		w.model.served(r.session)
	}
	return err
}

func (r simRecords) Stale(ctx context.Context, n ring.NodeID, why string, since map[store.LayerID]store.Version) error {
	var marks []cluster.Stale
	node, target := r.roleOf(n)
	for _, layer := range slices.Sorted(maps.Keys(since)) {
		marks = append(marks, cluster.Stale{Layer: layer, Node: node, Target: target, Since: since[layer], Epoch: r.epoch, At: time.Now(), Why: why})
	}
	return outcome(r.att.MarkStale(ctx, marks))
}

func (r simRecords) InSync(ctx context.Context, n ring.NodeID, now volume.Copy, layers []store.LayerID) error {
	return outcome(r.att.InSync(ctx, r.incarnation(n, now), layers))
}

// incarnation is what is recorded of a copy.
func (r simRecords) incarnation(id ring.NodeID, c volume.Copy) cluster.Incarnation {
	node, target := r.roleOf(id)
	return cluster.Incarnation{Node: node, Target: target, Identity: c.Identity, Incarnation: c.Incarnation}
}

// outcome says what became of a transaction, in the words of package volume.
func outcome(err error) error {
	switch {
	case errors.Is(err, cluster.ErrLost):
		return fmt.Errorf("%w: %w", volume.ErrLost, err)
	case errors.Is(err, cluster.ErrMoved):
		return fmt.Errorf("%w: %w", volume.ErrMoved, err)
	case errors.Is(err, cluster.ErrUnavailable) && !errors.Is(err, cluster.ErrUnknown):
		return fmt.Errorf("%w: %w", volume.ErrNotDone, err)
	}
	return err
}

// looks notes whether the volume says that requests wait. Under world.mu.
func (s *session) looks() {
	if s.vol != nil && (s.proc.isPaused() || s.vol.Status().Waiting != "") { // also while it is closed
		s.said = s.x.w.now()
	}
}

// letGo tells the volume that a node is about to stop.
func (s *session) letGo(n *simNode) {
	if s.proc.pass() == nil {
		s.vol.LetGo(n.id)
		s.vol.LetGo(^n.id)
	}
}

// watch ends the session when its attachment is lost.
func (s *session) watch() {
	<-s.att.Lost()
	s.end()
}

// end gives up what the session has, once, and makes room for the next.
func (s *session) end() {
	w := s.x.w
	first := false
	w.locked(func() { first, s.ending, s.serving = !s.ending, true, false })
	if !first {
		return
	}
	clean := false
	if s.vol != nil {
		err := s.vol.Close()
		clean = err == nil
		w.note("%s: closed under epoch %v: %v", s.proc.name, s.epoch, err)
		if clean && s.proc.pass() == nil {
			w.model.closed(s)
		}
	}
	if s.att != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.att.Detach(ctx, clean); err != nil {
			w.note("%s: detach under epoch %v: %v", s.proc.name, s.epoch, err)
		}
	}
	w.locked(func() {
		if s.x.cur == s {
			s.x.cur = nil
		}
	})
}

// kill ends the exporter's process without warning and starts another. Under mu.
func (x *exporter) kill() {
	x.w.note("%s: killed", x.proc.name)
	x.w.killed[x.proc.pid] = true
	x.proc.kill()
	s := x.cur
	x.restart()
	if s != nil {
		x.w.running.Go(s.end) // its goroutines must end; nobody hears of it
	}
}

// The kinds of changes.
const (
	writeOp = iota
	trimOp
	zeroOp
	zeroDataOp
)

// simChange is a change that a client asks for.
type simChange struct {
	id     uint64
	kind   int
	off, n int64
	fua    bool
	began  time.Duration
	ended  time.Duration

	versions  map[int64]store.Version // by page, once it has ended well
	ambiguous bool                    // they are lower bounds
}

func (c *simChange) String() string {
	name := [...]string{"write", "trim", "zero", "zero without a hole"}[c.kind]
	if c.fua {
		name += " (FUA)"
	}
	return fmt.Sprintf("%s #%x of cells %d+%d", name, c.id, c.off/cellSize, c.n/cellSize)
}

// cellsOf returns which cells of a page the change covers.
func (c *simChange) cellsOf(page int64) (first, end int) {
	at := page * store.PageSize
	return int(max(c.off-at, 0)) / cellSize, int(min(c.off+c.n-at, store.PageSize)) / cellSize
}

func (c *simChange) tag(page int64, cell int) uint64 {
	if c.kind != writeOp {
		return 0
	}
	return tag(c.id, page, cell)
}

// bytes returns what a write writes.
func (c *simChange) bytes() []byte {
	p := make([]byte, c.n)
	for i := range p {
		at := c.off + int64(i)
		p[i] = byte(c.tag(at/store.PageSize, int(at%store.PageSize)/cellSize) >> (56 - 8*(i%8)))
	}
	return p
}

// admit reports whether the change's versions will be told apart from those of
// the changes under way, and counts it among them.
func (s *session) admit(c *simChange) bool {
	pages := s.x.w.model.in(c.off, c.n)
	alone := c.kind != writeOp && (c.off%store.PageSize != 0 || c.n%store.PageSize != 0)
	for _, pm := range pages {
		if s.exclusive[pm.page] || alone && s.busy[pm.page] > 0 || c.kind != writeOp && s.zeroing[pm.page] {
			return false
		}
	}
	for _, pm := range pages {
		s.busy[pm.page]++
		s.zeroing[pm.page] = s.zeroing[pm.page] || c.kind != writeOp
		s.exclusive[pm.page] = alone
	}
	s.inFlight++
	return true
}

func (s *session) leave(c *simChange) {
	for _, pm := range s.x.w.model.in(c.off, c.n) {
		s.busy[pm.page]--
		if c.kind != writeOp {
			s.zeroing[pm.page], s.exclusive[pm.page] = false, false
		}
	}
	s.inFlight--
}

// change carries out a change as a client sees it.
func (s *session) change(c *simChange) {
	w := s.x.w
	fenced := w.servedBy(s.epoch)
	var err error
	switch c.kind {
	case writeOp:
		if c.fua {
			_, err = s.vol.WriteAtSync(c.bytes(), c.off)
		} else {
			_, err = s.vol.WriteAt(c.bytes(), c.off)
		}
	case trimOp:
		err = s.vol.Trim(c.off, c.n, c.fua)
	default:
		err = s.vol.Zero(c.off, c.n, c.fua, c.kind == zeroDataOp)
	}
	c.ended = w.now()
	w.model.identify(s, c, err != nil)
	w.locked(func() { s.leave(c) })
	w.waited(s, c.String(), c.began)
	if s.heard(c.String(), fenced, err) {
		w.model.acknowledged(s, c)
	}
}

// read carries out a read.
func (s *session) read(off, n int64) {
	w := s.x.w
	fenced, began, least := w.servedBy(s.epoch), w.now(), w.model.snapshot(off, n)
	p := make([]byte, n)
	_, err := s.vol.ReadAt(p, off)
	w.waited(s, "read", began)
	w.locked(func() { s.inFlight-- })
	if s.heard(fmt.Sprintf("read of cells %d+%d", off/cellSize, n/cellSize), fenced, err) {
		w.model.read(s, off, p, began, least)
	}
}

// flush carries out a flush.
func (s *session) flush() {
	w := s.x.w
	w.model.mu.Lock()
	acked := maps.Clone(s.acked)
	w.model.mu.Unlock()
	fenced, began := w.servedBy(s.epoch), w.now()
	err := s.vol.Sync()
	ended := w.now()
	w.waited(s, "flush", began)
	w.locked(func() { s.inFlight-- })
	if s.heard("flush", fenced, err) {
		w.model.flushed(s, acked, began, ended)
	}
}

// heard is the way of an answer to the client; true if it says that all is well.
func (s *session) heard(what string, fenced bool, err error) bool {
	w := s.x.w
	if s.proc.pass() != nil {
		return false
	}
	w.answered(err)
	if err != nil {
		w.judgeError(what, err)
		w.note("%s: %s under epoch %v: %v", s.proc.name, what, s.epoch, err)
		if errors.Is(err, volume.ErrBroken) {
			w.running.Go(s.end)
		}
		return false
	}
	w.note("%s: %s under epoch %v: done", s.proc.name, what, s.epoch)
	if fenced && what != "flush" { // which asks nobody where nothing is unsynced, and says the truth
		w.fail("I1: %s of %s was answered under epoch %v, and began when a later one served", what, s.proc.name, s.epoch)
	}
	return true
}

// byteReader is where a process has its random bytes from.
type byteReader struct{ r *rand.Rand }

func (b byteReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b.r.Uint32())
	}
	return len(p), nil
}
