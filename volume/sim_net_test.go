package volume_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"torus/store"
)

// The network of the simulation: every call of an exporter to a node is a
// message and its answer, each on its way for a while. Messages get lost, are
// sent again, come twice and late, and find nodes that are down, as they would
// through package store/remote, whose promises this keeps: answers in three
// seconds or store.ErrUnreachable, and a replica that works again when its node
// was restarted with the incarnation it had.

const (
	answerTime = 3 * time.Second  // a replica has so long to answer
	attachTime = 10 * time.Second // an attach waits for requests of lower epochs
)

var (
	errKilled = errors.New("simulation: this process was killed")
	errDown   = errors.New("simulation: nobody listens there")
)

// A process is one run of an exporter. While it is paused (SIGSTOP) nothing
// leaves or reaches it; once killed nothing ever does again, but what it had
// sent is still on its way.
type process struct {
	w    *world
	name string
	pid  int
	dead chan struct{} // closed by kill

	mu      sync.Mutex
	running chan struct{} // closed while it isn't paused
	sent    map[uint64]int
}

func newProcess(w *world, name string, pid int) *process {
	p := &process{w: w, name: name, pid: pid, dead: make(chan struct{}), running: make(chan struct{}), sent: map[uint64]int{}}
	close(p.running)
	return p
}

// pass is where something enters or leaves the process.
func (p *process) pass() error {
	for {
		p.mu.Lock()
		running := p.running
		p.mu.Unlock()
		select {
		case <-running:
		case <-p.dead:
		}
		p.mu.Lock()
		same := running == p.running
		p.mu.Unlock()
		switch {
		case p.isDead():
			return errKilled
		case same:
			return nil
		}
	}
}

// cross is pass for a message: after a pause they don't all go on at the same
// moment, as it would be chance which is first.
func (p *process) cross(m message) error {
	for {
		before := p.w.now()
		if err := p.pass(); err != nil || p.w.now() == before {
			return err
		}
		r := p.draws("wake "+m.op, uint64(m.off), uint64(m.n), uint64(m.v), uint64(m.epoch))
		time.Sleep(time.Duration(1 + r.Int64N(int64(time.Millisecond))))
	}
}

func (p *process) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

func (p *process) isPaused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.running:
		return false
	default:
		return true
	}
}

func (p *process) kill() { close(p.dead) }

func (p *process) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.running:
		p.running = make(chan struct{})
	default: // it is already
	}
}

func (p *process) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.running:
	default:
		close(p.running)
	}
}

// draws returns random numbers that depend on what they are for and on how
// often that was asked, never on which goroutine came first.
func (p *process) draws(what string, numbers ...uint64) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(p.name + "/" + what))
	for _, n := range numbers {
		h.Write(binary.BigEndian.AppendUint64(nil, n))
	}
	key := h.Sum64()
	p.mu.Lock()
	p.sent[key]++
	n := p.sent[key]
	p.mu.Unlock()
	return rand.New(rand.NewPCG(p.w.seed, key+uint64(n)*0x9e3779b97f4a7c15))
}

// A message is one request to a node.
type message struct {
	op     string
	off, n int64
	v      store.Version
	do     func(store.Replica) (any, error) // nil of what is asked without an attachment
	ask    func(store.Store) (any, error)
	epoch  store.Epoch
	inc    store.Incarnation
	limit  time.Duration
}

func (m message) String() string {
	return fmt.Sprintf("%s of pages [%d,%d) %v", m.op, m.off/store.PageSize, (m.off+m.n)/store.PageSize, m.v)
}

type result struct {
	v   any
	err error
}

// A fate is what becomes of one sending of a message.
type fate struct {
	there, back time.Duration
	lost, mute  bool // the message, the answer
	twice       time.Duration
	again       time.Duration // after which it is sent again
}

// delay draws how long something is on its way. No two of them are equal, so
// that at each moment of the fake clock one thing happens.
func (w *world) delay(r *rand.Rand) time.Duration {
	base := 20*time.Microsecond + time.Duration(r.Int64N(int64(500*time.Microsecond)))
	if !w.healed() && w.with.slow {
		switch k := r.IntN(100); {
		case k < 2:
			base += time.Duration(r.Int64N(int64(4 * time.Second)))
		case k < 12:
			base += time.Duration(r.Int64N(int64(30 * time.Millisecond)))
		}
	}
	return base
}

func (w *world) fate(r *rand.Rand) fate {
	f := fate{there: w.delay(r), back: w.delay(r)}
	f.again = 300*time.Millisecond + time.Duration(r.Int64N(int64(300*time.Millisecond)))
	if w.healed() {
		return f
	}
	if w.with.loss {
		f.lost, f.mute = r.IntN(50) == 0, r.IntN(50) == 0
	}
	if w.with.twice && r.IntN(12) == 0 {
		f.twice = w.delay(r) + time.Duration(r.Int64N(int64(50*time.Millisecond)))
		if r.IntN(4) == 0 {
			f.twice += time.Duration(r.Int64N(int64(15 * time.Second)))
		}
	}
	return f
}

// A link is a node as a process reaches it.
type link struct {
	p    *process
	node *simNode
}

var _ store.Store = (*link)(nil)

