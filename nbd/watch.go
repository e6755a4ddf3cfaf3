package nbd

import (
	"sync/atomic"
	"time"
)

// A watch looks after readers that serve requests themselves (conn.turn): one
// that has not come back after two looks loses the reading to another. It
// sleeps while there are none.
type watch struct {
	awake atomic.Bool
	wake  chan struct{} // capacity 1
}

const (
	watchEvery = 2 * time.Millisecond
	watchQuiet = 25 // looks without a serving reader before it sleeps
)

func newWatch() *watch { return &watch{wake: make(chan struct{}, 1)} }

// alert says that a reader is serving. The turn must be odd already: then
// either this sees the watch asleep, or its last look sees the turn.
func (w *watch) alert() {
	if w.awake.Load() {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run is the watch, until done is closed. look visits all connections and
// tells whether any reader serves.
func (w *watch) run(done <-chan struct{}, look func() bool) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		t.Stop()
		select {
		case <-done:
			return
		case <-w.wake:
		}
		w.awake.Store(true)
		t.Reset(watchEvery)
		for quiet := 0; quiet < watchQuiet; quiet++ {
			select {
			case <-done:
				return
			case <-t.C:
			}
			if quiet == watchQuiet-1 {
				w.awake.Store(false)
			}
			if look() {
				quiet = 0
				w.awake.Store(true)
			}
		}
	}
}
