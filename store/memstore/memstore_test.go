package memstore_test

import (
	"math/rand/v2"
	"testing"

	"torus/store"
	"torus/store/memstore"
	"torus/store/storetest"
)

// machine is a disk as the conformance suite wants it.
type machine struct{ disk *memstore.Disk }

func (m machine) Open(*testing.T) store.Store { return m.disk.Open() }
func (m machine) Kill(*testing.T)             { m.disk.Kill() }
func (m machine) PowerCut(*testing.T)         { m.disk.PowerCut() }

// newRand prints its seed when the test fails.
func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the disk's seed was %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Machine { return machine{memstore.NewDisk(newRand(t))} })
}

func TestConformanceWithoutLoss(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Machine { return machine{memstore.NewDisk(nil)} })
}
