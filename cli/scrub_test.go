package cli

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"torus/cluster"
	"torus/store"
)

// Whoever waits for a scrub of a volume is told that it was deleted, also when that was
// before the records were watched.
func TestAwaitScrubOfDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		kv := cluster.NewMemory(nil)
		defer kv.Close()
		c, err := cluster.Found(ctx, kv, cluster.Founding{Replicas: 1}, cluster.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r := records{Cluster: c}
		_, err = (&app{}).awaitScrubs(ctx, r, map[store.VolumeID]asking{7: {"vol1", 1}})
		if !errors.Is(err, cluster.ErrNotFound) {
			t.Errorf("waited, and was told: %v", err)
		}
	})
}
