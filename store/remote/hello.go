package remote

import (
	"errors"
	"fmt"

	"torus/store"
)

// Why a peer is refused; see RefusedError.
var (
	ErrOtherCluster  = errors.New("belongs to another cluster")
	ErrOtherNode     = errors.New("is another node")
	ErrOtherProtocol = errors.New("speaks another protocol")
)

// A RefusedError says that a connection was made, and with whom it must not
// be. It is also store.ErrUnreachable: nothing was sent.
type RefusedError struct {
	Addr   string
	Reason error // one of the above
	Detail string
}

// Error names the address, who is there and who was looked for.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s %v: %s", e.Addr, e.Reason, e.Detail)
}

// Unwrap returns the reason.
func (e *RefusedError) Unwrap() error { return e.Reason }

// Is makes the error store.ErrUnreachable.
func (e *RefusedError) Is(target error) bool { return target == store.ErrUnreachable }
