package volume_test

import (
	"context"
	"fmt"
	"io"
	"strings"

	"torus/ring"
	"torus/store"
	"torus/store/memstore"
	"torus/volume"
)

// A volume over one store, used as any random-access file is. A real program
// opens a store/segment on a directory, or dials nodes with store/remote, and
// takes a fresh epoch for each Open from package cluster.
func Example() {
	s := memstore.New()
	defer s.Close()

	const local = ring.NodeID(1)
	v, err := volume.Open(context.Background(), volume.Options{
		ID:     0x7001,
		Epoch:  1,                   // higher than any before: who held the volume is fenced
		Chain:  []store.LayerID{42}, // the head; snapshots would follow
		Size:   1 << 30,
		Stores: map[ring.NodeID]store.Store{local: s},
		Place:  func(ring.ChunkIndex) []ring.NodeID { return []ring.NodeID{local} },
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	// An io.WriterAt, at any offset and length.
	w := io.NewOffsetWriter(v, 1000)
	if _, err := io.Copy(w, strings.NewReader("hello, volume")); err != nil {
		fmt.Println(err)
		return
	}
	// From here on it survives a power cut too.
	if err := v.Sync(); err != nil {
		fmt.Println(err)
		return
	}

	// An io.ReaderAt.
	text, err := io.ReadAll(io.NewSectionReader(v, 1007, 6))
	fmt.Printf("%s %v\n", text, err)

	for e, err := range v.Extents(0, v.Size()) {
		fmt.Println(e, err)
	}
	fmt.Println("closed:", v.Close())
	// Output:
	// volume <nil>
	// [0,4096) data <nil>
	// [4096,1073741824) hole <nil>
	// closed: <nil>
}
