package cluster

import (
	"context"
	"fmt"
	"iter"
	"time"

	"strings"
)

// Grant implements KV.
func (m *Memory) Grant(ctx context.Context, ttl time.Duration) (Lease, error) {
	if ttl <= 0 {
		return Lease{}, fmt.Errorf("%w: lease of %v", ErrInvalid, ttl)
	}
	if err := m.begin(ctx); err != nil {
		return Lease{}, err
	}
	defer m.mu.Unlock()
	m.lastLease++
	m.leases[m.lastLease] = &memoryLease{ttl: ttl, ends: m.now() + ttl}
	m.expire() // arms the timer
	return Lease{ID: m.lastLease, TTL: ttl}, nil
}

// KeepAlive implements KV.
func (m *Memory) KeepAlive(ctx context.Context, id LeaseID) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	l, ok := m.leases[id]
	if !ok {
		return ErrNoLease
	}
	l.ends = m.now() + l.ttl
	return nil
}

// Revoke implements KV.
func (m *Memory) Revoke(ctx context.Context, id LeaseID) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	if _, ok := m.leases[id]; ok {
		m.endLease(id)
	}
	return nil
}

// Watch implements KV.
func (m *Memory) Watch(ctx context.Context, prefix string, from Revision) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		next := from
		for {
			batches, changed, err := m.since(ctx, prefix, &next)
			for _, b := range batches {
				if !yield(b, nil) {
					return
				}
			}
			if err != nil {
				yield(Batch{}, err)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// since returns the changes of prefix from *next on and moves *next behind them.
func (m *Memory) since(ctx context.Context, prefix string, next *Revision) ([]Batch, <-chan struct{}, error) {
	if err := m.begin(ctx); err != nil {
		return nil, nil, err
	}
	defer m.mu.Unlock()
	if *next == 0 {
		*next = m.rev + 1
	}
	if *next <= m.compacted {
		return nil, nil, ErrCompacted
	}
	var batches []Batch
	for _, b := range m.log {
		if b.Revision < *next {
			continue
		}
		match := Batch{Revision: b.Revision}
		for _, e := range b.Events {
			if strings.HasPrefix(e.Key, prefix) {
				match.Events = append(match.Events, e)
			}
		}
		if len(match.Events) > 0 {
			batches = append(batches, match)
		}
	}
	*next = max(*next, m.rev+1)
	return batches, m.changed, nil
}
