package volume_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"torus/cluster"
)

// The records as the model reads them: at this moment, past all that befalls
// those who reach them through simKV.

const (
	staleKeys       = "/torus/stale/"
	incarnationKeys = "/torus/incarnations/"
)

// pairs returns the records whose keys begin with prefix.
func (w *world) pairs(prefix string) []cluster.Pair {
	pairs, _, err := w.kv.Range(context.Background(), prefix, 0)
	if err != nil {
		w.fail("the records can't be read: %v", err)
	}
	return pairs
}

// hasKey finds the record of a node below a prefix.
func hasKey(pairs []cluster.Pair, n *simNode) (cluster.Pair, bool) {
	i := slices.IndexFunc(pairs, func(p cluster.Pair) bool { return strings.HasSuffix(p.Key, fmt.Sprintf("/%016x", uint64(n.id))) })
	if i < 0 {
		return cluster.Pair{}, false
	}
	return pairs[i], true
}

// stale reports whether a node is recorded to lack something.
func (w *world) stale(n *simNode) bool {
	_, is := hasKey(w.pairs(staleKeys), n)
	return is
}

// current returns the copies of a page that have all that was acknowledged:
// nothing else is recorded, and they have the disk that is.
func (w *world) current(page int64) []*simNode {
	stale, recorded := w.pairs(staleKeys), w.pairs(incarnationKeys)
	return slices.DeleteFunc(w.copies(page), func(n *simNode) bool {
		if _, is := hasKey(stale, n); is {
			return true
		}
		p, is := hasKey(recorded, n)
		var r struct{ Identity string }
		if is && json.Unmarshal(p.Value, &r) != nil {
			w.fail("record %s can't be read", p.Key)
		}
		return is && r.Identity != fmt.Sprintf("%016x", uint64(n.diskNow().identity))
	})
}
