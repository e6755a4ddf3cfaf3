package cluster

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// brittleKV is unavailable while it is down, and answers renewals late.
type brittleKV struct {
	KV
	down atomic.Bool
	slow time.Duration
}

func (k *brittleKV) KeepAlive(ctx context.Context, id LeaseID) error {
	if k.down.Load() {
		return ErrUnavailable
	}
	err := k.KV.KeepAlive(ctx, id)
	time.Sleep(k.slow)
	return err
}

// inRealTime attaches a volume whose attachment renews itself, on the
// bubble's clock.
func inRealTime(t *testing.T, slow time.Duration) (*Attachment, *brittleKV, *Cluster) {
	t.Helper()
	start := time.Now()
	kv := &brittleKV{KV: NewMemory(nil), slow: slow}
	t.Cleanup(func() { kv.Close() })
	c, err := Found(t.Context(), kv, Founding{ID: testID, Replicas: 1}, Options{Now: func() time.Duration { return time.Since(start) }})
	if err == nil {
		err = c.RegisterNode(t.Context(), testNode(1))
	}
	if err == nil {
		_, err = c.CreateVolume(t.Context(), VolumeSpec{Name: "vol1", Size: 4096})
	}
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Attach(t.Context(), "vol1", holder(1), AttachOptions{})
	if err == nil {
		err = a.Serving(t.Context(), nil, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, kv, c
}

func TestAttachmentRenewsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, kv, c := inRealTime(t, 0)
		time.Sleep(time.Hour)
		if !a.Held() || isClosed(a.Done()) {
			t.Fatal("not renewed")
		}
		// The records are away for long: Done, but not lost. When they are back, and
		// nobody has come, it goes on.
		kv.down.Store(true)
		began := time.Now()
		<-a.Done()
		if gone := time.Since(began); gone < 6*time.Second || gone > 10*time.Second {
			t.Errorf("done %v after the last chance to renew", gone)
		}
		time.Sleep(time.Minute)
		if a.Held() || isClosed(a.Lost()) {
			t.Error("held, or lost, without records")
		}
		kv.down.Store(false)
		time.Sleep(5 * time.Second)
		if !a.Held() || a.Err() != nil {
			t.Errorf("not resumed: %v", a.Err())
		}
		// Somebody else takes it: lost by itself.
		other, err := c.Attach(t.Context(), "vol1", holder(2), AttachOptions{Force: true})
		if err != nil {
			t.Fatal(err)
		}
		kv.KV.Revoke(t.Context(), a.leaseNow().ID)
		<-a.Lost()
		if !errors.Is(a.Err(), ErrLost) || a.Held() {
			t.Errorf("%v", a.Err())
		}
		if err := other.Detach(t.Context(), true); err != nil {
			t.Error(err)
		}
		if err := a.Detach(t.Context(), true); !errors.Is(err, ErrLost) {
			t.Error(err)
		}
	}) // which waits for every goroutine of the bubble: none may be left
}

// An answer that took long says nothing about the time it took.
func TestLeaseCountsFromSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, kv, _ := inRealTime(t, 3*time.Second)
		sent := a.c.opts.Now()
		if err := a.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, at := a.renewed(); at != sent {
			t.Errorf("counted from %v, sent at %v", at, sent)
		}
		kv.down.Store(true)
		<-a.Done()
		if ended := a.c.opts.Now(); ended > sent+14*time.Second {
			t.Errorf("done at %v, last renewed by a call sent at %v", ended, sent)
		}
		a.Detach(t.Context(), false)
	})
}

func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := &flakyKV{KV: NewMemory(nil)}
		defer kv.Close()
		c := newCluster(&deadKV{kv}, Options{Patience: 3 * time.Second})
		began := time.Now()
		_, err := c.Volume(t.Context(), "vol1")
		wantErr(t, err, ErrUnavailable, "volume vol1: cluster records unavailable")
		wantErr(t, c.RenameVolume(t.Context(), "a", "b"), ErrUnavailable, "volume a: cluster records unavailable")
		if took := time.Since(began); took < 6*time.Second || took > 7*time.Second {
			t.Errorf("gave up twice in %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err = c.Volume(ctx, "vol1"); !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
	})
}

// deadKV can't be read.
type deadKV struct{ KV }

func (*deadKV) Get(context.Context, string, Revision) (Pair, Revision, error) {
	return Pair{}, 0, ErrUnavailable
}

func TestWorthTelling(t *testing.T) {
	base := Usage{Used: 1 << 30}
	for _, c := range []struct {
		now   Usage
		since time.Duration
		want  bool
	}{
		{base, time.Hour, false},
		{Usage{Used: 1<<30 + 1}, 29 * time.Second, false},
		{Usage{Used: 1<<30 + 1}, 30 * time.Second, true},
		{Usage{Used: 2 << 30}, 0, true},
		{Usage{}, 0, true},
		{Usage{Used: 1 << 30, Corrupt: 1}, 0, true},
		{Usage{Used: 1 << 30, NoSpace: true}, 0, true},
		{Usage{Used: 1 << 30, Failed: "disk"}, 0, true},
	} {
		if got := worthTelling(base, c.now, c.since); got != c.want {
			t.Errorf("%+v after %v: %v", c.now, c.since, got)
		}
	}
}

// A holder whose volume was taken by force hears of it when it renews, though
// its own lease lives.
func TestRenewAfterForce(t *testing.T) {
	b := newBench(t, 2)
	b.create(t, "vol1", 1)
	a := b.attach(t, "vol1", holder(1))
	if err := a.Serving(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Attach(t.Context(), "vol1", holder(2), AttachOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	wantErr(t, a.Renew(t.Context()), ErrLost, "volume vol1: attachment lost: epoch 1 was followed by 2")
	select {
	case <-a.Lost():
	default:
		t.Error("the attachment is not over")
	}
}

// unreadKV answers renewals, and no reads while it is unread.
type unreadKV struct {
	KV
	unread bool
}

func (k *unreadKV) Get(ctx context.Context, key string, at Revision) (Pair, Revision, error) {
	if k.unread {
		return Pair{}, 0, ErrUnavailable
	}
	return k.KV.Get(ctx, key, at)
}

// A renewal counts only if the volume was still ours after it: who has taken it
// by force counts on our stopping within a lease.
func TestRenewCountsFromStillOurs(t *testing.T) {
	b := newBench(t, 1)
	b.create(t, "vol1", 1)
	a := b.attach(t, "vol1", holder(1))
	if err := a.Serving(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	kv := &unreadKV{KV: b.kv, unread: true}
	a.c.kv = kv
	b.pass(6 * time.Second)
	if err := a.Renew(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	b.pass(6 * time.Second)
	if a.Held() {
		t.Error("held for longer than a lease, though nobody said that it is still ours")
	}
	kv.unread = false
	if err := a.Renew(t.Context()); err != nil || !a.Held() {
		t.Errorf("%v", err)
	}
}
