package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"torus/cluster"
	"torus/ring"
	"torus/store"
	"torus/volume"
)

// An attached is a volume that this process holds: its attachment in the
// records, and the volume opened under that. From attach to end:
//
//	cluster.Attach ─► volume.Open ─► Serving ─► served ─► volume.Close ─► Detach
//	(epoch, lease)   (one value)    (not clean)          (all durable)   (clean)
//
// where Open itself calls Serving, when all copies are equal and durable.
//
// It ends by itself when the attachment is lost or the volume has stopped;
// dev.ended is closed then, and whoever keeps it calls end, or reload before.
type attached struct {
	att *cluster.Attachment
	vol *volume.Volume
	dev *device // its ended says that this has

	copies copiesOf

	watch    context.CancelFunc // ends watching
	watching sync.WaitGroup

	once   sync.Once // of close
	closed error     // what came of it
}

// detachPatience bounds how long the records may take to hear of a detach.
const detachPatience = 10 * time.Second

// attachSoon is attach for export. Who has the volume for maintenance is asked to
// give it up, and waited for.
func (n *Node) attachSoon(ctx context.Context, name string) (*attached, error) {
	dead := func(h cluster.Holder) bool {
		return n.provenDead(h) && !(h.Process == n.process && n.repairs.has(name))
	}
	until, asked := time.Now().Add(n.cluster.Lease()+wantedAgain), false
	for {
		a, err := n.attach(ctx, name, cluster.AttachOptions{Dead: dead, Force: n.forces(name)}, nil)
		var busy *cluster.BusyError
		if !errors.As(err, &busy) || busy.Purpose != cluster.ForMaintenance || ctx.Err() != nil || time.Now().After(until) {
			return a, err
		}
		if !asked {
			v, err := n.cluster.Volume(ctx, name)
			if err == nil {
				err = n.cluster.Want(ctx, v.Volume, n.holder())
			}
			if err != nil {
				return nil, err
			}
			asked = true
		}
		pause(ctx, wantedAgain)
	}
}

// wantedAgain is how long after an attempt a volume is tried again that is
// attached for maintenance.
const wantedAgain = 100 * time.Millisecond

// holder is this process as the records name it.
func (n *Node) holder() cluster.Holder {
	return cluster.Holder{Node: n.settings.ID, Name: n.settings.Name, Process: n.process}
}

// attach takes the volume and makes it ready to serve; after another attachment by
// this process, which was, unless that is nil.
func (n *Node) attach(ctx context.Context, name string, o cluster.AttachOptions, was *former) (*attached, error) {
	var held time.Time
	for {
		att, err := n.cluster.Attach(ctx, name, n.holder(), o)
		if err != nil {
			return nil, err
		}
		o.Force = false // once, or two of them would take it from each other for ever
		if held.IsZero() && !was.next(att) {
			held = heldUntil(att, time.Now(), n.cluster.Lease())
		}
		patient, cancel := was.opening(ctx)
		opening, end := untilLost(patient, att)
		a, err := n.openAttached(opening, att, held, was)
		end()
		cancel()
		if err == nil {
			n.log.Info("volume attached", "volume", name, "epoch", att.Epoch, "clean", att.Volume.Clean)
			return a, nil
		}
		again, err := n.tryAgain(ctx, att, err)
		detached := n.detach(att, false)
		if !again || detached != nil || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("volume %s: %w", name, err), detached)
		}
		n.log.Warn("volume is attached again", "volume", name, "cause", err)
	}
}

// tryAgain says whether a volume that could not be opened is to be attached once more,
// and why it could not. Nodes may know higher epochs than records that are older than
// they. After a recovery of the records that is made good; without one, what the records
// say of copies is as old, and nobody has said that they may be compared.
func (n *Node) tryAgain(ctx context.Context, att *cluster.Attachment, err error) (bool, error) {
	var fenced *store.FencedError
	if !errors.As(err, &fenced) {
		return errors.Is(err, volume.ErrAgain), err
	}
	if att.Uncompared {
		raised := att.RaiseEpoch(ctx, fenced.Recorded)
		return raised == nil, errors.Join(err, raised)
	}
	if v, verr := n.cluster.Volume(ctx, att.Volume.Name); verr == nil && v.Epoch == att.Epoch {
		err = fmt.Errorf("%w: nobody has taken it since by the records, so these are older than the nodes' data: if etcd was restored "+
			"from a snapshot, use \"torus recover --from FILE\" instead, which compares all copies", err)
	}
	return false, err
}

// heldUntil returns until when somebody who served the volume before may answer
// reads from a node that is not fenced; zero if nobody does. That is not only
// whoever att took it from: that one may have taken it by force, and have been
// gone before it had fenced the nodes. But who served has fenced those before it,
// or waited for their leases, so nobody is left when it detached cleanly.
func heldUntil(att *cluster.Attachment, now time.Time, lease time.Duration) time.Time {
	if att.Volume.Clean {
		return time.Time{}
	}
	return now.Add(lease)
}

// untilLost returns a context that ends with the attachment too, as opening tries
// on for as long as nodes don't answer. end is to be called.
func untilLost(ctx context.Context, att *cluster.Attachment) (lost context.Context, end func()) {
	lost, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-att.Lost():
			cancel(att.Err())
		case <-lost.Done():
		}
	}()
	return lost, func() {
		cancel(nil)
		<-ended
	}
}

// forces reports whether a volume is to be taken from whoever holds it: once,
// or two of them would take it from each other for ever.
func (n *Node) forces(name string) bool {
	n.forcing.Lock()
	defer n.forcing.Unlock()
	forced := n.force[name]
	delete(n.force, name)
	return forced
}

