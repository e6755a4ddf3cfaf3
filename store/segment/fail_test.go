package segment

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"torus/store"
)

var errDisk = errors.New("the disk says no")

// openScribe opens a store on a crash disk, attached, with a layer.
func openScribe(t *testing.T, m *crashMachine) *scribe {
	t.Helper()
	m.ok(m.open())
	s := &scribe{t: t, ctx: context.Background(), h: newHistory(), st: m.st}
	s.attach(2)
	s.create(layerA, 0)
	m.ok(s.err)
	return s
}

// A failed sync, or write, ends the incarnation: what was asked meanwhile is
// refused, nothing is tried again into success, and a start on the same boot
// is another incarnation too (N2).
func TestDiskFailure(t *testing.T) {
	for _, op := range []string{"datasync", "writeAt"} {
		t.Run(op, func(t *testing.T) {
			m := newCrashMachine(t, 1)
			s := openScribe(t, m)
			s.write(layerA, windowFirst, 20)
			s.sync()
			m.ok(s.err)
			was := m.st.currentIncarnation()
			failures := 0
			m.disk.breaks(func(o, _ string) error {
				if o == op && failures == 0 { // once: a second attempt would succeed
					failures++
					return errDisk
				}
				return nil
			})
			err := s.r.Write(s.ctx, layerA, windowFirst*ps, value{kind: store.Data, version: s.version()}.bytes(0), s.version(), store.FlagSync)
			if !errors.Is(err, store.ErrFailed) {
				t.Fatalf("a write whose %s failed: %v", op, err)
			}
			if err := s.r.Sync(s.ctx); !errors.Is(err, store.ErrIncarnation) {
				t.Fatalf("a sync behind it: %v", err)
			}
			if err := m.st.log.sync(); !errors.Is(err, store.ErrFailed) {
				t.Fatalf("the log syncs again: %v", err)
			}
			if _, err := m.st.Attach(s.ctx, 1, 3); !errors.Is(err, store.ErrFailed) {
				t.Fatalf("attaching behind it: %v", err)
			}
			stat, err := m.st.Stat(s.ctx)
			if err != nil || stat.Failed == "" || stat.Incarnation == was {
				t.Fatalf("stat says %+v, %v", stat, err)
			}
			m.st.kill()
			m.ok(m.open())
			if now := m.st.currentIncarnation(); now == was {
				t.Fatal("the store came back with the incarnation that the failure ended")
			}
			p := alignedBuffer(20 * ps)
			r, err := m.st.Attach(s.ctx, 1, 3)
			m.ok(err)
			m.ok(r.Read(s.ctx, []store.LayerID{layerA}, windowFirst*ps, p, nil))
			want := value{kind: store.Data, version: store.NewVersion(2, 1)}
			for i := int64(1); i < 20; i++ {
				if !bytes.Equal(p[i*ps:(i+1)*ps], want.bytes(windowFirst+i)) {
					t.Fatalf("page %d, which was synced before, is gone", i)
				}
			}
		})
	}
}

// Writers that run into a failing disk get no success behind the failure, and
// the log has no gap that a later sync would vouch for: the store opens.
func TestDiskFailureUnderLoad(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	n := 0
	m.disk.breaks(func(op, _ string) error {
		if op == "writeAt" {
			n++
		}
		if op == "writeAt" && n == 50 {
			return errDisk
		}
		return nil
	})
	var wg sync.WaitGroup
	for w := range uint64(16) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var err error
			for i := uint64(1); err == nil; i++ {
				v := store.NewVersion(2, i<<8|w)
				err = s.r.Write(s.ctx, layerA, int64(w)*ps, value{kind: store.Data, version: v}.bytes(int64(w)), v, store.FlagSync)
			}
			if !errors.Is(err, store.ErrFailed) && !errors.Is(err, store.ErrIncarnation) {
				t.Errorf("writer %d ended with %v", w, err)
			}
		}()
	}
	wg.Wait()
	m.disk.breaks(nil)
	m.st.kill()
	m.ok(m.open())
	m.ok(recount(s.ctx, m.st))
}

// A start that cannot sync what it replayed does not serve it (N5).
func TestStartSyncsReplayedTail(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	s.write(layerA, windowFirst, 20)
	m.ok(s.err)
	m.end(killed)
	m.disk.breaks(func(op, _ string) error {
		if op == "datasync" {
			return errDisk
		}
		return nil
	})
	if err := m.open(); !errors.Is(err, errDisk) {
		t.Fatalf("opened with a disk that does not sync: %v", err)
	}
	m.disk.breaks(nil)
	m.ok(m.open())
	m.ok(s.h.check(s.ctx, m.st, killed))
	m.end(powerCut) // what was served is durable
	m.ok(m.open())
	m.ok(s.h.check(s.ctx, m.st, killed))
}
