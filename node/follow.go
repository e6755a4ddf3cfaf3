package node

import (
	"context"
	"iter"
	"time"

	"torus/cluster"
)

// followRetry is how long after its end a watch is begun again.
const followRetry = 5 * time.Second

// follow calls told with every update of a watch until ctx ends. A watch that
// ends with an error is begun again.
func follow[K comparable, V any](ctx context.Context, n *Node, what string,
	watch iter.Seq2[cluster.Update[K, V], error], told func(cluster.Update[K, V])) {
	for ctx.Err() == nil {
		for u, err := range watch {
			if err != nil {
				if ctx.Err() == nil {
					n.log.Warn("watch ended, it is begun again", "of", what, "err", err)
				}
				break
			}
			told(u)
		}
		pause(ctx, followRetry)
	}
}
