package volume_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"torus/cluster"
	"torus/ring"
	"torus/store"
	"torus/volume"
)

// Changes of the ring (PROTOCOL.md): nodes are drained and taken back, and get other
// weights; one process asks for the steps that follow, nodes drop what is not theirs,
// and exporters attach anew, late, by what the records say then. In these runs chunks
// lie where the cluster's rings say; in others as copies has it.

// placing is by which rings the volume lies, and the last epoch of an attachment; the
// target's number is 0 if there is none.
type placing struct {
	ring, target cluster.Ring
	epoch        store.Epoch
}

func (p placing) String() string {
	return fmt.Sprintf("ring %d, target %d", p.ring.Number, p.target.Number)
}

// same reports whether two are of the same rings.
func (p placing) same(o placing) bool {
	return p.ring.Number == o.ring.Number && p.target.Number == o.target.Number
}

const lineageKeys = "/torus/lineages/"

// placing reads the records.
func (w *world) placing() placing {
	pairs := w.pairs(lineageKeys)
	var l struct {
		Ring, Target string
		Epoch        store.Epoch
	}
	if len(pairs) != 1 || json.Unmarshal(pairs[0].Value, &l) != nil {
		w.fail("no lineage can be read: %v", pairs)
	}
	return placing{w.ringOf(l.Ring), w.ringOf(l.Target), l.Epoch}
}

// ringOf returns a ring by its number as records have it.
func (w *world) ringOf(hex string) cluster.Ring {
	number, _ := strconv.ParseUint(hex, 16, 64) // "": none
	w.ringsMu.Lock()
	defer w.ringsMu.Unlock()
	if r, known := w.rings[number]; known || number == 0 {
		return r
	}
	all, err := w.cluster.Rings(context.Background())
	if err != nil {
		w.fail("rings: %v", err)
	}
	for _, r := range all {
		w.rings[r.Number] = r
	}
	return w.rings[number]
}

// nodesOf returns the nodes that a ring gives a chunk, none without a ring.
func (w *world) nodesOf(r cluster.Ring, chunk int64) []ring.NodeID {
	if r.Number == 0 {
		return nil
	}
	return r.Nodes(w.volume.Lineage, ring.ChunkIndex(chunk))
}

