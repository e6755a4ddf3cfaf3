package volume

import (
	"context"

	"torus/ring"
	"torus/store"
)

// Records is where an attachment writes down what its copies lack. Each method
// but MayJoin is one transaction guarded by the attachment's epoch. nil: it is done.
// ErrLost: another holder came. ErrNotDone, or ErrMoved: it surely was not and will
// not be. Any other error: it may have been, or may be yet.
type Records interface {
	// Serving records what Open found, and that the volume is no longer clean. It
	// is called once, when the copies are equal and durable and before anything
	// is served (PROTOCOL.md, Attach 5). Any error ends the opening; ErrMoved is ErrAgain
	// as well then.
	Serving(ctx context.Context, f Found) error
	// Stale records that node n has no more than what came up to since, by layer.
	// A record that is there keeps what is lower, and is written all the same: its
	// new revision is what a late InSync of before fails by (4/39330).
	Stale(ctx context.Context, n ring.NodeID, why string, since map[store.LayerID]store.Version) error
	// InSync records that n's copies of the layers are in sync, in the store and
	// incarnation now.
	InSync(ctx context.Context, n ring.NodeID, now Copy, layers []store.LayerID) error
	// MayJoin reports whether copy n of Options.Targets may be written to: its node
	// has dropped what it had there from an earlier stay. It stays so.
	MayJoin(ctx context.Context, n ring.NodeID) (bool, error)
}

// Stale says that a node's copy of a layer may lack all that came after Since.
type Stale struct {
	Node  ring.NodeID
	Layer store.LayerID
	Since store.Version
	Why   string
}
