package volume_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"torus/cluster"
	"torus/ring"
	"torus/store"
	"torus/store/memstore"
)

type memSeen = memstore.Seen

const simVolume = "vol1"

// conditions are what may happen in one run. Each seed draws its own: a run in
// which everything goes wrong gets nowhere.
type conditions struct {
	nodes, copies int
	minCopies     int
	slow          bool // messages take long, and overtake each other
	twice         bool // and come twice
	loss          bool // or not at all
	partitions    bool
	longCuts      bool // that outlast what a copy has to answer
	oneWay        bool // partitions of requests or of answers
	records       bool // the records are away for a while, or outcomes unknown
	kills         bool // of exporters
	pauses        bool // of exporters
	force         bool
	lulls         bool // nobody asks an exporter that was replaced
	nodeKills     bool
	powerCuts     bool
	blackouts     bool // power cuts of all nodes
	absences      bool // nodes are down for so long that their copies are recorded stale
	swaps         bool // and come back with empty disks
	stops         bool // nodes say before that they stop
	disks         bool // requests fail
	full          bool // disks refuse writes
	corrupt       bool // pages of node 1 rot
	rings         bool // nodes are drained, and the volume moves
	syncBytes     int64
	syncEvery     time.Duration
}

func drawConditions(r *rand.Rand) conditions {
	yes := func() bool { return r.IntN(2) == 0 }
	few := func() bool { return r.IntN(4) == 0 }
	c := conditions{
		nodes: 2 + r.IntN(3), copies: 2,
		slow: yes(), twice: yes(), loss: few(), partitions: few(), records: few(), kills: yes(), pauses: yes(), force: yes(),
		nodeKills: few(), powerCuts: few(), blackouts: few(), disks: few(), full: few(),
		syncBytes: []int64{8 << 10, 64 << 10, 1 << 20}[r.IntN(3)],
		syncEvery: []time.Duration{20 * time.Millisecond, time.Second, 5 * time.Second}[r.IntN(3)],
	}
	if c.nodes >= 3 && yes() {
		c.copies = 3
	}
	c.minCopies = 1 + r.IntN(c.copies)
	c.longCuts, c.oneWay = c.partitions && yes(), c.partitions && yes()
	c.absences, c.stops = yes(), few()
	// Without a commit that comes late and says of the old disk that it is in sync.
	c.swaps = few() && !c.records && !c.pauses
	return c
}

// A world is one run of the simulation.
type world struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand // the director's
	start   time.Time
	closely bool // one seed alone is run
	with    conditions
	kv      *cluster.Memory
	cluster *cluster.Cluster // past all that befalls those who reach it through simKV
	nodes   []*simNode
	model   *model

	volume    cluster.Volume
	exporters []*exporter
	running   sync.WaitGroup // all goroutines

	peace chan struct{} // closed when nothing goes wrong any more
	over  chan struct{} // and when the run has ended

	drained map[*simNode]bool // the director's

	ringsMu sync.Mutex
	rings   map[uint64]cluster.Ring // those read before

	mu          sync.Mutex // guards all below, the exporters and the sessions
	pids        int
	swaps       int
	killed      map[int]bool
	quiet       bool // peace is closed
	away        time.Duration
	cuts        map[cutLink]simCut
	served      store.Epoch // the highest that serves, or did
	done, erred int
	changes     uint64
	serving     int // sessions that came to serve
	stays       int // how often there was nothing to be done about the ring, since something was

	noting    sync.Mutex // guards what follows; taken last
	history   []string
	happened  map[string]int
	violation string
}

// cutLink is a way that is cut.
type cutLink struct {
	proc *process
	node *simNode
}

// simCut is until when nothing gets there, and no answer back.
type simCut struct{ there, back time.Duration }

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x51)), start: time.Now(), closely: os.Getenv("TORUS_SIM_SEED") != "",
		peace: make(chan struct{}), over: make(chan struct{}), drained: map[*simNode]bool{}, rings: map[uint64]cluster.Ring{}, killed: map[int]bool{}, cuts: map[cutLink]simCut{}, happened: map[string]int{}}
	w.with = drawConditions(w.rng)
	// Corrupt is only one node's, and never the only copy that kept its power: what is lost
	// then may be lost.
	w.with.lulls = seed%2 == 0
	w.with.corrupt = seed%3 == 0 && !w.with.powerCuts && !w.with.blackouts
	w.with.rings = seed%3 == 1 && w.with.nodes > w.with.copies
	w.model = newModel(w)
	w.kv = cluster.NewMemory(w.now)
	for i := range w.with.nodes {
		w.nodes = append(w.nodes, newSimNode(w, ring.NodeID(i+1)))
	}
	w.found()
	for i := range 2 {
		x := &exporter{w: w, index: i}
		x.restart()
		w.exporters = append(w.exporters, x)
	}
	return w
}

