package segment

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"torus/store"
)

func FuzzSegmentHeader(f *testing.F) {
	p := make([]byte, blockSize)
	f.Add(bytes.Clone(p))
	h := segmentHeader{identity: 1, nonce: 2, number: 3, stream: cold, sequence: 4, firstPos: 5, blocks: 6}
	h.encode(p)
	f.Add(bytes.Clone(p[:64]))
	f.Add(bytes.Clone(p))
	f.Fuzz(func(t *testing.T, in []byte) {
		p := make([]byte, blockSize)
		copy(p, in)
		h, err := decodeSegmentHeader(p)
		if err != nil {
			if !errors.Is(err, errBlank) && !errors.Is(err, store.ErrCorrupt) && !errors.Is(err, store.ErrInvalid) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again := make([]byte, blockSize)
		h.encode(again)
		back, err := decodeSegmentHeader(again)
		if err != nil || back != h {
			t.Fatalf("%+v came back as %+v, %v", h, back, err)
		}
	})
}

// seedBatch is a batch header with a record of each kind.
func seedBatch() (batchHeader, []record, []byte) {
	recs := []record{{kind: recData, count: 2, pos: 9, layer: 1, page: 7, version: 3, crcs: []uint32{1, 2}}}
	for k := recHole; k <= recLastKind; k++ {
		recs = append(recs, record{kind: k, flags: 1, count: uint32(k), pos: position(k), layer: 2, page: 3, version: 4, extra: 5})
	}
	h := batchHeader{nonce: 5, block: 3, pages: 2, prev: 8, firstPos: 9, synced: 4, count: uint32(len(recs))}
	p := encodeBatch(&h, recs)
	return h, recs, p
}

func encodeBatch(h *batchHeader, recs []record) []byte {
	h.length = batchFixedSize
	for i := range recs {
		h.length += uint32(recs[i].size())
	}
	p := make([]byte, int(h.headerBlocks())*blockSize)
	at := batchFixedSize
	for i := range recs {
		at += recs[i].encode(p[at:])
	}
	h.encode(p)
	return p
}

func FuzzBatchHeader(f *testing.F) {
	_, _, p := seedBatch()
	f.Add(p, true)
	f.Add(p[:batchFixedSize], false)
	f.Fuzz(func(t *testing.T, in []byte, mend bool) {
		p := make([]byte, max(len(in), blockSize))
		copy(p, in)
		h, ok := decodeBatchFixed(p, 5, 3, 1<<12)
		if !ok {
			return
		}
		if h.blocks() > 1<<12-3 || h.length > maxHeaderSize {
			t.Fatalf("%+v reaches beyond its segment", h)
		}
		if uint32(len(p)) < h.length {
			if _, err := h.decodeRecords(p, nil); !errors.Is(err, store.ErrCorrupt) {
				t.Fatalf("a header cut at %d of %d: %v", len(p), h.length, err)
			}
			return
		}
		if mend { // what is behind the checksum has to stand by itself
			h.sum = checksum(p[8:h.length])
		}
		recs, err := h.decodeRecords(p, nil)
		if err != nil {
			if !errors.Is(err, store.ErrCorrupt) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again := h
		q := encodeBatch(&again, recs)
		back, ok := decodeBatchFixed(q, 5, 3, 1<<12)
		if !ok || again.length != h.length {
			t.Fatalf("%+v came back as %+v", h, back)
		}
		recsBack, err := back.decodeRecords(q, nil)
		if err != nil || !reflect.DeepEqual(recs, recsBack) {
			t.Fatalf("%+v came back as %+v, %v", recs, recsBack, err)
		}
	})
}

func TestBatchRoundTrip(t *testing.T) {
	h, recs, p := seedBatch()
	got, ok := decodeBatchFixed(p, 5, 3, 1<<12)
	if !ok || got != h {
		t.Fatalf("%+v, want %+v", got, h)
	}
	back, err := got.decodeRecords(p, nil)
	if err != nil || !reflect.DeepEqual(back, recs) {
		t.Fatalf("%+v, %v, want %+v", back, err, recs)
	}
	for _, other := range []struct {
		nonce         uint64
		block, blocks uint32
	}{{6, 3, 1 << 12}, {5, 4, 1 << 12}, {5, 3, 3 + h.blocks() - 1}} {
		if _, ok := decodeBatchFixed(p, other.nonce, other.block, other.blocks); ok {
			t.Errorf("taken for one of %+v", other)
		}
	}
}

func FuzzBucket(f *testing.F) {
	key := bucketDBKey(bucketKey{1, 2})
	var pages [bucketPages]desc
	for i := range pages {
		switch {
		case i < 5:
			pages[i] = desc{loc: newLocation(1, uint32(10+i)), pos: 4, version: 5, crc: uint32(i), kind: store.Data}
		case i < 9:
			pages[i] = desc{loc: newLocation(2, 3), pos: 6, version: 7, kind: store.Hole}
		case i == 12:
			pages[i] = desc{loc: newLocation(3, 3), pos: 8, kind: store.Absent}
		}
	}
	v, _ := encodeBucket(key, 3, &pages)
	f.Add(v[4:])
	f.Fuzz(func(t *testing.T, in []byte) {
		var pages [bucketPages]desc
		gen, err := decodeBucket(in, &pages)
		if err != nil {
			if !errors.Is(err, errDoubt) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		v, some := encodeBucket(key, gen, &pages)
		v, err = unseal(key, v)
		if err != nil {
			t.Fatal(err)
		}
		var back [bucketPages]desc
		if g, err := decodeBucket(v, &back); err != nil || g != gen {
			t.Fatalf("%+v came back with generation %d, %v", pages, g, err)
		}
		for i := range pages {
			if pages[i].pos == 0 {
				pages[i] = desc{} // nothing
			}
		}
		if some != (pages != [bucketPages]desc{}) || back != pages {
			t.Fatalf("%+v came back as %+v, some %v", pages, back, some)
		}
	})
}

func FuzzIndexTable(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		verifyTable(in) // no panic
	})
}
