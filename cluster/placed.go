package cluster

import (
	"context"

	"torus/ring"
)

// Placed returns of each node that the ring or the target of some volume names the names
// of these volumes, in order. A node that is not there holds nothing that counts, and can be removed.
func (c *Cluster) Placed(ctx context.Context) (map[ring.NodeID][]string, error) {
	names := map[ring.NodeID][]string{}
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		clear(names)
		pairs, err := t.list(ctx, keyVolumes)
		if err != nil {
			return err
		}
		for _, p := range pairs {
			name, v, err := decodeVolume(p)
			if err != nil {
				return err
			}
			ids, err := t.mayHold(ctx, v)
			if err != nil {
				return err
			}
			for _, id := range ids {
				names[id] = append(names[id], name)
			}
		}
		return nil
	})
	return names, err
}
