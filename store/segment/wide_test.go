package segment

import (
	"math/rand/v2"
	"testing"

	"torus/store"
)

// Every page's state under random statements about pages and chunks must be
// what it is when each statement is applied to each page by itself.
func TestWideAgainstPages(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		const chunks = 6
		var spans []span
		var pages [chunks]desc // one page a chunk, as the index has it
		var model [chunks]desc
		for pos := position(1); pos < 60; pos++ {
			v := store.NewVersion(store.Epoch(1+rng.IntN(3)), uint64(rng.IntN(8)))
			first := rng.Uint32N(chunks)
			end := first + 1 + rng.Uint32N(chunks-first)
			switch rng.IntN(4) {
			case 0: // a page is written
				if now := resolve(&pages[first], spanAt(spans, first)); v > now.version {
					pages[first] = desc{kind: store.Data, version: v, pos: pos}
					model[first] = pages[first]
				}
			case 1: // a page is adopted, at any version
				pages[first] = desc{kind: store.Data, version: v, pos: pos}
				model[first] = pages[first]
			default:
				kind, below := store.Hole, v
				if rng.IntN(4) == 0 {
					kind, v, below = store.Absent, 0, anyVersion
				} else if rng.IntN(3) == 0 {
					below = max(v+1, store.NewVersion(2, 0))
				}
				w := &wide{kind: kind, version: v, pos: pos, killers: []killer{{pos, below}}}
				for c := first; c < end; c++ {
					if w.killers[0].supersedes(spanAt(spans, c)) {
						spans = overlay(spans, c, c+1, w)
					} else if now := resolve(&pages[c], spanAt(spans, c)); now.version < below {
						pages[c] = w.desc()
					}
					if model[c].version < below {
						model[c] = w.desc()
					}
				}
			}
			for c := range uint32(chunks) {
				if got := resolve(&pages[c], spanAt(spans, c)); got != model[c] {
					t.Fatalf("seed %d, position %d, chunk %d: %+v, want %+v", seed, pos, c, got, model[c])
				}
			}
		}
	}
}
