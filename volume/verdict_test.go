package volume

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"torus/store"
)

func TestVerdict(t *testing.T) {
	full := &store.Error{Op: "write", Err: store.ErrNoSpace}
	for _, test := range []struct {
		answers []error
		want    verdict
	}{
		{[]error{nil}, writeDone},
		{[]error{nil, nil, nil}, writeDone},
		{[]error{full}, writeRefused},
		{[]error{full, full, full}, writeRefused},
		{[]error{nil, full}, writeMixed},
		{[]error{full, nil, nil}, writeMixed},
		{[]error{store.ErrFailed}, writeMixed},
		{[]error{store.ErrFenced}, writeMixed},
		{[]error{store.ErrIncarnation}, writeMixed},
		{[]error{context.DeadlineExceeded}, writeMixed},
		{[]error{errors.New("connection lost")}, writeMixed},
		{[]error{nil, store.ErrClosed}, writeMixed},
		{[]error{full, store.ErrClosed}, writeMixed},
	} {
		var got tally
		for _, err := range test.answers {
			got.add(err)
		}
		if v := got.verdict(); v != test.want {
			t.Errorf("answers %v: verdict %d, want %d", test.answers, v, test.want)
		}
	}
}

func TestAfterRead(t *testing.T) {
	corrupt := &store.CorruptError{Layer: 1, Off: 4096}
	fenced := fmt.Errorf("read: %w", &store.FencedError{Epoch: 1, Recorded: 2})
	for _, test := range []struct {
		err    error
		others int
		want   next
	}{
		{corrupt, 1, tryAnother},
		{corrupt, 0, reportError},
		{store.ErrFailed, 2, tryAnother},
		{store.ErrFailed, 0, reportError},
		{store.ErrUnknownLayer, 0, reportError},
		{store.ErrIncarnation, 1, tryAnother},
		{store.ErrIncarnation, 0, stopServing},
		{fenced, 2, stopServing},
		{fenced, 0, stopServing},
	} {
		if got := afterRead(test.err, test.others); got != test.want {
			t.Errorf("%v with %d others: %d, want %d", test.err, test.others, got, test.want)
		}
	}
}
