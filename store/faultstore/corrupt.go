package faultstore

import (
	"fmt"

	"torus/store"
)

// corrupted returns the error of the first page of a read, as info has it, that
// a fault among those that befall the request makes corrupt. p is garbage then,
// so that nobody comes to rely on it.
func (s *Store) corrupted(found []*active, q request, info []store.PageInfo, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range info[:len(p)/store.PageSize] {
		off := q.off + int64(i)*store.PageSize
		for _, f := range found {
			if info[i].Kind == store.Data && f.corrupts(info[i].Layer, off) {
				for j := range p {
					p[j] = 0xdb
				}
				return &store.CorruptError{Layer: info[i].Layer, Off: off, Detail: fmt.Sprintf("injected: %v", f.Fault)}
			}
		}
	}
	return nil
}

// wantsInfo says whether a read must know where its pages come from.
func wantsInfo(found []*active) bool {
	for _, f := range found {
		if f.Effect == Corrupt {
			return true
		}
	}
	return false
}

// infoOfChain guesses where the pages of a read come from.
func infoOfChain(found []*active, q request) []store.PageInfo {
	info := make([]store.PageInfo, q.n/store.PageSize)
	for _, f := range found {
		if f.Effect != Corrupt || len(q.layers) == 0 {
			continue
		}
		from := f.Layer
		if from == 0 {
			from = q.layers[0]
		}
		for i := range info {
			info[i] = store.PageInfo{Layer: from, Kind: store.Data}
		}
		break
	}
	return info
}

// corrupts says whether a page is corrupt. The caller holds the store's mu.
func (f *active) corrupts(layer store.LayerID, off int64) bool {
	if f.Effect != Corrupt || f.Layer != 0 && f.Layer != layer || f.End != 0 && (off >= f.End || off+store.PageSize <= f.Off) {
		return false
	}
	for _, h := range f.healed {
		if h.layer == layer && h.off <= off && off < h.end {
			return false
		}
	}
	return true
}

// heal makes sound what was written.
func (s *Store) heal(layer store.LayerID, off, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if f.Effect == Corrupt {
			f.healed = append(f.healed, region{layer, off, off + n})
		}
	}
}
