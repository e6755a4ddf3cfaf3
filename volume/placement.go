package volume

import (
	"fmt"
	"slices"

	"torus/ring"
	"torus/store"
)

// placement finds the copies of a chunk: those of the ring, nearest first, then
// those of the target.
type placement struct {
	nodes     []*node // by ID
	byID      map[ring.NodeID]*node
	place     func(ring.ChunkIndex) []ring.NodeID
	minCopies int
	only      []ring.NodeID // the one node, if there is one only
}

// init sets up the placement over the attached nodes and tries it on every chunk
// that may differ from those before. It returns the sets of copies that chunks
// have, each once.
func (p *placement) init(o Options, nodes []*node) (sets [][]ring.NodeID, err error) {
	p.nodes, p.place, p.minCopies = nodes, o.Place, o.MinCopies
	p.byID = make(map[ring.NodeID]*node, len(nodes))
	for _, n := range nodes {
		p.byID[n.id] = n
	}
	if len(nodes) == 1 {
		p.only = []ring.NodeID{nodes[0].id}
		return [][]ring.NodeID{p.only}, nil
	}
	chunks := ring.ChunkIndex((o.Size + store.ChunkSize - 1) / store.ChunkSize)
	if o.Period > 0 {
		chunks = min(chunks, o.Period)
	}
	known := make(map[string]bool)
	for c := range chunks {
		ids, err := p.copies(c)
		if err != nil {
			return nil, err
		}
		if id, twice := repeated(ids); twice {
			return nil, fmt.Errorf("%w: chunk %v is placed on node %v twice", store.ErrInvalid, c, id)
		}
		if err := p.ringFirst(c, ids); err != nil {
			return nil, err
		}
		set := slices.Sorted(slices.Values(ids))
		if key := fmt.Sprint(set); !known[key] {
			known[key] = true
			sets = append(sets, set)
		}
	}
	return sets, nil
}

// ringFirst checks that enough copies of a chunk are of the ring, and that the others
// stand behind them.
func (p *placement) ringFirst(c ring.ChunkIndex, ids []ring.NodeID) error {
	target := func(id ring.NodeID) bool { return p.byID[id].target }
	first := slices.IndexFunc(ids, target)
	switch {
	case first < 0:
		return nil
	case first < p.minCopies:
		return fmt.Errorf("%w: chunk %v is placed on %d nodes by its ring, fewer than min-copies %d",
			store.ErrInvalid, c, first, p.minCopies)
	case slices.ContainsFunc(ids[first:], func(id ring.NodeID) bool { return !target(id) }):
		return fmt.Errorf("%w: chunk %v has copies of the target among %v before one of the ring", store.ErrInvalid, c, ids)
	}
	return nil
}

// repeated returns an ID that is among ids twice, and whether there is one.
func repeated(ids []ring.NodeID) (ring.NodeID, bool) {
	for i, id := range ids {
		if slices.Contains(ids[:i], id) {
			return id, true
		}
	}
	return 0, false
}

// node returns the node of an ID that copies returned.
func (p *placement) node(id ring.NodeID) *node {
	if p.only != nil {
		return p.nodes[0]
	}
	return p.byID[id]
}

// copies returns the copies of a chunk, as Options.Place does, all of them known.
func (p *placement) copies(c ring.ChunkIndex) ([]ring.NodeID, error) {
	if p.only != nil {
		return p.only, nil
	}
	ids := p.place(c)
	if len(ids) < p.minCopies {
		return nil, fmt.Errorf("%w: chunk %v is placed on %d nodes, fewer than min-copies %d",
			store.ErrInvalid, c, len(ids), p.minCopies)
	}
	for _, id := range ids {
		if p.byID[id] == nil {
			return nil, fmt.Errorf("%w: chunk %v is placed on node %v, which has no store", store.ErrInvalid, c, id)
		}
	}
	return ids, nil
}

// readRun returns the copies of the chunk at off, and up to where, at most end,
// the chunks that follow have the same, nearest first: what one request to the
// first of them can cover.
func (p *placement) readRun(off, end int64) (stop int64, copies []ring.NodeID, err error) {
	return p.run(off, end, slices.Equal[[]ring.NodeID])
}

// writeRun is readRun in whatever order: what one request to each can cover.
func (p *placement) writeRun(off, end int64) (stop int64, copies []ring.NodeID, err error) {
	return p.run(off, end, sameNodes)
}

func (p *placement) run(off, end int64, same func(a, b []ring.NodeID) bool) (int64, []ring.NodeID, error) {
	if p.only != nil {
		return end, p.only, nil
	}
	chunk := off / store.ChunkSize
	copies, err := p.copies(ring.ChunkIndex(chunk))
	if err != nil {
		return off, nil, err
	}
	for chunk++; chunk*store.ChunkSize < end; chunk++ {
		if !same(copies, p.place(ring.ChunkIndex(chunk))) {
			return chunk * store.ChunkSize, copies, nil
		}
	}
	return end, copies, nil
}

// sameNodes reports whether a and b, each without repetition, name the same nodes.
func sameNodes(a, b []ring.NodeID) bool {
	if len(a) != len(b) {
		return false
	}
	for _, id := range a {
		if !slices.Contains(b, id) {
			return false
		}
	}
	return true
}
