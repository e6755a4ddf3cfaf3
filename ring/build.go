package ring

// New builds the ring of the given members, for one number of copies. With an
// earlier ring, as little as possible lies elsewhere than there. The result
// depends on the arguments alone; the order of members does not matter.
//
// Errors: ErrTooFewMembers, ErrInvalid (an earlier ring for another number of
// copies among it).
func New(copies int, members []Member, earlier *Ring) (*Ring, error) {
	ordered, err := check(copies, members)
	if err != nil {
		return nil, err
	}
	r := &Ring{copies: copies, members: ordered}
	for p := range Partitions {
		for k := range copies {
			r.table = append(r.table, ordered[(p+k)%len(ordered)].ID)
		}
	}
	return r, nil
}

// A Share is what a ring gives to one member. Shares are of the data before it
// is copied: 0 to 1 each, Copies() together.
type Share struct {
	Member     Member
	Partitions int     // of the ring's Partitions, those with a replica here
	First      int     // of these, those whose first node it is
	Data       float64 // the share it has
	Best       float64 // the share that weights, zones and hosts would give it at best
}

// Shares returns each member's share, in order of ID.
func (r *Ring) Shares() []Share {
	return nil
}