// found makes the cluster and the volume.
func (w *world) found() {
	ctx := w.t.Context()
	c, err := cluster.Found(ctx, w.kv, cluster.Founding{Replicas: w.with.copies},
		cluster.Options{Now: w.now, Random: byteReader{rand.New(rand.NewPCG(w.seed, 0x1d))}})
	for _, n := range w.nodes {
		if err == nil {
			name := n.name()
			err = c.RegisterNode(ctx, cluster.Node{ID: n.id, Name: name, Host: name, Roles: []cluster.Role{cluster.RoleStorage},
				Addresses: cluster.Addresses{API: "10.0.0.1:7480"}, Capacity: 1 << 40, Identity: n.disk.identity})
		}
	}
	if err == nil {
		w.volume, err = c.CreateVolume(ctx, cluster.VolumeSpec{Name: simVolume, Size: simSize, Replicas: w.with.copies, MinCopies: w.with.minCopies})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.cluster = c
}

func simHead(w *world) store.LayerID { return w.volume.Head }

// now is the time since the run began.
func (w *world) now() time.Duration { return time.Since(w.start) }

// copies returns the nodes that have a page.
func (w *world) copies(page int64) []*simNode {
	chunk := int(page / store.PagesPerChunk)
	var found []*simNode
	if w.with.rings {
		for _, id := range w.nodesOf(w.placing().ring, int64(chunk)) {
			found = append(found, w.node(id))
		}
		return found
	}
	for k := range w.with.copies {
		found = append(found, w.nodes[(chunk+k)%len(w.nodes)])
	}
	return found
}

// placeFor is the placement as one exporter sees it: each has another nearest copy.
func (w *world) placeFor(exporter int) func(ring.ChunkIndex) []ring.NodeID {
	var places [3][]ring.NodeID
	for chunk := range places {
		copies := w.copies(int64(chunk) * store.PagesPerChunk)
		for k := range copies {
			places[chunk] = append(places[chunk], copies[(exporter+k)%len(copies)].id)
		}
	}
	return func(c ring.ChunkIndex) []ring.NodeID { return places[c] }
}

func (w *world) locked(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

func (w *world) healed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.quiet
}

func (w *world) recordsAway() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now() < w.away
}

// cut reports whether nothing gets from a process to a node, or back.
func (w *world) cut(p *process, n *simNode) (there, back bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.cuts[cutLink{p, n}]
	return !w.quiet && w.now() < c.there, !w.quiet && w.now() < c.back
}

// serves learns that an epoch serves, servedBy asks whether a later one than e does or did.
func (w *world) serves(e store.Epoch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.served = max(w.served, e)
	w.serving++
}

func (w *world) servedBy(e store.Epoch) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.served > e
}

// provenDead knows of killed processes, as one on the same host would.
func (w *world) provenDead(h cluster.Holder) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.killed[h.PID]
}

func (w *world) answered(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.done++
	} else {
		w.erred++
	}
}

// note adds a line to the history.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf("%12.6f  ", w.now().Seconds()) + fmt.Sprintf(format, args...)
	w.noting.Lock()
	defer w.noting.Unlock()
	w.history = append(w.history, line)
}

// trace is note for every message, when one seed is looked at closely.
func (w *world) trace(format string, args ...any) {
	if w.closely {
		w.note(format, args...)
	}
}

// fail records a violation; the first one counts.
func (w *world) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.note("VIOLATION: %s", text)
	w.noting.Lock()
	defer w.noting.Unlock()
	if w.violation == "" {
		w.violation = text
	}
}

func (w *world) failed() bool {
	w.noting.Lock()
	defer w.noting.Unlock()
	return w.violation != ""
}

// report is what a failing run leaves.
func (w *world) report() string {
	lines := 120
	if w.closely {
		lines = 2000
	}
	w.noting.Lock()
	defer w.noting.Unlock()
	shown := w.history
	for i, line := range shown { // up to a little after the first violation
		if strings.Contains(line, "VIOLATION") {
			shown = shown[:min(len(shown), i+5)]
			break
		}
	}
	cut := max(0, len(shown)-lines)
	return fmt.Sprintf("seed %d: %s\nrepeat it with: TORUS_SIM_SEED=%d go test ./volume -run 'TestSimulation$'\n%+v\nthe history (seconds; %d earlier lines left out):\n%s",
		w.seed, w.violation, w.seed, w.with, cut, strings.Join(shown[cut:], "\n"))
}
