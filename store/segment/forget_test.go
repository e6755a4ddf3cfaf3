package segment

import (
	"testing"

	"torus/store"
)

// A layer is forgotten while writers flush: what they record of it is not read
// amid that. (The race detector tells.)
func TestForgetAmidFlushes(t *testing.T) {
	st, r := openLarge(t, 2)
	flushed := make(chan error)
	stop := make(chan struct{})
	go func() {
		var err error
		for i := int64(0); err == nil; i++ {
			select {
			case <-stop:
				flushed <- nil
				return
			default:
			}
			if err = trim(t, r, 1, i%8); err == nil {
				err = st.flush()
			}
		}
		flushed <- err
	}()
	for id := store.LayerID(10); id < 30; id++ {
		if err := r.Create(t.Context(), id, 0); err != nil {
			t.Fatal(err)
		}
		if err := st.Drop(t.Context(), id, store.AllChunks); err != nil {
			t.Fatal(err)
		}
		if err := st.flush(); err != nil {
			t.Fatal(err)
		}
		st.forget()
		if st.tables.entryIfThere(id) != nil {
			t.Fatalf("layer %v is not forgotten", id)
		}
	}
	close(stop)
	if err := <-flushed; err != nil {
		t.Fatal(err)
	}
}
