package cluster

import (
	"errors"
	"testing"
	"time"
)

func TestScrubRecords(t *testing.T) {
	b, a := serving(t)
	id := a.Volume.ID
	recorded := func() Scrub {
		t.Helper()
		all, err := b.Scrubs(t.Context())
		must(t, err)
		return all[id]
	}
	v, asked, err := b.AskScrub(t.Context(), "vol1")
	if err != nil || v.ID != id || asked != 1 {
		t.Fatalf("%+v, %d, %v", v, asked, err)
	}
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := Scrub{Answered: 1, Began: began, Done: 4096, Total: 8192, Bytes: 5, Corrupt: 6, Unlike: 7, Lost: 8}
	must(t, a.TellScrub(t.Context(), s))
	// Asked for again while one is under way: that one is no answer.
	if _, asked, err = b.AskScrub(t.Context(), "vol1"); err != nil || asked != 2 {
		t.Fatalf("%d, %v", asked, err)
	}
	s.Ended, s.Done = began.Add(time.Hour), s.Total
	must(t, a.TellScrub(t.Context(), s))
	s.Asked = 2
	if got := recorded(); got != s || !got.Answers(1) || got.Answers(2) {
		t.Errorf("recorded %+v, want %+v", got, s)
	}
	s.Ended, s.Answered = time.Time{}, 2
	if s.Answers(2) {
		t.Error("one that has not ended answers")
	}
	_, _, err = b.AskScrub(t.Context(), "vol2")
	wantErr(t, err, ErrNotFound, "volume vol2: not found")

	next, err := b.Attach(t.Context(), "vol1", holder(2), AttachOptions{Force: true})
	must(t, err)
	wantErr(t, a.TellScrub(t.Context(), s), ErrLost, "volume vol1: attachment lost: epoch 1 was followed by 2")
	must(t, next.Detach(t.Context(), true))
	must(t, b.DeleteVolume(t.Context(), "vol1"))
	if all, err := b.Scrubs(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("of a volume that is deleted: %v, %v", all, err)
	}
}

// A scrub that was asked for with an unknown outcome is not asked for twice.
func TestAskScrubTwice(t *testing.T) {
	b, _ := serving(t)
	kv := &interruptedKV{KV: b.kv, then: func() {}}
	b.Cluster.kv = kv
	v, asked, err := b.AskScrub(t.Context(), "vol1")
	must(t, err)
	if all, err := b.Scrubs(t.Context()); err != nil || asked != 1 || all[v.ID].Asked != 1 || kv.then != nil {
		t.Errorf("asked for %d, recorded %+v, %v", asked, all, err)
	}
}

func TestScrubEvery(t *testing.T) {
	b := newBench(t, 1)
	for _, want := range []time.Duration{DefaultScrubEvery, 0, time.Minute, time.Minute} {
		if want != DefaultScrubEvery {
			must(t, b.SetScrubEvery(t.Context(), want))
		}
		if got, err := b.ScrubEvery(t.Context()); err != nil || got != want {
			t.Errorf("every %v, %v; want %v", got, err, want)
		}
	}
	for _, bad := range []time.Duration{-time.Second, 4000 * 24 * time.Hour} {
		if err := b.SetScrubEvery(t.Context(), bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("every %v: %v", bad, err)
		}
	}
}
