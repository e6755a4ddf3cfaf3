package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"torus/cluster"
	"torus/ring"
)

// behindView is a node that lacks writes of a volume, as it is printed.
type behindView struct {
	Node  string    `json:"node"` // its ID
	State string    `json:"state"`
	Why   string    `json:"why"`
	Since time.Time `json:"since"`
	Done  int64     `json:"done"`  // bytes of a resync
	Total int64     `json:"total"` // 0: none is under way
	Left  int64     `json:"left"`  // seconds, at the rate so far; 0: not known

	id ring.NodeID
}

// movingView is the change of a volume's ring, as it is printed.
type movingView struct {
	Done  int64 `json:"done"`  // bytes that were brought to the nodes which gain chunks
	Total int64 `json:"total"` // 0: not known, as nobody has the volume attached
}

// moving returns how far the change of a volume's ring is; nil if it stays where it is.
func moving(v cluster.VolumeInfo) *movingView {
	if v.Lineage.Target == 0 {
		return nil
	}
	m := &movingView{}
	if v.Report != nil {
		for _, c := range v.Report.Copies {
			if c.Target {
				m.Done, m.Total = m.Done+c.Done, m.Total+c.Total
			}
		}
	}
	return m
}

// String says it in a few words.
func (m *movingView) String() string {
	if m.Total == 0 {
		return "moving to other nodes"
	}
	done := min(m.Done, m.Total)
	return fmt.Sprintf("moving to other nodes, %d%%, %s left", 100*done/m.Total, formatSize(m.Total-done))
}

// behind returns the nodes whose copies are not in sync: as the holder of the
// volume tells it, or where nobody does as it is recorded. What is on its way to them
// is not what they lack.
func behind(v cluster.VolumeInfo) []behindView {
	var all []behindView
	if v.Report != nil {
		for _, c := range v.Report.Copies {
			if c.State != cluster.CopyInSync && !c.Target {
				all = append(all, behindView{c.Node.String(), c.State, c.Why, c.Since, c.Done, c.Total, int64(c.Left.Seconds()), c.Node})
			}
		}
		return all
	}
	for _, s := range v.Stale {
		if s.Target != 0 {
			continue
		}
		all = append(all, behindView{Node: s.Node.String(), State: "stale", Why: s.Why, Since: s.At, id: s.Node})
	}
	return all
}

// degraded says in a few words how a volume's copies are; "" if all is well.
func (v volumeView) degraded() string {
	if len(v.Behind) == 0 {
		return ""
	}
	text := ", " + plural(len(v.Behind), "node lacks", "nodes lack") + " writes"
	if v.Waiting != "" {
		text += ", requests wait"
	}
	var done, total int64
	for _, b := range v.Behind {
		done, total = done+b.Done, total+b.Total
	}
	if total > 0 {
		text += fmt.Sprintf(", resync %d%%", 100*min(done, total)/total)
	}
	return text
}

// problems says what is wrong with a volume's copies, and what to do about it.
func (v volumeView) problems(nodes []cluster.NodeInfo) []string {
	var all []string
	add := func(format string, args ...any) { all = append(all, "volume "+v.Name+fmt.Sprintf(format, args...)) }
	if v.Waiting != "" {
		waiting := v.Waiting
		for _, n := range nodes {
			waiting = strings.ReplaceAll(waiting, n.ID.String(), n.Name)
		}
		add(": requests wait for %s: start the nodes that do not answer", waiting)
	}
	if v.Loss != nil && v.Loss.Epoch == v.Epoch { // until it is attached next
		add(": %v", v.Loss)
	}
	if v.Scrub != nil && v.Scrub.Lost > 0 {
		add(" has %s of which no copy is whole: restore them from a backup, then run \"torus scrub %s\"", plural(int(v.Scrub.Lost), "page", "pages"), v.Name)
	}
	for _, b := range v.Behind {
		name, alive := b.Node, false
		if i := slices.IndexFunc(nodes, func(n cluster.NodeInfo) bool { return n.ID == b.id }); i >= 0 {
			name, alive = nodes[i].Name, nodes[i].Alive
		}
		switch {
		case b.Total > 0:
			left := ""
			if b.Left > 0 {
				left = fmt.Sprintf(", %v left", time.Duration(b.Left)*time.Second)
			}
			add(": node %s is brought up to date, %d%%, %s of %s%s", name, 100*min(b.Done, b.Total)/b.Total,
				formatSize(min(b.Done, b.Total)), formatSize(b.Total), left)
		case !alive:
			add(": node %s lacks writes since %s: start it with \"torus start\"", name, b.Since.UTC().Format(time.RFC3339))
		case v.Attached == nil:
			add(": node %s lacks writes: it is brought up to date soon, or when the volume is attached", name)
		default:
			add(": node %s lacks writes: %s", name, b.Why)
		}
	}
	return all
}
