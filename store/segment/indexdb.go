package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"torus/store"
)

// errDoubt says that Badger does not have what it must have. Its damage can
// look like absence, so nothing is concluded from a missing key: what exists
// is known from elsewhere, and a value that is not the expected one is doubt.
// The cure is a rebuild from the segments.
var errDoubt = errors.New("the index contradicts itself")

// Keys begin with a letter for what they name; numbers are big endian, so that
// they sort. Every value begins with a CRC32C of key and rest.
//
//	b layer(8) page/16(8)   bucket: generation(1) runs(1), then by run:
//	                        first<<4|count-1 (1) kind(1) location(8) pos(8) version(8), CRC32C(4) by page of Data
//	c layer(8) chunk(4)     generations(64) highest version(8)
//	s segment(4)            live(4) tombs(4) used(4) zero(4), then by layer: layer(8) oldest position(8)
//	l layer(8)              live pages(8)
//	t number(4)             records (format.go) of the tables beside the index
//	m                       meta
//
// The records of c, s, l and t are counted and summed in m, so that the loss of
// any is noticed at start.
const (
	keyBucket  = 'b'
	keyChunk   = 'c'
	keySegment = 's'
	keyLayer   = 'l'
	keyTables  = 't'
	keyMeta    = 'm'
)

type indexDB struct {
	db *badger.DB

	// view is what the last commit left; buckets are read through it. A
	// transaction that begins during a commit waits until that has ended, which
	// takes as long as writing 20,000 buckets.
	mu   sync.RWMutex // held for reading while view is read; a commit takes it only to change view
	view *badger.Txn
}

// openIndexDB opens Badger, set to need little memory for an index (FACTS).
func openIndexDB(dir string, memtable int64, log badger.Logger) (*indexDB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := verifyTables(dir); err != nil {
		return nil, err
	}
	o := badger.DefaultOptions(dir).
		WithLogger(log).WithSyncWrites(true).WithDetectConflicts(false).
		WithMemTableSize(memtable).WithNumMemtables(2).WithNumLevelZeroTables(2).
		WithBaseTableSize(8 << 20).WithBaseLevelSize(64 << 20).
		WithCompression(options.None).WithBlockCacheSize(0).WithIndexCacheSize(0).
		WithNumCompactors(2).WithValueLogFileSize(1 << 20).WithMetricsEnabled(false).
		WithChecksumVerificationMode(options.NoVerification) // verifyTables did
	db, err := badger.Open(o)
	if err != nil && emptyMemtable(dir) {
		// A kill during rotation can leave an empty memtable, with which one
		// open fails and the next succeeds.
		db, err = badger.Open(o)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errDoubt, err)
	}
	return &indexDB{db: db, view: db.NewTransaction(false)}, nil
}

func emptyMemtable(dir string) bool {
	names, _ := filepath.Glob(filepath.Join(dir, "*.mem"))
	return len(names) > 0
}

func (x *indexDB) close() error {
	x.view.Discard()
	return x.db.Close()
}

// commit commits a flush. What the index expects of a bucket afterwards is what
// commit left: a bucket that a flush writes is in memory until that has ended.
func (x *indexDB) commit(txn *badger.Txn) error {
	if err := txn.Commit(); err != nil {
		return err
	}
	next := x.db.NewTransaction(false)
	x.mu.Lock()
	last := x.view
	x.view = next
	x.mu.Unlock()
	last.Discard()
	return nil
}

func bucketDBKey(k bucketKey) []byte {
	p := make([]byte, 17)
	p[0] = keyBucket
	binary.BigEndian.PutUint64(p[1:], uint64(k.layer))
	binary.BigEndian.PutUint64(p[9:], k.n)
	return p
}

func chunkDBKey(l store.LayerID, chunk uint32) []byte {
	p := make([]byte, 13)
	p[0] = keyChunk
	binary.BigEndian.PutUint64(p[1:], uint64(l))
	binary.BigEndian.PutUint32(p[9:], chunk)
	return p
}

func segmentDBKey(n segNum) []byte {
	return binary.BigEndian.AppendUint32([]byte{keySegment}, uint32(n))
}

func layerDBKey(l store.LayerID) []byte {
	return binary.BigEndian.AppendUint64([]byte{keyLayer}, uint64(l))
}

// seal puts the checksum of key and value into the value's first four bytes.
func seal(key, value []byte) []byte {
	binary.LittleEndian.PutUint32(value, sealSum(key, value))
	return value
}

func sealSum(key, value []byte) uint32 {
	h := checksum(key)
	return h ^ checksum(value[4:])*0x9e3779b1
}

// unseal returns the value without its checksum.
func unseal(key, value []byte) ([]byte, error) {
	if len(value) < 4 || binary.LittleEndian.Uint32(value) != sealSum(key, value) {
		return nil, fmt.Errorf("%w: value of %x fails its checksum", errDoubt, key)
	}
	return value[4:], nil
}

// recordSum is what a counted record adds to its table's sum in the meta record.
func recordSum(key, value []byte) uint64 {
	h := fnv.New64a()
	h.Write(key)
	h.Write(value)
	return h.Sum64()
}

// bucket reads a bucket of which the generation is known.
func (x *indexDB) bucket(k bucketKey, gen uint8, pages *[bucketPages]desc) error {
	key := bucketDBKey(k)
	x.mu.RLock()
	defer x.mu.RUnlock()
	item, err := x.view.Get(key)
	if err != nil {
		return fmt.Errorf("%w: bucket %v of layer %v: %v", errDoubt, k.n, k.layer, err)
	}
	return item.Value(func(v []byte) error {
		v, err := unseal(key, v)
		if err != nil {
			return err
		}
		found, err := decodeBucket(v, pages)
		if err == nil && found != gen {
			err = fmt.Errorf("%w: bucket %v of layer %v has generation %d, expected %d", errDoubt, k.n, k.layer, found, gen)
		}
		return err
	})
}

