package node

import "sync"

// holding are the volumes that this process has attached, for whatever purpose.
type holding struct {
	mu  sync.Mutex
	all map[*attached]bool
}

func (h *holding) add(a *attached) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[*attached]bool{}
	}
	h.all[a] = true
}

func (h *holding) remove(a *attached) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.all, a)
}

// each calls f for every volume. f may not add or remove one.
func (h *holding) each(f func(a *attached)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for a := range h.all {
		f(a)
	}
}
