package cluster

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is a KV in memory, for tests and simulations: nothing in it is random
// and, with a clock handed in, nothing happens but in a call.
type Memory struct {
	mu     sync.Mutex // guards all below
	now    func() time.Duration
	timer  *time.Timer // expires leases; nil with a clock handed in
	closed bool

	rev       Revision
	compacted Revision // revisions up to here can't be read or watched from
	history   map[string][]Event
	log       []Batch // one entry a revision above compacted
	leases    map[LeaseID]*memoryLease
	lastLease LeaseID
	changed   chan struct{} // closed and replaced at every change
}

type memoryLease struct {
	ttl  time.Duration
	ends time.Duration // on the clock
}

var _ KV = (*Memory)(nil)

// NewMemory returns an empty KV. now is the clock that leases run by, any
// duration that grows; leases then end in the call that follows their time, or
// in Expire. nil means real time, and that they end by themselves.
func NewMemory(now func() time.Duration) *Memory {
	m := &Memory{
		now: now, history: map[string][]Event{}, leases: map[LeaseID]*memoryLease{},
		rev: 1, changed: make(chan struct{}),
	}
	if now == nil {
		start := time.Now()
		m.now = func() time.Duration { return time.Since(start) }
		m.timer = time.AfterFunc(time.Hour, m.Expire)
	}
	return m
}

// Expire ends the leases whose time has passed.
func (m *Memory) Expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expire()
}

// expire ends overdue leases in the order of their end. Under mu.
func (m *Memory) expire() {
	if m.closed {
		return
	}
	now := m.now()
	var over []LeaseID
	next := time.Duration(-1)
	for id, l := range m.leases {
		if l.ends <= now {
			over = append(over, id)
		} else if next < 0 || l.ends-now < next {
			next = l.ends - now
		}
	}
	slices.SortFunc(over, func(a, b LeaseID) int {
		if d := m.leases[a].ends - m.leases[b].ends; d != 0 {
			return int(min(max(d, -1), 1))
		}
		return int(a - b)
	})
	for _, id := range over {
		m.endLease(id)
	}
	if m.timer != nil && next >= 0 {
		m.timer.Reset(next)
	}
}

// endLease deletes a lease with its keys, at one revision. Under mu.
func (m *Memory) endLease(id LeaseID) {
	delete(m.leases, id)
	var gone []Event
	for _, key := range slices.Sorted(maps.Keys(m.history)) {
		if p := m.newest(key); p.Mod != 0 && p.Lease == id {
			gone = append(gone, Event{Pair: Pair{Key: key}, Deleted: true})
		}
	}
	m.apply(gone)
}

// begin locks m for a call that may run; the caller unlocks unless it fails.
func (m *Memory) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	m.expire()
	return nil
}

// newest returns what key holds now. Under mu.
func (m *Memory) newest(key string) Pair { return m.at(key, m.rev) }

// at returns what key held at a revision. Under mu.
func (m *Memory) at(key string, rev Revision) Pair {
	events := m.history[key]
	for i := len(events) - 1; i >= 0; i-- {
		if e := events[i]; e.Mod <= rev {
			if e.Deleted {
				break
			}
			return e.Pair
		}
	}
	return Pair{Key: key}
}

// readable returns the revision that a read at rev uses. Under mu.
func (m *Memory) readable(rev Revision) (Revision, error) {
	switch {
	case rev == 0:
		return m.rev, nil
	case rev <= m.compacted:
		return 0, ErrCompacted
	case rev > m.rev:
		return 0, fmt.Errorf("%w: revision %d is in the future of %d", ErrInvalid, rev, m.rev)
	}
	return rev, nil
}

// Get implements KV.
func (m *Memory) Get(ctx context.Context, key string, at Revision) (Pair, Revision, error) {
	if err := m.begin(ctx); err != nil {
		return Pair{}, 0, err
	}
	defer m.mu.Unlock()
	rev, err := m.readable(at)
	if err != nil {
		return Pair{}, 0, err
	}
	return m.at(key, rev), rev, nil
}

// Range implements KV.
func (m *Memory) Range(ctx context.Context, prefix string, at Revision) ([]Pair, Revision, error) {
	if err := m.begin(ctx); err != nil {
		return nil, 0, err
	}
	defer m.mu.Unlock()
	rev, err := m.readable(at)
	if err != nil {
		return nil, 0, err
	}
	var pairs []Pair
	for _, key := range m.keys(prefix) {
		if p := m.at(key, rev); p.Mod != 0 {
			pairs = append(pairs, p)
		}
	}
	return pairs, rev, nil
}

// keys returns the keys that begin with prefix, in order. Under mu.
func (m *Memory) keys(prefix string) []string {
	var keys []string
	for key := range m.history {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Commit implements KV.
func (m *Memory) Commit(ctx context.Context, t Txn) (Outcome, error) {
	if err := t.check(); err != nil {
		return Outcome{}, err
	}
	if err := m.begin(ctx); err != nil {
		return Outcome{}, err
	}
	defer m.mu.Unlock()
	for _, c := range t.If {
		if !m.holds(c) {
			return Outcome{Revision: m.rev}, nil
		}
	}
	var events []Event
	for _, op := range t.Then {
		switch op.Kind {
		case OpPut:
			if _, ok := m.leases[op.Lease]; op.Lease != 0 && !ok {
				return Outcome{}, ErrNoLease
			}
			events = append(events, Event{Pair: Pair{Key: op.Key, Value: bytes.Clone(op.Value), Lease: op.Lease}})
		case OpDelete:
			if m.newest(op.Key).Mod != 0 {
				events = append(events, Event{Pair: Pair{Key: op.Key}, Deleted: true})
			}
		case OpDeletePrefix:
			for _, key := range m.keys(op.Key) {
				if m.newest(key).Mod != 0 {
					events = append(events, Event{Pair: Pair{Key: key}, Deleted: true})
				}
			}
		}
	}
	m.apply(events)
	return Outcome{Held: true, Revision: m.rev}, nil
}

// holds reports whether c does. Under mu.
func (m *Memory) holds(c Cond) bool {
	if !c.Prefix {
		return m.newest(c.Key).Mod == c.Mod
	}
	for _, key := range m.keys(c.Key) {
		if m.newest(key).Mod > c.Mod {
			return false
		}
	}
	return true
}

// apply makes events a revision and tells the watchers. Under mu.
func (m *Memory) apply(events []Event) {
	if len(events) == 0 {
		return
	}
	m.rev++
	for i := range events {
		events[i].Mod = m.rev
		m.history[events[i].Key] = append(m.history[events[i].Key], events[i])
	}
	m.log = append(m.log, Batch{Revision: m.rev, Events: events})
	close(m.changed)
	m.changed = make(chan struct{})
}

// Compact forgets all revisions before the newest, as etcd does now and then.
func (m *Memory) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.compacted = m.rev - 1
	keep := m.log[:0:0]
	for _, b := range m.log {
		if b.Revision > m.compacted {
			keep = append(keep, b)
		}
	}
	m.log = keep
	for key, events := range m.history {
		last := events[len(events)-1]
		if last.Deleted && last.Mod <= m.compacted {
			delete(m.history, key)
			continue
		}
		from := len(events) - 1
		for from > 0 && events[from].Mod > m.compacted {
			from--
		}
		m.history[key] = slices.Clone(events[from:])
	}
}

// Close implements KV.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	if m.timer != nil {
		m.timer.Stop()
	}
	close(m.changed)
	return nil
}