// call sends m until it is answered, or given up.
func (l *link) call(ctx context.Context, m message) (any, error) {
	if err := l.p.cross(m); err != nil {
		return nil, err
	}
	answers, refused := make(chan result, 64), new(atomic.Bool)
	giveUp := time.NewTimer(m.limit)
	defer giveUp.Stop()
	for {
		r := l.p.draws(m.op, uint64(l.node.id), uint64(m.off), uint64(m.n), uint64(m.v), uint64(m.epoch))
		f := l.p.w.fate(r)
		l.send(m, f, answers, refused)
		again := time.NewTimer(f.again)
		a, err := l.await(ctx, answers, again.C, giveUp.C)
		again.Stop()
		if passed := l.p.cross(m); passed != nil {
			return nil, passed
		}
		if err != nil {
			return nil, fmt.Errorf("%v: %w", m.op, err)
		}
		if a.err == nil || !errors.Is(a.err, errDown) {
			refused.Store(errors.Is(a.err, store.ErrNoSpace))
			return a.v, a.err
		}
	}
}

// await returns an answer, errDown in it where there is none yet.
func (l *link) await(ctx context.Context, answers <-chan result, again, giveUp <-chan time.Time) (result, error) {
	for {
		select {
		case a := <-answers:
			if !errors.Is(a.err, errDown) {
				return a, nil
			}
		case <-again:
			return result{err: errDown}, nil
		case <-giveUp:
			return result{}, store.ErrUnreachable
		case <-ctx.Done():
			return result{}, ctx.Err()
		case <-l.p.dead:
			return result{}, errKilled
		}
	}
}

// send puts a message on its way, once or twice. No copy comes after the sender
// was told that there is no space, as package store/remote promises: what it wrote
// would be on one copy alone, and nobody would know.
func (l *link) send(m message, f fate, answers chan<- result, refused *atomic.Bool) {
	w := l.p.w
	arrive := func(after time.Duration, answered bool) {
		w.running.Go(func() {
			time.Sleep(after)
			if there, _ := w.cut(l.p, l.node); there || f.lost && answered || refused.Load() {
				return
			}
			a := l.node.serve(m)
			w.trace("  %s to node %d: %v: %v", l.p.name, l.node.id, m, a.err)
			time.Sleep(f.back)
			if _, back := w.cut(l.p, l.node); answered && !f.mute && !back {
				select {
				case answers <- a:
				default: // nobody waits for the sixty-fifth
				}
			}
		})
	}
	arrive(f.there, true)
	if f.twice > 0 {
		arrive(f.twice, false)
	}
}

// ask is call for what needs no attachment.
func (l *link) ask(ctx context.Context, op string, ask func(store.Store) (any, error)) (any, error) {
	return l.call(ctx, message{op: op, ask: ask, limit: answerTime})
}

func (l *link) Attach(ctx context.Context, vol store.VolumeID, e store.Epoch) (store.Replica, error) {
	inc, err := l.call(ctx, message{op: "attach", epoch: e, limit: attachTime, ask: func(s store.Store) (any, error) {
		return l.node.attach(s, vol, e)
	}})
	if err != nil {
		return nil, err
	}
	return &far{link: l, epoch: e, inc: inc.(store.Incarnation)}, nil
}

func (l *link) ReadSealed(ctx context.Context, chain []store.LayerID, off int64, p []byte) error {
	_, err := l.ask(ctx, "read sealed", func(s store.Store) (any, error) {
		return nil, s.ReadSealed(context.Background(), chain, off, p)
	})
	return err
}

func (l *link) Drop(ctx context.Context, layer store.LayerID, chunks store.Chunks) error {
	_, err := l.ask(ctx, "drop", func(s store.Store) (any, error) {
		return nil, s.Drop(context.Background(), layer, chunks)
	})
	return err
}

func (l *link) Forget(ctx context.Context, vol store.VolumeID) error {
	_, err := l.ask(ctx, "forget", func(s store.Store) (any, error) {
		return nil, s.Forget(context.Background(), vol)
	})
	return err
}

func (l *link) Layers(ctx context.Context) iter.Seq2[store.LayerInfo, error] {
	return listed[store.LayerInfo](func() (any, error) {
		return l.ask(ctx, "layers", func(s store.Store) (any, error) { return collect(s.Layers(context.Background())) })
	})
}

func (l *link) Fences(ctx context.Context) iter.Seq2[store.Fence, error] {
	return listed[store.Fence](func() (any, error) {
		return l.ask(ctx, "fences", func(s store.Store) (any, error) { return collect(s.Fences(context.Background())) })
	})
}

func (l *link) Stat(ctx context.Context) (store.Stat, error) {
	st, err := l.ask(ctx, "stat", func(s store.Store) (any, error) { return s.Stat(context.Background()) })
	if err != nil {
		return store.Stat{}, err
	}
	return st.(store.Stat), nil
}

func (l *link) Close() error { return nil }

// collect is what a node answers to a question with many answers.
func collect[T any](seq iter.Seq2[T, error]) (any, error) {
	var all []T
	for v, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, v)
	}
	return all, nil
}

// listed yields what a call brought.
func listed[T any](call func() (any, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		all, err := call()
		if err != nil {
			yield(none, err)
			return
		}
		for _, v := range all.([]T) {
			if !yield(v, nil) {
				return
			}
		}
	}
}
