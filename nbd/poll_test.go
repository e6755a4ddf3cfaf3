package nbd

import (
	"testing"
	"testing/synctest"
	"time"
)

// A reader polls for a client that sends again at once, and not for one that
// turned out slower, until some requests later.
func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p poll
		p.begin(false)
		if p.again() {
			t.Error("polls where nothing is expected soon")
		}
		p.begin(true)
		for range 3 {
			if !p.again() {
				t.Error("sleeps though no time has passed")
			}
		}
		time.Sleep(pollFor + 1)
		if p.again() {
			t.Error("polls for longer than pollFor")
		}
		for i := range pollPause {
			if p.begin(true); p.again() {
				t.Errorf("polls %d waits after one in vain", i+1)
			}
		}
		if p.begin(true); !p.again() {
			t.Error("never polls again")
		}
	})
}
