package node

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"torus/cluster"
	"torus/ring"
)

// A planned stop, seen from both sides:
//
//	the node that stops                          who has volumes with copies there
//	says so: /torus/stopping/NODE ─────────────► records its copies stale (volume.LetGo)
//	waits until all have, stops serving blocks   goes on without, no request waits
//	is there again, takes it back ─────────────► brings it up to date (volume.Wake)

const (
	// handoverPatience is how long a node that stops waits for those who use it.
	handoverPatience = 10 * time.Second
	// handoverAsk bounds how long the records may take to answer it. If they don't,
	// others that could record something don't reach them either.
	handoverAsk = 3 * time.Second
	// handoverEvery is how often it looks.
	handoverEvery = 50 * time.Millisecond
	// letGoEvery is how often a node that stops is tried to be let go: a volume may
	// have been attached only now, or have got another copy in sync.
	letGoEvery = time.Second
)

// startHandover has the node hand over when it stops, before it stops serving
// blocks.
func (n *Node) startHandover() {
	if n.blocks != nil {
		n.started("handover", func() error {
			n.handOver()
			return nil
		})
	}
}

// handOver says that this node stops, and waits until all who have volumes with
// copies here go on without them. What it can't wait for is said in the log.
func (n *Node) handOver() {
	if n.blocks.Stats().Connections == 0 {
		return // also where the records don't answer, as of the last node of a cluster that stops
	}
	ctx, cancel := context.WithTimeout(context.Background(), handoverPatience)
	defer cancel()
	for said := false; ; said = true {
		left, err := n.dependents(ctx)
		if err == nil && !said && len(left) > 0 {
			err = n.saysItStops(ctx)
		}
		switch {
		case ctx.Err() != nil:
			n.log.Warn("not all who use copies of this node go on without them: requests will wait for it for some seconds")
			return
		case err != nil:
			n.log.Info("not handed over: the cluster's records do not answer", "err", err)
			return
		case len(left) == 0:
			return
		case !slices.ContainsFunc(left, func(d cluster.Dependent) bool { return d.Without != cluster.WithoutNot }):
			n.log.Warn("requests will wait until this node is back: too few other copies are in sync", "volumes", names(left))
			return
		}
		pause(ctx, handoverEvery)
	}
}

// dependents returns the volumes with copies here that others have attached, and
// do not go on without this node yet.
func (n *Node) dependents(ctx context.Context) ([]cluster.Dependent, error) {
	ctx, cancel := context.WithTimeout(ctx, handoverAsk)
	defer cancel()
	all, err := n.cluster.Dependents(ctx, n.settings.ID)
	return slices.DeleteFunc(all, func(d cluster.Dependent) bool {
		return d.Without == cluster.WithoutLetGo || n.provenDead(d.Attached.Holder)
	}), err
}

func (n *Node) saysItStops(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handoverAsk)
	defer cancel()
	return n.cluster.Stopping(ctx, n.settings.ID)
}

func names(all []cluster.Dependent) string {
	names := make([]string, len(all))
	for i, d := range all {
		names[i] = d.Name
	}
	return strings.Join(names, ", ")
}

// startLettingGo lets nodes that say that they stop go, for all volumes that this
// process has attached.
func (n *Node) startLettingGo() {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	updates := make(chan cluster.Update[ring.NodeID, time.Time])
	wg.Go(func() {
		follow(ctx, n, "nodes that stop", n.cluster.WatchStopping(ctx), func(u cluster.Update[ring.NodeID, time.Time]) {
			select {
			case updates <- u:
			case <-ctx.Done():
			}
		})
	})
	wg.Go(func() { n.letGoLoop(ctx, updates) })
	n.started("letting go", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

func (n *Node) letGoLoop(ctx context.Context, updates <-chan cluster.Update[ring.NodeID, time.Time]) {
	stopping := map[ring.NodeID]bool{}
	tick := time.NewTicker(letGoEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case u := <-updates:
			for _, id := range applyStopping(stopping, u) {
				n.holding.each(func(a *attached) { a.wake(id) })
			}
		case <-tick.C:
		}
		for id := range stopping {
			n.holding.each(func(a *attached) { a.letGo(id) })
		}
	}
}

// applyStopping brings the set of nodes that stop up to date, and returns those
// that don't any more.
func applyStopping(stopping map[ring.NodeID]bool, u cluster.Update[ring.NodeID, time.Time]) (over []ring.NodeID) {
	for id := range stopping {
		if _, still := u.Put[id]; slices.Contains(u.Gone, id) || u.Reset && !still {
			over = append(over, id)
			delete(stopping, id)
		}
	}
	for id := range u.Put {
		stopping[id] = true
	}
	return over
}

// wake says of all copies that a node has that it is there.
func (a *attached) wake(id ring.NodeID) {
	a.vol.Wake(id)
	a.vol.Wake(targetCopy(id)) // where there is one
}

// letGo is LetGo for those copies of a node that are in sync: otherwise there is
// nothing to do, or not yet.
func (a *attached) letGo(node ring.NodeID) {
	for _, c := range a.vol.Status().Copies {
		if at, _ := a.copies.at(c.Node); at == node && c.InSync() {
			a.vol.LetGo(c.Node)
		}
	}
}

// startStopWatch has the node stop when an operator asks for it in the records.
func (n *Node) startStopWatch() {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		follow(ctx, n, "requests to stop", n.cluster.WatchStop(ctx, n.settings.ID), func(u cluster.Update[ring.NodeID, string]) {
			by, asked := u.Put[n.settings.ID]
			if !asked {
				return
			}
			if err := n.cluster.StopTaken(ctx, n.settings.ID); err != nil { // it is forgotten anyway
				n.log.Info("request to stop not taken away", "err", err)
			}
			n.log.Info("asked to stop", "by", by)
			n.asking.Do(func() { close(n.asked) })
		})
	})
	n.started("stop requests", func() error {
		stop()
		wg.Wait()
		return nil
	})
}

// Asked is closed when an operator has asked for this node to be stopped: it is to
// be closed.
func (n *Node) Asked() <-chan struct{} { return n.asked }
