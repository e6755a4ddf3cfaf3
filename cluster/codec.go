package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// The records, JSON so that an operator can read them with etcdctl. IDs are 16
// hexadecimal digits, sizes bytes, times RFC 3339 in UTC. Each record begins with
// its format; a field that is added makes a new one, as an older program that
// writes the record back would lose it.
//
//	key                        format  value
//	/torus/cluster             1       id, created, replicas
//	/torus/nodes/NODE          1       name, addresses, zone, host, roles, capacity, identity, state
//	/torus/alive/NODE          1       usage (lease)
//	/torus/rings/N             1       ring, as package ring writes it; N in 16 hexadecimal digits
//	/torus/lineages/LINEAGE    1       replicas, min_copies, epoch, ring
//	/torus/volumes/NAME        1       id, size, lineage, head, clean, epoch, created
//	/torus/layers/LAYER        1       lineage, parent, sealed, deleted, forget, pending
//	/torus/attachments/VOLUME  1       epoch, holder, purpose, since (lease)
//	/torus/keeper              1       node, doing, since (lease)
//	/torus/incarnations/VOLUME/NODE 1  identity, incarnation
//	/torus/incarnations/VOLUME/NODE/RING 1 the same of what target ring RING adds
//	/torus/stale/LAYER/NODE    1       since, epoch, at, why
//	/torus/stale/LAYER/NODE/RING 1     the same of what target ring RING adds; fresh
//	/torus/reports/VOLUME      1       waiting, copies, at (lease)
//	/torus/recovery            1       recovery, at, node, from, confirmed
//	/torus/uncompared/VOLUME   1       served
//	/torus/scrubs/VOLUME       1       asked, answered, and how the newest is
//	/torus/placed/VOLUME       1       epoch, ring, target (lease)
//	/torus/losses/VOLUME       1       epoch, at
//	/torus/scrub-every         1       seconds
//	/torus/stopping/NODE       1       at (lease)
//	/torus/stop/NODE           1       by, at (lease)
//	/torus/wanted/VOLUME       1       holder, at (lease)
//	/torus/limits/NODE         1       repair_rate
const (
	keyRoot         = "/torus/"
	keyCluster      = keyRoot + "cluster"
	keyNodes        = keyRoot + "nodes/"
	keyAlive        = keyRoot + "alive/"
	keyRings        = keyRoot + "rings/"
	keyLineages     = keyRoot + "lineages/"
	keyVolumes      = keyRoot + "volumes/"
	keyLayers       = keyRoot + "layers/"
	keyAttachments  = keyRoot + "attachments/"
	keyIncarnations = keyRoot + "incarnations/"
	keyStale        = keyRoot + "stale/"
	keyScrubs       = keyRoot + "scrubs/"
	keyPlaced       = keyRoot + "placed/"
	keyLosses       = keyRoot + "losses/"
	keyScrubEvery   = keyRoot + "scrub-every"
	keyReports      = keyRoot + "reports/"
	keyRecovery     = keyRoot + "recovery"
	keyUncompared   = keyRoot + "uncompared/"
	keyStopping     = keyRoot + "stopping/"
	keyStop         = keyRoot + "stop/"
	keyWanted       = keyRoot + "wanted/"
	keyLimits       = keyRoot + "limits/"
)

// newestFormat is the format of every kind of record so far.
const newestFormat = 1

// hexID is an ID as it stands in keys and records.
type hexID uint64

// idKey returns the key of an ID's record.
func idKey[T ~uint64](prefix string, id T) string { return prefix + hexID(id).String() }

// String returns 16 hexadecimal digits.
func (id hexID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// MarshalText implements encoding.TextMarshaler.
func (id hexID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Only what String returns
// is taken, so that an ID has one key.
func (id *hexID) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil || hexID(n).String() != string(text) {
		return fmt.Errorf("%q is not an ID of 16 hexadecimal digits", text)
	}
	*id = hexID(n)
	return nil
}

// keyID returns the ID at the end of a key.
func keyID[T ~uint64](key, prefix string) (T, error) {
	var id hexID
	if err := id.UnmarshalText([]byte(strings.TrimPrefix(key, prefix))); err != nil {
		return 0, corrupt(key, "key: %v", err)
	}
	return T(id), nil
}

// format is the first field of every record.
type format struct {
	Format int `json:"format"`
}

func (f *format) setFormat() { f.Format = newestFormat }

// record is a value as it is stored.
type record interface {
	setFormat()
	check() error // what JSON does not see
}

// encode returns the value of a record in the newest format.
func encode(r record) []byte {
	r.setFormat()
	b, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("cluster: %T does not encode: %v", r, err)) // plain structs do
	}
	return b
}

// decode reads a value into r. A *RecordError otherwise.
func decode(key string, value []byte, r record) error {
	var f format
	if err := json.Unmarshal(value, &f); err != nil {
		return corrupt(key, "%v", err)
	}
	if f.Format > newestFormat {
		return &RecordError{Key: key, Err: ErrFormat,
			Detail: fmt.Sprintf("format %d, this program knows up to %d: it is too old", f.Format, newestFormat)}
	}
	if f.Format < 1 {
		return corrupt(key, "format %d", f.Format)
	}
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil { // that nothing follows, Unmarshal has seen
		return corrupt(key, "%v", err)
	}
	if err := r.check(); err != nil {
		return corrupt(key, "%v", err)
	}
	return nil
}

// corrupt returns a *RecordError that is ErrCorrupt.
func corrupt(key, format string, args ...any) error {
	return &RecordError{Key: key, Err: ErrCorrupt, Detail: fmt.Sprintf(format, args...)}
}
