package ring

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// codecFormat is the only format of encoded rings so far. It fixes Partitions and
// how chunks are dealt to them, too.
const codecFormat = 1

// An encoded ring is a JSON object, for operators to read but for its table.
//
//	format      1
//	copies      1 to MaxCopies
//	partitions  Partitions
//	members     in order of ID: id (16 hexadecimal digits), weight (bytes), zone, host
//	table       base64 of the rows, one after the other: each is copies places, the
//	            preferred one first; a place is the index of a member, in one byte
//	            where there are up to 256 members, else in two, the higher first
type encodedRing struct {
	Format     int             `json:"format"`
	Copies     int             `json:"copies"`
	Partitions int             `json:"partitions"`
	Members    []encodedMember `json:"members"`
	Table      string          `json:"table"`
}

type encodedMember struct {
	ID     string `json:"id"`
	Weight int64  `json:"weight"`
	Zone   Zone   `json:"zone"`
	Host   string `json:"host"`
}

// MarshalJSON encodes a ring; one of 1,000 members and 3 copies takes 220 KiB.
func (r *Ring) MarshalJSON() ([]byte, error) {
	e := encodedRing{Format: codecFormat, Copies: r.copies, Partitions: Partitions}
	index := make(map[NodeID]int, len(r.members))
	for i, m := range r.members {
		index[m.ID] = i
		e.Members = append(e.Members, encodedMember{ID: m.ID.String(), Weight: m.Weight, Zone: m.Zone, Host: m.Host})
	}
	width := placeWidth(len(r.members))
	table := make([]byte, 0, len(r.table)*width)
	for _, id := range r.table {
		if width == 2 {
			table = append(table, byte(index[id]>>8))
		}
		table = append(table, byte(index[id]))
	}
	e.Table = base64.StdEncoding.EncodeToString(table)
	return json.Marshal(e)
}

// placeWidth returns the bytes of a place in the table.
func placeWidth(members int) int {
	if members <= 256 {
		return 1
	}
	return 2
}

// UnmarshalJSON decodes a ring from bytes that need not be trusted. Whoever reads a
// ring can rely on it as on one from New, except that places may break the rules on
// hosts and zones, which another release may have seen otherwise. The error is
// ErrInvalid or ErrTooFewMembers; the ring is then unchanged.
func (r *Ring) UnmarshalJSON(b []byte) error {
	var e encodedRing
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields() // a field that is added makes a new format
	if err := d.Decode(&e); err != nil {
		return fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: something follows the ring", ErrInvalid)
	}
	switch {
	case e.Format != codecFormat:
		return fmt.Errorf("%w: format %d: this release reads format %d", ErrInvalid, e.Format, codecFormat)
	case e.Partitions != Partitions:
		return fmt.Errorf("%w: %d partitions: format %d has %d", ErrInvalid, e.Partitions, codecFormat, Partitions)
	}
	members, err := decodeMembers(e.Copies, e.Members)
	if err != nil {
		return err
	}
	table, err := decodeTable(e.Table, e.Copies, members)
	if err != nil {
		return err
	}
	*r = Ring{copies: e.Copies, members: members, table: table}
	return nil
}

func decodeMembers(copies int, encoded []encodedMember) ([]Member, error) {
	if len(encoded) > MaxMembers {
		return nil, fmt.Errorf("%w: %d members: at most %d", ErrInvalid, len(encoded), MaxMembers)
	}
	members := make([]Member, len(encoded))
	for i, m := range encoded {
		id, err := strconv.ParseUint(m.ID, 16, 64)
		if err != nil || NodeID(id).String() != m.ID {
			return nil, fmt.Errorf("%w: %.40q is not a node ID of 16 hexadecimal digits", ErrInvalid, m.ID)
		}
		members[i] = Member{ID: NodeID(id), Weight: m.Weight, Zone: m.Zone, Host: m.Host}
	}
	ordered, err := check(copies, members)
	if err == nil && !slices.Equal(members, ordered) {
		err = fmt.Errorf("%w: members are not in order of ID", ErrInvalid)
	}
	return ordered, err
}

func decodeTable(encoded string, copies int, members []Member) ([]NodeID, error) {
	places, width := Partitions*copies, placeWidth(len(members))
	if want := base64.StdEncoding.EncodedLen(places * width); len(encoded) != want {
		return nil, fmt.Errorf("%w: table of %d characters: must be %d", ErrInvalid, len(encoded), want)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) != places*width {
		return nil, fmt.Errorf("%w: table is not %d bytes in base64: %v", ErrInvalid, places*width, err)
	}
	table := make([]NodeID, places)
	for i := range table {
		m := int(raw[i*width])
		if width == 2 {
			m = int(binary.BigEndian.Uint16(raw[i*width:]))
		}
		partition, slot := i/copies, i%copies
		if m >= len(members) {
			return nil, fmt.Errorf("%w: partition %d is on member %d of %d", ErrInvalid, partition, m, len(members))
		}
		table[i] = members[m].ID
		if slices.Contains(table[i-slot:i], table[i]) {
			return nil, fmt.Errorf("%w: partition %d is twice on node %s", ErrInvalid, partition, table[i])
		}
	}
	return table, nil
}
