package volume

import (
	"fmt"

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
}

// standing is what a node's copy is worth.
type standing uint8

const (
	// whole: it has all that it ever acknowledged, and so all that was
	// acknowledged to anybody, as that takes the answer of every copy.
	whole standing = iota
	// reborn: its incarnation is another. It has what was flushed; of the rest
	// any part may be missing (N2).
	reborn
)

// judge says what the copy now on node n is worth, given what was recorded of
// all nodes when the volume was last served. It looks at the identity whether
// the last holder detached cleanly or not, at the incarnation only if not: what
// was detached cleanly is durable, and survives the loss of all that is not.
//
// Here a stale record will say of a node that it is repaired from another one,
// instead of the errors.
func judge(recorded map[ring.NodeID]Copy, n ring.NodeID, now Copy, clean bool) (standing, error) {
	was, known := recorded[n]
	switch {
	case len(recorded) == 0:
		return whole, nil // never served: nothing was acknowledged
	case !known:
		return whole, fmt.Errorf("%w: store %v was not among the copies when the volume was last served",
			ErrOtherStore, now.Identity)
	case was.Identity != now.Identity: // N3
		return whole, fmt.Errorf("%w: its copy was in store %v, it has store %v now: bring the old store directory back",
			ErrOtherStore, was.Identity, now.Identity)
	case was.Incarnation != now.Incarnation && !clean:
		return reborn, nil
	}
	return whole, nil
}
