// Package node is one running Torus process. It starts the roles that the node
// was set up with, from the bottom up, and stops them in reverse: the embedded
// etcd with the cluster's records, the page store, the exporter that attaches
// volumes when NBD clients open them, and the API. It says that the node lives,
// and drops what the records say is deleted (I8).
//
// How pages are kept, records changed, volumes replicated and clients spoken to
// is left to store/segment, cluster, volume and nbd; here they are only wired.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"torus/cluster"
	"torus/nbd"
	"torus/store"
	"torus/store/remote"
	"torus/store/segment"
	"torus/volume"
)

// Options say which node to run.
type Options struct {
	Dir string // the data directory; made if it is not there
	// Settings is how the node is to be run: from Load, or New for a directory
	// that has none. They are kept in the directory.
	Settings Settings
	// Version is of this program, for the API.
	Version string
	// Starting is told, in passing, what is being started; it may be nil.
	Starting func(part string)
	Logger   *slog.Logger // nil discards
}

// Node is a running node.
type Node struct {
	dir      string
	settings Settings
	version  string
	log      *slog.Logger
	starting func(part string)
	process  cluster.Process
	since    time.Time

	recovered bool // it follows another recovery of the records from now on

	member    *cluster.Server // as it was started; the seat's from then on
	seat      *cluster.Seat   // nil without the role etcd
	records   *cluster.Client // reaches etcd, here or elsewhere
	cluster   *cluster.Cluster
	store     store.Store    // nil without the role storage
	blocks    *remote.Server // serves it to other nodes
	peers     *peers         // the stores of other nodes
	pace      *volume.Pace   // of all volumes
	exports   *exports       // nil without the role nbd
	nbd       *nbd.Server    // nil when nothing is exported
	scrubs    *scrubs
	readOnly  bool    // volumes are attached for reading only
	holding   holding // all that is attached, also for repair
	repairs   *repairs
	reloading atomic.Int32    // volumes that are attached anew, and have requests wait
	force     map[string]bool // volumes still to be taken from whoever holds them; guarded by forcing
	forcing   sync.Mutex

	nextSnapshot time.Time // when the records are to be saved again; the keeper's own

	apiListener    net.Listener
	blocksListener net.Listener // nil without the role storage
	nbdListeners   []net.Listener

	repairRate atomic.Int64 // bytes/s; 0: no bound

	asking sync.Once
	asked  chan struct{} // closed when an operator asks for this node to be stopped

	closers []closer // in the order of starting
	closing sync.Once
	err     error // of closing

	failing sync.Once
	failed  chan struct{} // closed by fail
	cause   error         // set before failed is closed
}

// A closer stops one part that was started.
type closer struct {
	part  string
	close func() error
}

