package ring

// A topology is the tree of zones, hosts and members, and how many copies of a
// partition each may keep. Members are numbered in order of ID, hosts and zones
// in order of their first member.
type topology struct {
	host    []int     // of each member
	zone    []int     // of each member
	tree    [][][]int // zones, of hosts, of members
	hostCap int       // most copies of a partition on one host: 1 while there are enough hosts
	zoneCap int       // most copies in one zone: 1 while there are enough zones
}

// newTopology builds the tree of members that are in order of ID, and finds the
// caps for a number of copies.
//
// A host whose members name several zones is wholly in that of the first: the
// tree stays a tree while an operator moves a host to another zone node by node,
// and no two copies meet on one machine because of it.
func newTopology(copies int, members []Member) *topology {
	type place struct{ zone, host int } // host: within the zone
	t := &topology{}
	hosts, zones, count := map[string]int{}, map[Zone]int{}, 0
	var places []place // of each host
	for i, m := range members {
		h, known := hosts[m.Host]
		if !known || m.Host == "" {
			h, hosts[m.Host] = count, count
			count++
			z, known := zones[m.Zone]
			if !known {
				z, zones[m.Zone] = len(t.tree), len(t.tree)
				t.tree = append(t.tree, nil)
			}
			places = append(places, place{zone: z, host: len(t.tree[z])})
			t.tree[z] = append(t.tree[z], nil)
		}
		at := places[h]
		t.tree[at.zone][at.host] = append(t.tree[at.zone][at.host], i)
		t.host, t.zone = append(t.host, h), append(t.zone, at.zone)
	}
	t.limit(copies)
	return t
}

// limit sets the lowest caps with which a partition still has room for all its
// copies. Hosts come first: where there are fewer zones than copies but enough
// hosts, the copies are on as many hosts, however the zones divide these.
func (t *topology) limit(copies int) {
	for t.hostCap = 1; t.room(copies) < copies; t.hostCap++ {
	}
	for t.zoneCap = 1; t.room(t.zoneCap) < copies; t.zoneCap++ {
	}
}

// room returns how many copies of a partition fit with a cap on zones.
func (t *topology) room(zoneCap int) int {
	room := 0
	for _, zone := range t.tree {
		inZone := 0
		for _, host := range zone {
			inZone += min(t.hostCap, len(host))
		}
		room += min(zoneCap, inZone)
	}
	return room
}

// fits reports whether member m may take the place at slot in a row of members:
// it is not there yet, and its host and zone have room beside the others. A number
// behind the last member is nobody.
func (t *topology) fits(row []int16, slot int, m int) bool {
	onHost, inZone := 0, 0
	for s, have := range row {
		switch {
		case s == slot || int(have) == len(t.host):
			continue
		case int(have) == m:
			return false
		}
		if t.zone[have] == t.zone[m] {
			inZone++
			if t.host[have] == t.host[m] {
				onHost++
			}
		}
	}
	return onHost < t.hostCap && inZone < t.zoneCap
}
