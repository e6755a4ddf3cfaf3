package node

import (
	"context"
	"reflect"
	"slices"
	"time"

	"torus/cluster"
	"torus/volume"
)

const (
	// reportEvery is how often a volume is looked at for what there is to tell.
	reportEvery = time.Second
	// reportAgain is how often it is told again: a report goes when the lease that
	// it was written under does, also where the attachment goes on under another.
	reportAgain = 30 * time.Second
	// reportPatience bounds how long the records may take to hear it.
	reportPatience = 5 * time.Second
	// progressEvery is how often it is logged how far a copy is.
	progressEvery = 10 * time.Second
)

// report tells the cluster how a volume is, until ctx ends. Of one whose copies
// have been in sync all the time there is nothing to tell.
func (n *Node) report(ctx context.Context, a *attached) {
	var told volume.Status
	var at, logged time.Time
	for ctx.Err() == nil {
		now := a.vol.Status()
		if time.Since(logged) >= progressEvery {
			logged = time.Now()
			n.logProgress(a, now)
		}
		if worthReporting(told, now, time.Since(at)) {
			telling, cancel := context.WithTimeout(ctx, reportPatience)
			err := a.att.Report(telling, newReport(a.copies, now))
			cancel()
			if err == nil {
				told, at = now, time.Now()
			} else if ctx.Err() == nil {
				n.log.Debug("not reported how a volume is", "volume", a.att.Volume.Name, "err", err)
			}
		}
		pause(ctx, reportEvery)
	}
}

// logProgress says how far the copies are that are being brought up to date.
func (n *Node) logProgress(a *attached, s volume.Status) {
	for _, c := range s.Copies {
		if c.Total > 0 {
			node, target := a.copies.at(c.Node)
			n.log.Info("a copy is being brought up to date", "volume", a.att.Volume.Name, "node", node, "target", target,
				"percent", 100*min(c.Done, c.Total)/c.Total, "done", c.Done, "total", c.Total, "left", c.Left.Round(time.Second))
		}
	}
}

// worthReporting reports whether now is to be told when told was, so long ago;
// the zero Status where nothing was told.
func worthReporting(told, now volume.Status, ago time.Duration) bool {
	fine := !slices.ContainsFunc(now.Copies, func(c volume.CopyStatus) bool { return !c.InSync() })
	if fine {
		return told.Copies != nil && !reflect.DeepEqual(told, now)
	}
	return ago >= reportAgain || !reflect.DeepEqual(told, now)
}

// newReport says in the records' words how a volume is.
func newReport(copies copiesOf, s volume.Status) cluster.Report {
	r := cluster.Report{Waiting: s.Waiting}
	for _, c := range s.Copies {
		state := c.State
		node, target := copies.at(c.Node)
		if c.InSync() {
			state = cluster.CopyInSync
		}
		r.Copies = append(r.Copies, cluster.CopyReport{
			Node: node, Target: target != 0, State: state, Why: c.Why, Since: c.When.UTC(), Done: c.Done, Total: c.Total, Left: c.Left,
		})
	}
	return r
}