func (n *Node) openAttached(ctx context.Context, att *cluster.Attachment, heldUntil time.Time, was *former) (*attached, error) {
	dial, err := n.newDialer(ctx)
	if err != nil {
		return nil, err
	}
	copies := newCopies(att)
	v, err := volume.Open(ctx, volume.Options{
		ID: att.Volume.ID, Epoch: att.Epoch, Chain: att.Chain, Size: att.Volume.Size,
		Nodes: copies.ids, Targets: copies.targets,
		Dial: func(ctx context.Context, id ring.NodeID) (store.Store, error) {
			node, _ := copies.at(id)
			return dial.store(ctx, node)
		},
		Place:     nearestFirst(att.Ring.Ring, att.Target.Ring, att.Lineage.ID, dial.distances()),
		Period:    ring.Partitions,
		ReadOnly:  n.readOnly,
		MinCopies: att.MinCopies(),
		Clean:     att.Volume.Clean || was.clean(att), Recorded: copies.recorded(att.Incarnations), Stale: copies.stale(att.Stale),
		CompareAll: att.Uncompared, Served: att.Served, KeepHoles: att.Unconfirmed,
		Records: staleRecords{att, was, copies}, Held: att.Held, HeldUntil: heldUntil, Pace: n.pace,
		Logger: n.log.With("part", "volume", "name", att.Volume.Name), // "volume" is its ID there
	})
	if err != nil {
		return nil, err
	}
	a := &attached{att: att, vol: v, dev: was.device(), copies: copies}
	a.dev.serve(v)
	n.holding.add(a)
	watching, cancel := context.WithCancel(context.Background())
	a.watch = cancel
	a.watching.Go(func() { n.watchAttached(watching, a) })
	a.watching.Go(func() { n.report(watching, a) })
	a.watching.Go(func() { n.tellPlaced(watching, a) })
	a.watching.Go(func() { n.scrubWhenDue(watching, a) })
	return a, nil
}

// recorded gives the volume what the records say of its copies.
func (c copiesOf) recorded(all []cluster.Incarnation) map[ring.NodeID]volume.Copy {
	copies := make(map[ring.NodeID]volume.Copy, len(all))
	for _, i := range all {
		if id, is := c.named(i.Node, i.Target); is {
			copies[id] = volume.Copy{Identity: i.Identity, Incarnation: i.Incarnation}
		}
	}
	return copies
}

// incarnations gives the records what the volume found.
func (c copiesOf) incarnations(f volume.Found) []cluster.Incarnation {
	all := make([]cluster.Incarnation, 0, len(f.Copies))
	for id, found := range f.Copies {
		node, target := c.at(id)
		all = append(all, cluster.Incarnation{Node: node, Identity: found.Identity, Incarnation: found.Incarnation, Target: target})
	}
	return all
}

// placedEvery is how often it is told by which rings a volume is placed: what is told
// goes with the lease, also where the attachment goes on under another.
const placedEvery = 10 * time.Second

// tellPlaced records, until ctx ends, by which rings the volume is placed.
func (n *Node) tellPlaced(ctx context.Context, a *attached) {
	for ctx.Err() == nil {
		again := placedEvery
		telling, cancel := context.WithTimeout(ctx, reportPatience)
		if err := a.att.TellPlaced(telling); err != nil && ctx.Err() == nil {
			n.log.Debug("not told by which rings a volume is placed", "volume", a.att.Volume.Name, "err", err)
			again = reportEvery
		}
		cancel()
		pause(ctx, again)
	}
}

// watchAttached waits for the loss of the attachment, and for the volume's stop:
// that may come of the marks it tells, with no request to notice it.
func (n *Node) watchAttached(ctx context.Context, a *attached) {
	done := a.att.Done()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.dev.ended:
			return
		case <-a.att.Lost():
			a.dev.fail(a.att.Err())
			return
		case <-a.vol.Stopped():
			a.dev.fail(a.vol.Err())
			return
		case <-done:
			// No reason to stop: every copy still answers to our epoch alone, and
			// refuses it from the moment on when another holder has fenced it (I1).
			n.log.Warn("the lease may have run out: the cluster's records can't be reached", "volume", a.att.Volume.Name)
			done = nil
		}
	}
}

// end closes the volume and gives the attachment up. Nothing uses the device
// any more, or it gets nbd.ErrShutdown. Nil: everything is durable, and
// recorded as clean.
func (n *Node) end(a *attached) error {
	n.unwatch(a)
	err := a.close()
	return errors.Join(err, n.detach(a.att, err == nil))
}

// close closes the volume, once, and returns what came of it.
func (a *attached) close() error {
	a.once.Do(func() { a.closed = a.vol.Close() })
	return a.closed
}

// unwatch ends what goes on beside the requests.
func (n *Node) unwatch(a *attached) {
	a.watch()
	a.watching.Wait()
	n.holding.remove(a)
}

func (n *Node) detach(att *cluster.Attachment, clean bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), detachPatience)
	defer cancel()
	return att.Detach(ctx, clean)
}

// provenDead reports whether a holder has surely ended. One of this node's own
// past processes has: it held the lock of the data directory, which this one
// has now. That is proof also after a reboot, and in another container, where
// process IDs say nothing. And of this process, which attaches a volume only when
// it has ended the attachment before.
func (n *Node) provenDead(h cluster.Holder) bool {
	ours := n.settings.ID != 0 && h.Node == n.settings.ID
	return ours || h.Process == n.process || cluster.ProvenDeadHere(h)
}
