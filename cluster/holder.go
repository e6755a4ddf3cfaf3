package cluster

import (
	"fmt"

	"torus/ring"
)

// Holder is the process that has a volume attached.
type Holder struct {
	Node ring.NodeID // 0: a process that is no node, such as "torus nbd serve"
	Name string      // of the node, or of the machine
	Process
}

// Process names a process for as long as its machine runs.
type Process struct {
	BootID       string // of the kernel
	PIDNamespace string // in which PID counts; "" if unknown
	PID          int
	StartTime    uint64 // in ticks since boot, as field 22 of /proc/PID/stat says
}

// String names the holder for people.
func (h Holder) String() string {
	if h.Node == 0 {
		return fmt.Sprintf("process %d on %s", h.PID, h.Name)
	}
	return fmt.Sprintf("node %s (process %d)", h.Name, h.PID)
}

// Sighting is what /proc says about a process ID at one moment.
type Sighting struct {
	Self      Process // who looked
	PID       int     // the process that was looked for
	Exists    bool
	Zombie    bool   // has ended, and waits for its parent
	StartTime uint64 // of the process that now has the ID
}

// ProvenDead reports whether s proves that p has ended. It is proof only if it was seen
// under the same kernel, in the same PID namespace: a process ID says nothing
// elsewhere, and a machine with another boot ID may be another machine.
func ProvenDead(p Process, s Sighting) bool {
	if p.BootID == "" || p.BootID != s.Self.BootID || p.PID != s.PID || p.PID <= 0 {
		return false
	}
	if p.PIDNamespace == "" || p.PIDNamespace != s.Self.PIDNamespace {
		return false
	}
	return !s.Exists || s.Zombie || s.StartTime != p.StartTime
}