const bucketRunSize = 26

func sameRun(a, b *desc, apart int) bool {
	if a.kind != b.kind || a.pos != b.pos || a.version != b.version {
		return false
	}
	if a.kind == store.Data {
		return b.loc == a.loc+location(apart)
	}
	return b.loc == a.loc
}

// encodeBucket appends a sealed value for key, and reports false where no page
// has anything.
func encodeBucket(key []byte, gen uint8, pages *[bucketPages]desc) ([]byte, bool) {
	v := make([]byte, 6, 6+4*bucketRunSize+4*bucketPages)
	v[4] = gen
	le := binary.LittleEndian
	for i := 0; i < bucketPages; {
		d := &pages[i]
		if d.pos == 0 {
			i++
			continue
		}
		n := 1
		for i+n < bucketPages && pages[i+n].pos != 0 && sameRun(d, &pages[i+n], n) {
			n++
		}
		v = append(v, byte(i<<4|(n-1)), byte(d.kind))
		v = le.AppendUint64(v, uint64(d.loc))
		v = le.AppendUint64(v, uint64(d.pos))
		v = le.AppendUint64(v, uint64(d.version))
		if d.kind == store.Data {
			for j := range n {
				v = le.AppendUint32(v, pages[i+j].crc)
			}
		}
		v[5]++
		i += n
	}
	return seal(key, v), v[5] != 0
}

func decodeBucket(v []byte, pages *[bucketPages]desc) (gen uint8, err error) {
	bad := fmt.Errorf("%w: malformed bucket", errDoubt)
	if len(v) < 2 {
		return 0, bad
	}
	gen, runs, v := v[0], int(v[1]), v[2:]
	le := binary.LittleEndian
	for range runs {
		if len(v) < bucketRunSize {
			return 0, bad
		}
		first, n := int(v[0]>>4), int(v[0]&15)+1
		d := desc{kind: store.Kind(v[1]), loc: location(le.Uint64(v[2:])), pos: position(le.Uint64(v[10:])), version: store.Version(le.Uint64(v[18:]))}
		v = v[bucketRunSize:]
		if first+n > bucketPages || d.kind > store.Hole || d.kind == store.Data && len(v) < 4*n {
			return 0, bad
		}
		for j := range n {
			p := d
			if d.kind == store.Data {
				p.loc += location(j)
				p.crc, v = le.Uint32(v), v[4:]
			}
			pages[first+j] = p
		}
	}
	if len(v) != 0 {
		return 0, bad
	}
	return gen, nil
}

// table counts and sums the records of one letter.
type table struct{ count, sum uint64 }

// meta is what the index covers: every record up to its log point. A point in
// segment 0 is that of a rebuild under way.
//
//	4 format(4) 8 applied(8) 16 segment(4) 20 block(4) 24 chain(4) 28 zero(4) 32.. count and sum of c, s, l and t
type meta struct {
	logPoint
	chunks, segs, layers, tables table
}

const metaSize = 96

func (m *meta) counted() []*table { return []*table{&m.chunks, &m.segs, &m.layers, &m.tables} }

func (m *meta) encode() []byte {
	v := make([]byte, 32, metaSize)
	le := binary.LittleEndian
	le.PutUint32(v[4:], FormatVersion)
	le.PutUint64(v[8:], uint64(m.applied))
	le.PutUint32(v[16:], uint32(m.segment))
	le.PutUint32(v[20:], m.block)
	le.PutUint32(v[24:], m.chain)
	for _, t := range m.counted() {
		v = le.AppendUint64(v, t.count)
		v = le.AppendUint64(v, t.sum)
	}
	return seal([]byte{keyMeta}, v)
}

// meta returns the meta record; ok is false in an index that was never written.
func (x *indexDB) meta() (m meta, ok bool, err error) {
	key := []byte{keyMeta}
	err = x.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%w: %v", errDoubt, err)
		}
		return item.Value(func(v []byte) error {
			body, err := unseal(key, v)
			if err != nil || len(v) != metaSize {
				return fmt.Errorf("%w: meta record is damaged", errDoubt)
			}
			le := binary.LittleEndian
			if f := le.Uint32(body); f != FormatVersion {
				return &FormatError{File: "index", Found: f}
			}
			ok = true
			m.logPoint = logPoint{position(le.Uint64(v[8:])), segNum(le.Uint32(v[16:])), le.Uint32(v[20:]), le.Uint32(v[24:])}
			for i, t := range m.counted() {
				t.count, t.sum = le.Uint64(v[32+16*i:]), le.Uint64(v[40+16*i:])
			}
			return nil
		})
	})
	return m, ok, err
}

// each calls f for every record of one letter, unsealed, and compares their
// number and sum with what the meta record says.
func (x *indexDB) each(letter byte, want table, f func(key, value []byte, sum uint64) error) error {
	var got table
	err := x.db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.Prefix, o.PrefetchValues = []byte{letter}, false
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			key := it.Item().KeyCopy(nil)
			err := it.Item().Value(func(v []byte) error {
				body, err := unseal(key, v)
				if err != nil {
					return err
				}
				sum := recordSum(key, v)
				got.count++
				got.sum += sum
				return f(key[1:], body, sum)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && got != want {
		err = fmt.Errorf("%w: %d records %q with sum %x, expected %d with sum %x", errDoubt, got.count, letter, got.sum, want.count, want.sum)
	}
	return err
}
