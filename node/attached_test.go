package node

import (
	"testing"
	"time"

	"torus/cluster"
)

// TestHeldUntil: one who served may answer reads until its lease is over, also
// when whoever took the volume from it is gone already; and nobody after a clean
// detach.
func TestHeldUntil(t *testing.T) {
	n, _ := newTestNode(t)
	now, lease := time.Now(), 10*time.Second
	attach := func(pid int) *cluster.Attachment {
		t.Helper()
		h := cluster.Holder{Name: "x", Process: cluster.Process{BootID: "boot", PID: pid}}
		att, err := n.cluster.Attach(t.Context(), "vol1", h, cluster.AttachOptions{Force: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { att.Detach(t.Context(), false) })
		return att
	}
	want := func(what string, att *cluster.Attachment, is time.Time) {
		t.Helper()
		if got := heldUntil(att, now, lease); !got.Equal(is) {
			t.Errorf("%s: held until %v, want %v", what, got, is)
		}
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	first := attach(1)
	want("never served", first, time.Time{})
	ok(first.Serving(t.Context(), nil, nil))
	second := attach(2)
	want("taken by force", second, now.Add(lease))
	ok(second.Detach(t.Context(), false))
	third := attach(3)
	if third.Replaced != nil {
		t.Fatalf("replaced %v", third.Replaced)
	}
	want("taken from one that never served", third, now.Add(lease))
	ok(third.Serving(t.Context(), nil, nil))
	ok(third.Detach(t.Context(), true))
	want("detached cleanly", attach(4), time.Time{})
}
