package remote

import (
	"encoding/binary"
	"fmt"

	"torus/store"
)

// Bodies of answers.
//
//	page infos, behind the pages of a read, one for each run of pages alike:
//	    u64 layer, u64 version, u32 pages, u8 kind, 3 zeroes
//	extent   u64 offset, u64 length, u64 version, u64 kind
//	layer    u64 ID, u64 parent, u64 bytes, u64 stable, u64 settled
//	fence    u64 volume, u64 epoch
//	attach   u64 incarnation
//	stat     u64 identity, incarnation, capacity, used, live, corrupt, writes,
//	         reads, syncs, bytes written, read, to disk, collected, u64 1 if
//	         there is no space, then the text why it failed
const (
	extentSize = 32
	layerSize  = 40
	fenceSize  = 16
	attachSize = 8
	statFixed  = 14 * 8
)

var le = binary.LittleEndian

// appendRuns encodes the infos of a read's pages.
func appendRuns(b []byte, infos []store.PageInfo) []byte {
	for i := 0; i < len(infos); {
		n := i + 1
		for n < len(infos) && infos[n] == infos[i] {
			n++
		}
		b = le.AppendUint64(b, uint64(infos[i].Layer))
		b = le.AppendUint64(b, uint64(infos[i].Version))
		b = le.AppendUint32(b, uint32(n-i))
		b = append(b, uint8(infos[i].Kind), 0, 0, 0)
		i = n
	}
	return b
}

// decodeRun fills infos from its start with one run of runSize bytes and
// returns the rest.
func decodeRun(b []byte, infos []store.PageInfo) ([]store.PageInfo, error) {
	n := int64(le.Uint32(b[16:]))
	if n == 0 || n > int64(len(infos)) {
		return nil, fmt.Errorf("infos of %d pages where %d are left", n, len(infos))
	}
	info := store.PageInfo{Layer: store.LayerID(le.Uint64(b)), Version: store.Version(le.Uint64(b[8:])), Kind: store.Kind(b[20])}
	for i := range infos[:n] {
		infos[i] = info
	}
	return infos[n:], nil
}

func appendExtent(b []byte, e store.Extent) []byte {
	b = le.AppendUint64(b, uint64(e.Off))
	b = le.AppendUint64(b, uint64(e.N))
	b = le.AppendUint64(b, uint64(e.Version))
	return le.AppendUint64(b, uint64(e.Kind))
}

func decodeExtent(b []byte) store.Extent {
	return store.Extent{Off: int64(le.Uint64(b)), N: int64(le.Uint64(b[8:])),
		Version: store.Version(le.Uint64(b[16:])), Kind: store.Kind(b[24])}
}

func appendLayer(b []byte, l store.LayerInfo) []byte {
	for _, x := range [...]uint64{uint64(l.ID), uint64(l.Parent), uint64(l.Bytes), uint64(l.Stable), uint64(l.Settled)} {
		b = le.AppendUint64(b, x)
	}
	return b
}

func decodeLayer(b []byte) store.LayerInfo {
	return store.LayerInfo{ID: store.LayerID(le.Uint64(b)), Parent: store.LayerID(le.Uint64(b[8:])), Bytes: int64(le.Uint64(b[16:])),
		Stable: store.Version(le.Uint64(b[24:])), Settled: store.Version(le.Uint64(b[32:]))}
}

func appendFence(b []byte, f store.Fence) []byte {
	return le.AppendUint64(le.AppendUint64(b, uint64(f.Volume)), uint64(f.Epoch))
}

func decodeFence(b []byte) store.Fence {
	return store.Fence{Volume: store.VolumeID(le.Uint64(b)), Epoch: store.Epoch(le.Uint64(b[8:]))}
}

// numbers are the fields of a stat in their order on the wire.
func numbers(s *store.Stat) [11]*int64 {
	return [...]*int64{&s.Capacity, &s.Used, &s.Live, &s.Corrupt, &s.Writes, &s.Reads, &s.Syncs,
		&s.BytesWritten, &s.BytesRead, &s.BytesToDisk, &s.BytesCollected}
}

func appendStat(b []byte, s store.Stat) []byte {
	b = le.AppendUint64(b, uint64(s.Identity))
	b = le.AppendUint64(b, uint64(s.Incarnation))
	for _, n := range numbers(&s) {
		b = le.AppendUint64(b, uint64(*n))
	}
	full := uint64(0)
	if s.NoSpace {
		full = 1
	}
	b = le.AppendUint64(b, full)
	return append(b, s.Failed[:min(len(s.Failed), maxErrorBody)]...)
}

func decodeStat(b []byte) (store.Stat, error) {
	if len(b) < statFixed {
		return store.Stat{}, fmt.Errorf("stat of %d bytes, at least %d", len(b), statFixed)
	}
	s := store.Stat{Identity: store.Identity(le.Uint64(b)), Incarnation: store.Incarnation(le.Uint64(b[8:])),
		NoSpace: le.Uint64(b[104:]) != 0, Failed: string(b[statFixed:])}
	for i, n := range numbers(&s) {
		*n = int64(le.Uint64(b[16+8*i:]))
	}
	return s, nil
}
