package volume_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"torus/cluster"
	"torus/ring"
	"torus/store"
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
	i := slices.IndexFunc(pairs, func(p cluster.Pair) bool { return isKeyOf(p.Key, n) })
	if i < 0 {
		return cluster.Pair{}, false
	}
	return pairs[i], true
}

// staleEpoch returns the epoch under which a node was recorded last to lack something.
func (w *world) staleEpoch(n *simNode) (e store.Epoch, is bool) {
	p, is := hasKey(w.pairs(staleKeys), n)
	var r struct{ Epoch store.Epoch }
	if is && json.Unmarshal(p.Value, &r) != nil {
		w.fail("record %s can't be read", p.Key)
	}
	return r.Epoch, is
}

// sinceOf returns up to which version a stale record says that its node has all.
func (w *world) sinceOf(record []byte) store.Version {
	var r struct{ Since string }
	var epoch, sequence uint64
	err := json.Unmarshal(record, &r)
	if err == nil {
		_, err = fmt.Sscanf(r.Since, "%d.%d", &epoch, &sequence)
	}
	if err != nil {
		w.fail("record %s can't be read: %v", record, err)
	}
	return store.NewVersion(store.Epoch(epoch), sequence)
}

// nodeOf returns the node that a key is about.
func (w *world) nodeOf(key string) *simNode {
	id, _ := copyIn(key)
	if id == 0 || int(id) > len(w.nodes) {
		w.fail("record %s is about no node", key)
		return w.nodes[0]
	}
	return w.node(id)
}

// isKeyOf reports whether a key is about a node's copies by the ring.
func isKeyOf(key string, n *simNode) bool {
	id, target := copyIn(key)
	return id == n.id && target == 0
}

// copyIn returns the node that a key is about, and the target ring; 0: by the ring.
func copyIn(key string) (node ring.NodeID, target uint64) {
	parts := strings.Split(key, "/") // "", torus, what, of what, node, perhaps target
	if len(parts) > 4 {
		id, _ := strconv.ParseUint(parts[4], 16, 64) // 0: no node
		node = ring.NodeID(id)
	}
	if len(parts) > 5 {
		target, _ = strconv.ParseUint(parts[5], 16, 64)
	}
	return node, target
}

// stale reports whether a node is recorded to lack something.
func (w *world) stale(n *simNode) bool {
	_, is := hasKey(w.pairs(staleKeys), n)
	return is
}

// inSync returns a test of nodes: nothing is recorded that a node lacks, and it
// has the disk that is recorded.
func (w *world) inSync() func(*simNode) bool {
	stale, recorded := w.pairs(staleKeys), w.pairs(incarnationKeys)
	return func(n *simNode) bool {
		_, is := hasKey(stale, n)
		return !is && w.recordedDisk(recorded, n)
	}
}

// recordedDisk reports whether a node has the disk that the records say it had.
func (w *world) recordedDisk(recorded []cluster.Pair, n *simNode) bool {
	p, is := hasKey(recorded, n)
	return !is || w.isDisk(p, n)
}

// isDisk reports whether a node has the disk that a record says it had.
func (w *world) isDisk(record cluster.Pair, n *simNode) bool {
	var r struct{ Identity string }
	if json.Unmarshal(record.Value, &r) != nil {
		w.fail("record %s can't be read", record.Key)
	}
	return r.Identity == fmt.Sprintf("%016x", uint64(n.diskNow().identity))
}

// current returns the copies of a page that have all that was acknowledged.
func (w *world) current(page int64) []*simNode {
	inSync := w.inSync()
	return slices.DeleteFunc(w.copies(page), func(n *simNode) bool { return !inSync(n) })
}
