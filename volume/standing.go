package volume

import (
	"fmt"
	"slices"

	"torus/ring"
	"torus/store"
)

// A Copy says which store a node has for the volume and what that has kept: the
// record incarnations/VOLUME/NODE.
type Copy struct {
	Identity    store.Identity
	Incarnation store.Incarnation
}

// Found is what Open came upon, for the records (PROTOCOL.md, Attach 5) and for
// whoever asks how the volume is.
type Found struct {
	// Copies are the stores that were reconciled and synced, to be recorded.
	Copies map[ring.NodeID]Copy
	// Reborn are the nodes, by ID, that came back with another incarnation than
	// was recorded: they may have lacked what was not flushed.
	Reborn []ring.NodeID
	// UnflushedGone: of what was acknowledged and not flushed some may be gone,
	// as every copy of some pages had lost its power, or the one that had not
	// is corrupt. What was flushed is there.
	UnflushedGone bool
	// Repaired is how many bytes were brought to copies, holes included.
	Repaired int64
	// Stale are the copies that were left out, to be recorded.
	Stale []Stale
}

// standing is what a node's copy is worth.
type standing uint8

const (
	// absent: the node does not answer, so it isn't known.
	absent standing = iota
	// whole: it has all that it ever acknowledged, and so all that was
	// acknowledged to anybody, as that takes the answer of every copy in sync.
	whole
	// reborn: its incarnation is another. It has what was flushed; of the rest
	// any part may be missing (N2).
	reborn
	// stale: it missed writes, or has another store than the one that had the
	// copy. It is not asked for anything until a resync has made it equal.
	stale
)

// String names the standing.
func (s standing) String() string { return [...]string{"absent", "whole", "reborn", "stale"}[s] }

// judge says what the copy now on node n is worth, given what was recorded of
// all nodes when the volume was last served. It looks at the identity whether
// the last holder detached cleanly or not, at the incarnation only if not: what
// was detached cleanly is durable, and survives the loss of all that is not.
//
// The error says why a copy that is not recorded stale is so all the same: that
// since 0, in all layers (N3).
func judge(recorded map[ring.NodeID]Copy, n ring.NodeID, now Copy, clean bool) (standing, error) {
	was, known := recorded[n]
	switch {
	case len(recorded) == 0:
		return whole, nil // never served: nothing was acknowledged
	case !known:
		return stale, fmt.Errorf("%w: store %v was not among the copies when the volume was last served",
			ErrOtherStore, now.Identity)
	case was.Identity != now.Identity: // N3
		return stale, fmt.Errorf("%w: its copy was in store %v, it has store %v now: bring the old store directory back",
			ErrOtherStore, was.Identity, now.Identity)
	case was.Incarnation != now.Incarnation && !clean:
		return reborn, nil
	}
	return whole, nil
}

// mayServe says whether a volume whose chunks have these sets of copies can be
// served with the nodes as they stand (Attach 4): which absent nodes it has to
// wait for, none if it can. ErrNoCopy if some chunk has no copy in sync at all.
//
// A whole copy has all that was acknowledged. Where a chunk has none, it is
// spread over all its copies in sync, any of which may be the only one that has
// kept a write, so all must be there (46/65).
func mayServe(groups [][]ring.NodeID, standings map[ring.NodeID]standing) (wait []ring.NodeID, err error) {
	for _, group := range groups {
		inSync, served := 0, false
		for _, id := range group {
			if standings[id] != stale {
				inSync++
			}
			served = served || standings[id] == whole
		}
		if inSync == 0 {
			return nil, fmt.Errorf("%w: its nodes are %v", ErrNoCopy, group)
		}
		for _, id := range group {
			if !served && standings[id] == absent && !slices.Contains(wait, id) {
				wait = append(wait, id)
			}
		}
	}
	slices.Sort(wait)
	return wait, nil
}
