package nbd

import (
	"os"
	"testing"
	"time"
)

// A reader looks out for a client that sends again at once, and not for one that
// turned out slower, until some requests later; nor where enough do.
func TestLookout(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd := r.Fd()
	var all lookouts
	l := lookout{all: &all}
	waits := func(soon bool) bool {
		l.begin(soon)
		return l.wait(fd)
	}

	go func() {
		for all.n.Load() == 0 {
			time.Sleep(10 * time.Microsecond)
		}
		if _, err := w.Write([]byte{1}); err != nil {
			t.Error(err)
		}
	}()
	arrived := false
	for range 100 { // the machine may be slower than the writer's millisecond
		if arrived = waits(true); arrived {
			break
		}
	}
	if !arrived {
		t.Fatal("never saw what was written while it looked out")
	}
	if waits(false) {
		t.Error("looks out though nothing is expected soon")
	}
	all.n.Store(lookoutMost)
	if waits(true) {
		t.Error("more than lookoutMost look out")
	}
	all.n.Store(0)
	if !waits(true) {
		t.Error("does not see what is there")
	}
	if l.wait(fd) {
		t.Error("looks out twice for one request")
	}

	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if waits(true) {
		t.Error("sees what is not there")
	}
	if _, err := w.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	for i := range lookoutPause {
		if waits(true) {
			t.Errorf("looks out %d requests after one in vain", i+1)
		}
	}
	if !waits(true) {
		t.Error("never looks out again")
	}
	if n := all.n.Load(); n != 0 {
		t.Errorf("%d look out when all are back", n)
	}
}