// Start runs a node; it returns when the node serves. What was started is
// stopped again if it fails. ErrLocked if another process runs it.
func Start(ctx context.Context, o Options) (*Node, error) {
	n := newNode(o)
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func newNode(o Options) *Node {
	n := &Node{dir: o.Dir, settings: o.Settings, version: o.Version, log: o.Logger, scrubs: newScrubs(), repairs: newRepairs(), failed: make(chan struct{}), asked: make(chan struct{}), since: time.Now(), starting: o.Starting}
	if n.starting == nil {
		n.starting = func(string) {}
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	return n
}

// start starts the parts, each on what was started before it.
func (n *Node) start(ctx context.Context) (err error) {
	if err := n.settings.Check(); err != nil {
		return err
	}
	if n.process, err = cluster.ThisProcess(); err != nil {
		return err
	}
	lock, err := lockDir(n.dir)
	if err != nil {
		return err
	}
	n.started("lock", lock.release)
	if err := n.decide(); err != nil {
		return err
	}
	// Listening comes first: a port in use is found before anything is written,
	// and clients that come early wait instead of being refused.
	if err := n.listen(); err != nil {
		return err
	}
	if !n.settings.Founded || n.recovered { // who the node is, before anything depends on it
		if err := n.settings.save(n.dir); err != nil {
			return err
		}
	}
	if err := n.startBoth(ctx); err != nil {
		return err
	}
	n.startSeat()
	n.startBlocks() // before others are told where
	if err := n.register(ctx); err != nil {
		return err
	}
	n.startHandover()
	n.startMembership()
	n.startSnapshots()
	n.startDrops()
	n.startPeers()
	n.startScrubs()
	n.startLimits()
	n.startLettingGo()
	n.startRepairs()
	n.startRings()
	n.startLeftovers()
	if err := n.startNBD(nil); err != nil {
		return err
	}
	n.startAPI()
	n.startStopWatch()
	return n.keepSettings()
}

// keepSettings writes the settings down if they changed: only now, when the node
// has been seen to run with them. A node whose disk is full can be started.
func (n *Node) keepSettings() error {
	if have, err := Load(n.dir); err == nil && reflect.DeepEqual(have, n.settings) {
		return nil
	}
	return n.settings.save(n.dir)
}

// listen opens the listeners of API and NBD.
func (n *Node) listen() (err error) {
	n.started("listeners", n.closeListeners)
	if n.apiListener, err = n.listenAPI(); err != nil {
		return err
	}
	if n.blocksListener, err = n.listenBlocks(); err != nil {
		return err
	}
	if err := n.settings.tryEtcdPorts(); err != nil {
		return err
	}
	n.nbdListeners, err = n.listenNBD()
	return err
}

func (n *Node) closeListeners() error {
	all := n.nbdListeners
	for _, l := range []net.Listener{n.apiListener, n.blocksListener} {
		if l != nil {
			all = append(all, l)
		}
	}
	var errs []error
	for _, l := range all {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) { // their servers close them too
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// decide makes sure that the directory is this node's, or nobody's, and decides
// on the ports.
func (n *Node) decide() error {
	have, err := Load(n.dir)
	switch {
	case errors.Is(err, ErrNoNode):
	case err != nil:
		return err
	case have.ID != n.settings.ID:
		return fmt.Errorf("directory %s %w: %s, of cluster %s", n.dir, ErrFounded, have.Name, have.Cluster)
	}
	n.recovered = err == nil && have.Recovery != n.settings.Recovery
	if n.settings.Port == 0 {
		n.settings.Port, err = freePorts(n.settings.Listen)
		return err
	}
	return nil
}

// startBoth starts etcd and the store at the same time, since both read disks.
func (n *Node) startBoth(ctx context.Context) error {
	var opened store.Store
	var storeErr error
	var wg sync.WaitGroup
	if n.settings.Has(cluster.RoleStorage) {
		if err := segment.GiveWay(n.storeOptions()); err != nil { // etcd does not start on a full disk
			return err
		}
		wg.Go(func() { opened, storeErr = n.openStore(ctx) })
	}
	n.starting("etcd")
	err := n.startMember(ctx)
	n.starting("the store") // which takes long after a crash, or when its index is rebuilt
	wg.Wait()
	n.starting("the cluster's records")
	if storeErr == nil && opened != nil {
		n.store = opened
		n.started("store", opened.Close)
	}
	if err := errors.Join(err, storeErr); err != nil {
		return err
	}
	return n.openCluster(ctx)
}

func (n *Node) openStore(ctx context.Context) (store.Store, error) {
	s, err := segment.Open(ctx, n.storeOptions())
	if err != nil {
		return nil, err // not s: a nil *Store in an interface is not nil
	}
	return s, nil
}

func (n *Node) storeOptions() segment.Options {
	return segment.Options{
		Dir: StoreDir(n.dir), Capacity: n.settings.Capacity, Reserve: n.settings.Reserve,
		Logger: n.log.With("part", "store"),
	}
}

// started remembers how to stop a part.
func (n *Node) started(part string, close func() error) {
	n.closers = append(n.closers, closer{part, close})
}

// fail says that the node cannot go on.
func (n *Node) fail(cause error) {
	n.failing.Do(func() {
		n.cause = cause
		close(n.failed)
	})
}

// Failed is closed when the node cannot go on, and is to be closed; Err says why.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Err returns why the node cannot go on; nil while it can.
func (n *Node) Err() error {
	select {
	case <-n.failed:
		return n.cause
	default:
		return nil
	}
}

// Close stops everything in reverse: NBD requests under way are finished,
// volumes synced and detached clean; who uses copies of this node goes on without
// them; then the store and etcd are closed.
func (n *Node) Close() error {
	n.closing.Do(func() {
		var errs []error
		for i := len(n.closers) - 1; i >= 0; i-- {
			c := n.closers[i]
			n.log.Debug("stopping", "part", c.part)
			if err := c.close(); err != nil {
				errs = append(errs, fmt.Errorf("stop %s: %w", c.part, err))
			}
		}
		n.err = errors.Join(errs...)
		n.fail(errClosed) // ends who waits for a failure
	})
	return n.err
}

var errClosed = errors.New("node closed")

// Settings returns how the node runs, its ports decided.
func (n *Node) Settings() Settings { return n.settings }

// Cluster returns the records.
func (n *Node) Cluster() *cluster.Cluster { return n.cluster }

// API returns where others reach the node's API: HOST:PORT.
func (n *Node) API() string { return n.settings.address(0) }

// Etcd returns where the members of etcd are reached, as far as is known: HOST:PORT.
func (n *Node) Etcd() []string { return n.records.Endpoints() }

// ExportAddrs returns where NBD clients connect, in the order given.
func (n *Node) ExportAddrs() []net.Addr {
	all := make([]net.Addr, len(n.nbdListeners))
	for i, l := range n.nbdListeners {
		all[i] = l.Addr()
	}
	return all
}
