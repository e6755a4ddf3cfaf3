package segment

import (
	"testing"
	"time"

	"torus/store"
)

// A fence is answered only when all that was let in under a lower epoch is over (N1):
// what comes after the answer would be on this node alone.
func TestFenceWaitsForWhatWasLetIn(t *testing.T) {
	m := newCrashMachine(t, 1)
	s := openScribe(t, m)
	r := s.r.(*replica)
	m.ok(r.enter(s.ctx))
	fenced := make(chan error, 1)
	go func() {
		_, err := m.st.Attach(s.ctx, 1, s.h.epoch+1)
		fenced <- err
	}()
	select {
	case err := <-fenced:
		r.leave()
		t.Fatalf("answered while a request was under way: %v", err)
	case <-time.After(200 * time.Millisecond): // a fence takes a write and a sync
	}
	r.leave()
	select {
	case err := <-fenced:
		m.ok(err)
	case <-time.After(time.Minute):
		t.Fatal("not answered after the request was over")
	}
	if err := s.r.Write(s.ctx, layerA, 0, alignedBuffer(ps), store.NewVersion(s.h.epoch, 1), 0); err == nil {
		t.Error("the lower epoch is let in still")
	}
}
