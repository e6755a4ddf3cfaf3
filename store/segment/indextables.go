package segment

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4/fb"
)

// Badger trusts the lengths in its tables before it has verified a checksum,
// in goroutines of its own: a flipped bit there ends the process, at every
// start. So the tables are verified before it opens them, and it does not
// verify them again.
//
// A table (Badger 4), numbers big endian:
//
//	blocks, each: entries, their offsets (4 each), number of entries (4), checksum, its length (4)
//	index (flatbuffer: where each block is), its length (4), checksum of the index, its length (4)
//
// A checksum is a protobuf message: algorithm 1:enum (left out for CRC32C, the
// only one used), sum 2:varint (left out when 0).

// verifyTables returns errDoubt if a table in dir is damaged.
func verifyTables(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		return err
	}
	for _, name := range names {
		p, err := os.ReadFile(name)
		if err == nil {
			err = verifyTable(p)
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %v", errDoubt, filepath.Base(name), err)
		}
	}
	return nil
}

func verifyTable(p []byte) (err error) {
	// The index holds what its checksum says; a flatbuffer is all offsets, though.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed index: %v", r)
		}
	}()
	p, sum, err := cutChecksum(p)
	if err != nil {
		return err
	}
	p, n, err := cutLength(p)
	if err != nil {
		return err
	}
	index := p[len(p)-n:]
	if uint64(checksum(index)) != sum {
		return fmt.Errorf("checksum of the index")
	}
	t := fb.GetRootAsTableIndex(index, 0)
	for i := range t.OffsetsLength() {
		var at fb.BlockOffset
		if !t.Offsets(&at, i) {
			return fmt.Errorf("block %d is not in the index", i)
		}
		off, end := int64(at.Offset()), int64(at.Offset())+int64(at.Len())
		if end > int64(len(p)-n) {
			return fmt.Errorf("block %d ends at %d of %d", i, end, len(p)-n)
		}
		block, sum, err := cutChecksum(p[off:end])
		if err != nil {
			return err
		}
		if uint64(checksum(block)) != sum {
			return fmt.Errorf("checksum of block %d", i)
		}
	}
	return nil
}

// cutLength takes a length off the end of p, which leaves at least as much.
func cutLength(p []byte) ([]byte, int, error) {
	if len(p) < 4 {
		return nil, 0, fmt.Errorf("cut at %d bytes", len(p))
	}
	n := binary.BigEndian.Uint32(p[len(p)-4:])
	p = p[:len(p)-4]
	if int64(n) > int64(len(p)) {
		return nil, 0, fmt.Errorf("a length of %d in %d bytes", n, len(p))
	}
	return p, int(n), nil
}

// cutChecksum takes a checksum and its length off the end of p.
func cutChecksum(p []byte) (rest []byte, sum uint64, err error) {
	p, n, err := cutLength(p)
	if err != nil {
		return nil, 0, err
	}
	rest, message := p[:len(p)-n], p[len(p)-n:]
	if n == 0 {
		return rest, 0, nil
	}
	const sumTag = 2 << 3
	sum, used := binary.Uvarint(message[1:])
	if message[0] != sumTag || used != n-1 {
		return nil, 0, fmt.Errorf("unknown checksum %x", message)
	}
	return rest, sum, nil
}
