package segment

import (
	"context"
	"testing"

	"torus/store"
	"torus/store/storetest"
)

// A machine is a directory with a store, and a boot ID.
type machine struct {
	options Options
	boot    int
	st      *Store
}

func newMachine(t *testing.T) *machine {
	m := &machine{options: Options{Dir: t.TempDir(), Reserve: 4 << 20, SegmentSize: 64 << 20, CacheBytes: 1 << 20, memtable: 16 << 20}}
	t.Cleanup(func() {
		if m.st != nil {
			m.st.kill()
		}
	})
	return m
}

func (m *machine) Open(t *testing.T) store.Store {
	t.Helper()
	m.options.bootID = string(rune('a' + m.boot))
	st, err := Open(context.Background(), m.options)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	m.st = st
	return st
}

func (m *machine) Kill(t *testing.T) {
	t.Helper()
	m.st.kill()
	m.st = nil
}

// PowerCut here takes nothing but the process; what an unsynced write may
// leave behind is in the crash tests.
func (m *machine) PowerCut(t *testing.T) {
	m.Kill(t)
	m.boot++
}

// kill ends the store as kill -9 does: nothing is written any more. What is
// under way in the background is waited for, since it shares our process.
func (st *Store) kill() {
	st.gate.Lock()
	defer st.gate.Unlock()
	if st.closed {
		return
	}
	st.closed = true
	close(st.stop)
	st.background.Wait()
	st.shut()
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Machine { return newMachine(t) })
}
