package volume

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"torus/store"
)

// maxBad bounds the pages that wait to be rewritten. One more is found again by
// whoever reads it next.
const maxBad = 1024

// A healer rewrites pages that one copy has lost to its disk with what the others
// have, one after the other, beside the requests.
type healer struct {
	mu      sync.Mutex // guards what follows
	bad     []badPage
	running bool
}

// badPage is a page of one layer that a node can't be believed about.
type badPage struct {
	node  *node
	layer store.LayerID
	off   int64
}

// corrupt has the page that err names rewritten on n, which answered that it is
// corrupt there. It is called by requests and tenders, as nothing may begin to heal
// when Close waits for them.
func (v *Volume) corrupt(n *node, err error) {
	var of *store.CorruptError
	if errors.As(err, &of) {
		v.heal(badPage{n, of.Layer, of.Off})
	}
}

// heal has a page rewritten.
func (v *Volume) heal(b badPage) {
	h := &v.healer
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.bad) == maxBad || slices.Contains(h.bad, b) {
		return
	}
	h.bad = append(h.bad, b)
	if !h.running {
		h.running = true
		v.tenders.Go(v.healAll)
	}
}

// healAll rewrites what waits.
func (v *Volume) healAll() {
	h := &v.healer
	for {
		h.mu.Lock()
		if len(h.bad) == 0 || v.ctx.Err() != nil {
			h.running = false
			h.mu.Unlock()
			return
		}
		b := h.bad[0]
		h.mu.Unlock()
		if err := v.healPage(b); err != nil {
			v.log.Warn("page not rewritten", "volume", v.id, "node", b.node.name, "layer", b.layer, "off", b.off, "err", err)
		}
		h.mu.Lock()
		h.bad = slices.Delete(h.bad, 0, 1)
		h.mu.Unlock()
	}
}

// healPage makes a page of a copy in sync equal to the highest version that the
// others have sound. What it brings is acknowledged, as what a read shows is; a
// write that comes meanwhile has a higher version of the present epoch, which Adopt
// leaves alone. A copy that is not in sync is left to its resync, and to the next
// reader.
func (v *Volume) healPage(b badPage) error {
	if err := v.enter(); err != nil { // Close makes durable what is brought
		return err
	}
	defer v.gate.leave()
	for {
		gen := v.copies.gen.Load()
		w := b.node.view.Load()
		if w.state != inSync {
			return nil
		}
		// From here on no hole may be forgotten: one that is written while the others
		// are read must be there when what they had is brought. See tell.
		v.adopted.Store(true)
		e, p, err := v.highestElsewhere(b)
		if err != nil {
			return err
		}
		v.flight.await(b.off, b.off+store.PageSize, v.flight.given())
		if err := v.stopped(); err != nil {
			return err
		}
		if v.copies.gen.Load() != gen {
			continue // what was read may have been refused since
		}
		if err := w.at.replica.Adopt(w.at.ctx, b.layer, e, p); err != nil {
			if !errors.Is(err, store.ErrNoSpace) {
				v.failed(b.node, w, err)
			}
			return err
		}
		w.at.dirty.answered.Add(1)
		v.flush.answered.Add(1)
		v.counts.healed.Add(1)
		v.log.Warn("page rewritten from another copy", "volume", v.id, "node", b.node.name, "layer", b.layer, "off", b.off, "version", e.Version)
		return v.written(&change{n: store.PageSize})
	}
}

// highestElsewhere reads a page from all other copies of the ring in sync and returns
// the highest version that is sound.
func (v *Volume) highestElsewhere(b badPage) (e store.Extent, p []byte, err error) {
	_, copies, err := v.place.writeRun(b.off, b.off+store.PageSize)
	if err != nil {
		return e, nil, err
	}
	err = errNoPeer
	for _, id := range copies {
		n := v.place.node(id)
		w := n.view.Load()
		if n == b.node || n.target || w.state != inSync {
			continue
		}
		page, info := alignedPages(1), make([]store.PageInfo, 1)
		switch failed := v.readLayer(n, w, b.layer, b.off, page, info); {
		case errors.Is(failed, store.ErrCorrupt):
			if p == nil && err != nil {
				err = fmt.Errorf("no sound copy of a page: %w", failed)
			}
			continue
		case failed != nil:
			return e, nil, failed
		}
		if err != nil || info[0].Version > e.Version {
			e = store.Extent{Off: b.off, N: store.PageSize, Kind: info[0].Kind, Version: info[0].Version}
			if p = nil; e.Kind == store.Data {
				p = page
			}
			err = nil
		}
	}
	return e, p, err
}

// readLayer reads pages of one layer from one copy. Any error but a corrupt page is
// reported.
func (v *Volume) readLayer(n *node, w *view, layer store.LayerID, off int64, p []byte, info []store.PageInfo) error {
	err := w.at.replica.Read(w.at.ctx, []store.LayerID{layer}, off, p, info)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		v.failed(n, w, err)
	}
	return err
}
