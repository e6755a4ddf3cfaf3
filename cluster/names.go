package cluster

import (
	"cmp"
	"fmt"
	"regexp"

	"torus/store"
)

// MaxReplicas is the most copies that a volume can have.
const MaxReplicas = 16

// nameRule is what the names of volumes and nodes look like.
var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// CheckName returns ErrInvalid, naming the rule, unless name can be that of a
// volume or a node.
func CheckName(name string) error {
	if nameRule.MatchString(name) {
		return nil
	}
	if len(name) > 63 {
		return fmt.Errorf("%w: name %.20q… has %d characters, at most 63 are allowed", ErrInvalid, name, len(name))
	}
	return fmt.Errorf("%w: name %q: use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit",
		ErrInvalid, name)
}

// checkSize returns ErrInvalid unless a volume can have size bytes.
func checkSize(size int64) error {
	switch {
	case size < store.PageSize:
		return fmt.Errorf("%w: size %d is below the smallest, %d bytes", ErrInvalid, size, store.PageSize)
	case size > store.MaxVolumeSize:
		return fmt.Errorf("%w: size %d is above the largest, %d bytes (1 PiB)", ErrInvalid, size, int64(store.MaxVolumeSize))
	case size%store.PageSize != 0:
		return fmt.Errorf("%w: size %d is not a multiple of %d", ErrInvalid, size, store.PageSize)
	}
	return nil
}

// checkCopies returns ErrInvalid unless the policy can be kept.
func checkCopies(replicas, minCopies int) error {
	if err := inRange("replicas", replicas, 1, MaxReplicas); err != nil {
		return err
	}
	return inRange("min-copies", minCopies, 1, replicas)
}

// check returns ErrInvalid unless id is one.
func (id ID) check() error {
	var h hexID
	if err := h.UnmarshalText([]byte(id)); err != nil {
		return fmt.Errorf("%w: cluster %v", ErrInvalid, err)
	}
	return nil
}

// check returns ErrInvalid unless n can be registered.
func (n Node) check() error {
	if err := CheckName(n.Name); err != nil {
		return err
	}
	if len(n.Roles) == 0 {
		return fmt.Errorf("%w: no roles", ErrInvalid)
	}
	for _, r := range n.Roles {
		if r != RoleEtcd && r != RoleStorage && r != RoleNBD {
			return fmt.Errorf("%w: role %q: there are %s, %s and %s", ErrInvalid, r, RoleEtcd, RoleStorage, RoleNBD)
		}
	}
	if n.State != NodeActive && n.State != NodeDraining && n.State != NodeOut {
		return fmt.Errorf("%w: state %q", ErrInvalid, n.State)
	}
	if err := inRange("weight", n.Weight, minWeight, maxWeight); err != nil {
		return err
	}
	if n.Capacity < 0 {
		return fmt.Errorf("%w: capacity %d", ErrInvalid, n.Capacity)
	}
	return nil
}

// The weights that a node can have.
const minWeight, maxWeight = 0.01, 100

// inRange returns ErrInvalid unless low <= v <= high.
func inRange[T cmp.Ordered](what string, v, low, high T) error {
	if v < low || v > high {
		return fmt.Errorf("%w: %s %v, allowed are %v to %v", ErrInvalid, what, v, low, high)
	}
	return nil
}
