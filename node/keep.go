package node

import (
	"context"
	"errors"
	"time"

	"torus/cluster"
	"torus/nbd"
)

// keepRetry is how long after a failed attempt a kept volume is attached again.
const keepRetry = time.Second

// keep has a volume attached until ctx ends: after it was lost, because its
// copies stopped answering or were started again, it is attached once more.
// attached is called each time it is. The error says why it can't be kept:
// somebody else has it, it is gone, or the records are others. What else fails is tried again for ever, as
// the nodes that are missing may be about to start; so is, if this process exports
// other volumes too, one that was taken away.
func (x *exports) keep(ctx context.Context, name string, attached func()) error {
	said, had := "", false
	for ctx.Err() == nil {
		e, leave, err := x.hold(ctx, name)
		switch {
		case err == nil:
			attached()
			said, had = "", true
			select {
			case <-e.gone:
			case <-ctx.Done():
			}
			leave()
			continue
		case errors.Is(err, cluster.ErrBusy) && (!had || len(x.only) == 1),
			errors.Is(err, nbd.ErrNotFound), errors.Is(err, nbd.ErrShutdown), errors.Is(err, cluster.ErrRecovered):
			return err
		}
		if text := err.Error(); text != said && ctx.Err() == nil {
			x.log.Warn("volume can't be attached yet, trying on", "volume", name, "err", err)
			said = text
		}
		pause(ctx, keepRetry)
	}
	return ctx.Err()
}