// gained returns the nodes that only the target gives a chunk.
func (w *world) gained(p placing, chunk int64) (ids []ring.NodeID) {
	have := w.nodesOf(p.ring, chunk)
	for _, id := range w.nodesOf(p.target, chunk) {
		if !slices.Contains(have, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// node returns a node by its ID.
func (w *world) node(id ring.NodeID) *simNode { return w.nodes[id-1] }

// copyOf is the ID by which a volume knows a node's copy, of the target ring or not.
func copyOf(node ring.NodeID, target uint64) ring.NodeID {
	if target != 0 {
		return ^node
	}
	return node
}

// roleOf is copyOf the other way round, for an attachment.
func (s *session) roleOf(id ring.NodeID) (node ring.NodeID, target uint64) {
	if id>>63 != 0 {
		return ^id, s.att.Target.Number
	}
	return id, 0
}

// place says in o where the volume lies by an attachment's rings: all nodes that gain
// anything are to be caught up with, also with none of the three chunks.
func (s *session) place(o *volume.Options) {
	w, p := s.x.w, placing{ring: s.att.Ring, target: s.att.Target}
	o.Nodes, o.Targets = p.ring.IDs(), map[ring.NodeID]ring.NodeID{}
	if p.target.Number != 0 {
		for part := range ring.Partitions {
			for _, id := range p.target.Partition(part) {
				if !slices.Contains(p.ring.Partition(part), id) {
					o.Targets[^id] = id
				}
			}
		}
	}
	for _, n := range w.nodes {
		if o.Targets[^n.id] != 0 {
			o.Nodes, o.Stores[^n.id] = append(o.Nodes, ^n.id), &link{s.proc, n}
		}
	}
	var places [simSize / store.ChunkSize][]ring.NodeID
	for chunk := range places {
		have := w.nodesOf(p.ring, int64(chunk))
		for k := range have {
			places[chunk] = append(places[chunk], have[(s.x.index+k)%len(have)])
		}
		for _, id := range w.gained(p, int64(chunk)) {
			places[chunk] = append(places[chunk], ^id)
		}
	}
	o.Place = func(c ring.ChunkIndex) []ring.NodeID { return places[c] }
}

// MayJoin implements volume.Records.
func (r simRecords) MayJoin(ctx context.Context, id ring.NodeID) (bool, error) {
	c, err := r.records(ctx)
	if err != nil {
		return false, err
	}
	all, err := c.StaleCopies(ctx)
	node, target := r.roleOf(id)
	return err == nil && !slices.ContainsFunc(all, func(s cluster.Stale) bool {
		return s.Node == node && s.Target == target && s.Fresh
	}), err
}

// changeRings runs what changes rings, until the run is over.
func (w *world) changeRings() {
	w.running.Go(w.advance)
	for _, n := range w.nodes {
		w.running.Go(func() { w.tidy(n) })
	}
}

// often does something now and then until the run is over, as a process that is not an
// exporter.
func (w *world) often(name string, do func(ctx context.Context, c *cluster.Cluster) error) {
	p := newProcess(w, name, 0)
	for {
		select {
		case <-w.over:
			return
		case <-time.After(100*time.Millisecond + time.Duration(p.draws("pause").Int64N(int64(time.Second)))):
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		c, err := cluster.Open(ctx, simKV{w.kv, p}, "", cluster.Options{
			Now: w.now, Wall: time.Now, Random: byteReader{p.draws("random")}, Lease: leaseTime,
		})
		if err == nil {
			err = do(ctx, c)
		}
		if err != nil && !errors.Is(err, cluster.ErrBusy) {
			w.trace("%s: %v", name, err)
		}
		cancel()
	}
}

// advance asks for the next step of a change, and has exporters attach anew.
func (w *world) advance() {
	w.often("changer", func(ctx context.Context, c *cluster.Cluster) error {
		step, err := c.AdvanceRing(ctx, w.volume.Lineage)
		stays := err == nil && step == cluster.RingStays
		if err == nil && !stays {
			w.happens("ring: " + string(step))
			w.note("ring: %s: %v", step, w.placing())
		}
		w.locked(func() {
			if w.stays++; !stays {
				w.stays = 0
			}
		})
		w.reload()
		return err
	})
}

// reload has sessions end that place by other rings than the records say: some time
// later, as nodes hear of it late.
func (w *world) reload() {
	now := w.placing()
	w.locked(func() {
		for _, x := range w.exporters {
			s := x.cur
			if s == nil || !s.serving || s.reloads || now.same(placing{ring: s.att.Ring, target: s.att.Target}) {
				continue
			}
			s.reloads = true
			late := time.Duration(s.proc.draws("reload").Int64N(int64(12 * time.Second)))
			w.later(late, func() {
				w.happens("ring: exporter attaches anew")
				s.end()
			})
		}
	})
}

// turn changes which nodes the volume is to lie on. Only the director does.
func (w *world) turn() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if w.rng.IntN(4) == 0 {
		weight := []float64{0.25, 1, 4}[w.rng.IntN(3)]
		w.note("node %d: weight %v", n.id, weight)
		if err := w.cluster.SetNode(w.t.Context(), n.name(), cluster.NodeChange{Weight: &weight}); err != nil {
			w.fail("weight of node %d: %v", n.id, err)
		}
		return
	}
	for !w.drained[n] && len(w.nodes)-len(w.drained) == w.with.copies {
		n = w.nodes[w.rng.IntN(len(w.nodes))]
	}
	do, what := w.cluster.DrainNode, "drained"
	if w.drained[n] {
		do, what = w.cluster.UndrainNode, "taken back"
	}
	w.happens("ring: node " + what)
	w.note("node %d: %s", n.id, what)
	if err := do(w.t.Context(), n.name()); err != nil {
		w.fail("node %d is not %s: %v", n.id, what, err)
	}
	if w.drained[n] {
		delete(w.drained, n)
	} else {
		w.drained[n] = true
	}
}

// tidy is what a node's process does about chunks that are not its own. One goroutine
// for both kinds, each by records read anew: so nothing that was dropped can have come
// back meanwhile.
func (w *world) tidy(n *simNode) {
	w.often(n.name(), func(ctx context.Context, c *cluster.Cluster) error {
		fresh, err := c.FreshCopies(ctx, n.id)
		if err != nil {
			return err
		}
		for _, f := range fresh {
			p := placing{ring: f.Ring, target: f.Of}
			if err := n.drop(f.Layer, func(chunk int64) bool { return slices.Contains(w.gained(p, chunk), n.id) }); err != nil {
				return err
			}
			if err := c.Dropped(ctx, f.StaleKey); err != nil {
				return err
			}
			w.happens("ring: dropped for a target")
		}
		return w.dropLeftovers(ctx, c, n)
	})
}

// dropLeftovers drops what neither ring nor target give a node.
func (w *world) dropLeftovers(ctx context.Context, c *cluster.Cluster, n *simNode) error {
	left, err := c.Leftovers(ctx)
	if err != nil {
		return err
	}
	for _, l := range left {
		p := placing{ring: l.Ring, target: l.Target}
		others := func(chunk int64) bool {
			return !slices.Contains(w.nodesOf(p.ring, chunk), n.id) && !slices.Contains(w.nodesOf(p.target, chunk), n.id)
		}
		for _, v := range l.Volumes {
			if v.Epoch == 0 {
				continue
			}
			attach := func(s store.Store) (any, error) { return n.attach(s, v.ID, v.Epoch) }
			if r := n.serve(message{op: "attach", ask: attach}); r.err != nil {
				return r.err
			}
		}
		for _, layer := range l.Layers {
			if err := n.drop(layer, others); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop drops some chunks of a layer.
func (n *simNode) drop(layer store.LayerID, which func(chunk int64) bool) error {
	for chunk := range int64(simSize / store.ChunkSize) {
		if !which(chunk) {
			continue
		}
		r := n.serve(message{op: "drop", ask: func(s store.Store) (any, error) {
			return nil, s.Drop(context.Background(), layer, store.Chunks{First: uint32(chunk), End: uint32(chunk + 1)})
		}})
		if r.err != nil {
			return r.err
		}
	}
	return nil
}

func (n *simNode) name() string { return fmt.Sprintf("n%d", n.id) }

// settleRings waits in peace until the volume lies where it is to.
func (w *world) settleRings() bool {
	w.locked(func() { w.stays = 0 })
	return w.await("the ring to settle", 10*time.Minute, func() bool {
		if x := w.exporters[0]; x.cur == nil {
			x.attach(true)
		}
		return w.stays > 1
	})
}

// currentTargets returns the copies of a page that only the target gives, and that are
// recorded to have all.
func (w *world) currentTargets(page int64) (found []*simNode) {
	if !w.with.rings {
		return nil
	}
	p, stale, recorded := w.placing(), w.pairs(staleKeys), w.pairs(incarnationKeys)
	for _, id := range w.gained(p, page/store.PagesPerChunk) {
		about := func(pair cluster.Pair) bool {
			node, target := copyIn(pair.Key)
			return node == id && target == p.target.Number
		}
		if i := slices.IndexFunc(recorded, about); i >= 0 && !slices.ContainsFunc(stale, about) && w.isDisk(recorded[i], w.node(id)) {
			found = append(found, w.node(id))
		}
	}
	return found
}

// joinsTarget is joins for what only the target gives a node.
func (m *model) joinsTarget(n *simNode) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range simPages {
		if slices.Contains(m.w.currentTargets(i), n) {
			m.hasAll(n, m.pages[i])
		}
	}
}

// placed learns that the lineage's record was written. A ring that follows has all that
// was acknowledged, on each of its copies that is recorded to.
func (m *model) placed() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.w.placing()
	was := m.lies
	m.lies = now
	if now.target.Number != 0 && now.target.Number == was.target.Number {
		m.lies.epoch = was.epoch // when the target was set
	}
	if was.ring.Number != 0 && was.ring.Number != now.ring.Number {
		for _, i := range simPages {
			pm := m.pages[i]
			if n := len(m.w.current(i)); n != m.w.with.copies {
				m.w.fail("page %d has %d copies in sync by its new ring, of %d", i, n, m.w.with.copies)
			}
			if s := pm.versions[pm.least]; s != nil {
				m.onCopies(pm, pm.least, s.at, false, "I4: the ring is another")
			}
			m.onCopies(pm, pm.durable, 0, true, "I3: the ring is another")
		}
	}
}

// changes reports whether an epoch serves, or did, by a ring and a target. Under mu.
func (m *model) changes(e store.Epoch) bool {
	return m.lies.target.Number != 0 && e > m.lies.epoch
}
