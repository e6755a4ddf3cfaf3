package remote_test

import (
	"errors"
	"testing"
	"time"

	"torus/store"
	"torus/store/memstore"
	"torus/store/remote"
)

// TestRestartIsTransparent: a killed process keeps its incarnation, so what
// attached to it goes on with the next, without attaching (N2).
func TestRestartIsTransparent(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	r := attach(t, h.client(), epoch)
	write(t, r, 0, 1)
	for i := range uint64(3) {
		h.down()
		h.up()
		has(t, r, int64(i), i+1)
		write(t, r, int64(i)+1, i+2)
		ok(t, r.Sync(t.Context()))
	}
}

// TestRequestsWaitForARestart: those under way when the process dies, and
// those begun while there is none.
func TestRequestsWaitForARestart(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	c := h.client()
	r := attach(t, c, epoch)
	h.inject("writes hang")
	done := make(chan error, 2)
	begin := func(index int64) {
		go func() { done <- r.Write(t.Context(), layer, index*ps, page(index, 1), v(1), 0) }()
	}
	begin(0)
	eventually(t, "the write is at the store", func() bool { return h.server.Stats().Running == 1 })
	h.stopServer()
	begin(1)
	h.disk.Kill()
	h.up()
	ok(t, errors.Join(<-done, <-done))
	has(t, r, 0, 1)
	has(t, r, 1, 1)
}

// TestRestartWithAnotherIncarnation ends what was attached before.
func TestRestartWithAnotherIncarnation(t *testing.T) {
	h := newHost(t)
	c := h.client()
	r := attach(t, c, epoch)
	write(t, r, 0, 1)
	h.disk.PowerCut()
	h.down()
	h.up()
	fails(t, r.Write(t.Context(), layer, 0, page(0, 2), v(2), 0), store.ErrIncarnation)
	fails(t, r.Read(t.Context(), []store.LayerID{layer}, 0, make([]byte, ps), nil), store.ErrIncarnation)
	again := attach(t, c, epoch)
	if again.Incarnation() == r.Incarnation() {
		t.Fatal("the incarnation has not changed")
	}
	has(t, again, 0, 1)
	fails(t, r.Sync(t.Context()), store.ErrIncarnation) // still
}

// TestFailedSyncChangesTheIncarnation while the process goes on.
func TestFailedSyncChangesTheIncarnation(t *testing.T) {
	h := newHost(t)
	c := h.client()
	r := attach(t, c, epoch)
	h.inject("syncs fail once")
	fails(t, r.Sync(t.Context()), store.ErrFailed)
	fails(t, r.Sync(t.Context()), store.ErrIncarnation)
	again := attach(t, c, epoch)
	write(t, again, 0, 1)
	fails(t, r.Write(t.Context(), layer, 0, page(0, 2), v(2), 0), store.ErrIncarnation)
	has(t, again, 0, 1)
}

// TestRestartKeepsFences: neither a lower epoch nor one that is not on record
// is attached by what comes after a restart (I1).
func TestRestartKeepsFences(t *testing.T) {
	h := newHost(t)
	c := h.client()
	r := attach(t, c, epoch)
	write(t, r, 0, 1)
	_, err := c.Attach(t.Context(), volume, epoch+1)
	ok(t, err)
	h.down()
	h.up()
	err = r.Write(t.Context(), layer, 0, page(0, 2), v(2), 0)
	var fenced *store.FencedError
	if !errors.As(err, &fenced) || *fenced != (store.FencedError{Volume: volume, Epoch: epoch, Recorded: epoch + 1}) {
		t.Fatalf("got error %v", err)
	}
}

// TestForgottenStaysForgotten: a late request of a volume that is gone makes
// no fence for it, also in a new process.
func TestForgottenStaysForgotten(t *testing.T) {
	h := newHost(t)
	c := h.client()
	r := attach(t, c, epoch)
	ok(t, c.Forget(t.Context(), volume))
	for range 2 {
		fails(t, r.Write(t.Context(), layer, 0, page(0, 2), v(2), 0), store.ErrFenced)
		for f, err := range c.Fences(t.Context()) {
			t.Fatalf("fence %v, error %v", f, err)
		}
		h.down()
		h.up()
	}
}

// TestFewAttachmentsAreRemembered, and all of them work.
func TestFewAttachmentsAreRemembered(t *testing.T) {
	h := newHost(t)
	h.down()
	h.opt.MaxVolumes = 3
	h.up()
	c := h.client()
	var replicas []store.Replica
	for vol := range store.VolumeID(20) {
		r, err := c.Attach(t.Context(), vol+1, epoch)
		ok(t, err)
		ok(t, r.Create(t.Context(), layer, 0))
		replicas = append(replicas, r)
	}
	for i, r := range replicas {
		write(t, r, int64(i), uint64(i+1))
	}
	if n := h.server.Stats().Volumes; n > 3 {
		t.Errorf("%d volumes are remembered, at most 3", n)
	}
}

// TestTwoClientsOfOneVolume: the second fences the first, at once.
func TestTwoClientsOfOneVolume(t *testing.T) {
	h := newHost(t)
	first, second := h.client(), h.client()
	r := attach(t, first, epoch)
	write(t, r, 0, 1)
	r2, err := second.Attach(t.Context(), volume, epoch+1)
	ok(t, err)
	fails(t, r.Write(t.Context(), layer, 0, page(0, 2), v(2), 0), store.ErrFenced)
	fails(t, r.Read(t.Context(), []store.LayerID{layer}, 0, make([]byte, ps), nil), store.ErrFenced)
	has(t, r2, 0, 1)
}

// TestDeadServerIsUnreachable, and that is noticed in time.
func TestDeadServerIsUnreachable(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	r := attach(t, h.client(func(o *remote.ClientOptions) { o.Timeout = 200 * time.Millisecond }), epoch)
	h.down()
	err := r.Write(t.Context(), layer, 0, page(0, 1), v(1), 0)
	fails(t, err, store.ErrUnreachable)
	var at *store.Error
	if !errors.As(err, &at) || at.Op != "write" || at.Layer != layer {
		t.Errorf("error %v doesn't say what was done to what", err)
	}
	t.Log(err)
}

// TestEndedServerIsUnreachableAtOnce: the kernel says that nobody listens any
// more, so no request waits for an answer; and the next process is found.
func TestEndedServerIsUnreachableAtOnce(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	r := attach(t, h.client(), epoch)
	began := time.Now()
	h.down()
	for range 3 {
		fails(t, r.Write(t.Context(), layer, 0, page(0, 1), v(1), 0), store.ErrUnreachable)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("requests ended after %v", took)
	}
	h.up()
	eventually(t, "the next process answers", func() bool { return r.Sync(t.Context()) == nil })
}

// TestAnotherDisk at the same address is not what was attached to (N3).
func TestAnotherDisk(t *testing.T) {
	h := newHost(t)
	r := attach(t, h.client(), epoch)
	h.down()
	h.disk = memstore.NewDisk(nil)
	h.up()
	fails(t, r.Sync(t.Context()), store.ErrIncarnation)
}
