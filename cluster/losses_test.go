package cluster

import "testing"

func TestLosses(t *testing.T) {
	b, a := serving(t)
	recorded := func(want *Loss) {
		t.Helper()
		all, err := b.Volumes(t.Context())
		must(t, err)
		for _, got := range []*Loss{all[0].Loss, b.info(t, "vol1").Loss} {
			if (got == nil) != (want == nil) || got != nil && *got != *want {
				t.Errorf("recorded %v, want %v", got, want)
			}
		}
	}
	recorded(nil)
	must(t, a.TellLoss(t.Context()))
	must(t, a.TellLoss(t.Context()))
	recorded(&Loss{Epoch: 1, At: b.options().Wall()})
	next, err := b.Attach(t.Context(), "vol1", holder(2), AttachOptions{Force: true})
	must(t, err)
	wantErr(t, a.TellLoss(t.Context()), ErrLost, "volume vol1: attachment lost: epoch 1 was followed by 2")
	must(t, next.TellLoss(t.Context()))
	recorded(&Loss{Epoch: 2, At: b.options().Wall()})
	must(t, next.Detach(t.Context(), true))
	must(t, b.DeleteVolume(t.Context(), "vol1"))
	if left, _, err := b.kv.Range(t.Context(), keyLosses, 0); err != nil || len(left) != 0 {
		t.Errorf("of a volume that is deleted: %v, %v", left, err)
	}
}
