package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"
)

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestDialRefuses(t *testing.T) {
	for endpoint, text := range map[string]string{
		"n1":           `invalid: etcd endpoint "n1" is not HOST:PORT`,
		":7482":        `invalid: etcd endpoint ":7482" is not HOST:PORT`,
		"n1:":          `invalid: etcd endpoint "n1:": port "" is not a number of 1 to 65535`,
		"n1:65536":     `invalid: etcd endpoint "n1:65536": port "65536" is not a number of 1 to 65535`,
		"n1:0":         `invalid: etcd endpoint "n1:0": port "0" is not a number of 1 to 65535`,
		"http://n1:74": `invalid: etcd endpoint "http://n1:74" is not HOST:PORT`,
	} {
		_, err := Dial([]string{"10.0.0.1:7482", endpoint})
		wantErr(t, err, ErrInvalid, text)
	}
}

// Of the endpoints that a client is given, one that answers is enough: the others may be
// dead, or a learner's, which serves nothing. Then it knows the voters.
func TestDialFindsVoters(t *testing.T) {
	t.Parallel()
	j := newJoining(t)
	id := j.add(t)
	learner := startServer(t, j.o)
	_, dead := freePorts(t)
	etcd := dialled(t, fmt.Sprint("127.0.0.1:", dead), learner.Endpoint(), j.first.Endpoint())
	eventually(t, 10*time.Second, func() error {
		_, err := etcd.Commit(t.Context(), Txn{Then: []Op{put("k", "x")}})
		if errors.Is(err, ErrUnknown) {
			t.Fatalf("a learner's refusal leaves nothing unknown: %v", err)
		}
		return err
	})
	known := func(want ...string) func() error {
		slices.Sort(want)
		return func() error {
			if got := etcd.Endpoints(); !slices.Equal(got, want) {
				return fmt.Errorf("knows %v, want %v", got, want)
			}
			return nil
		}
	}
	eventually(t, 10*time.Second, known(j.first.Endpoint()))
	j.promoted(t, id)
	eventually(t, 15*time.Second, known(j.first.Endpoint(), learner.Endpoint()))
	eventually(t, 10*time.Second, func() error { return j.etcd.remove(t.Context(), j.first.ID()) })
	eventually(t, 15*time.Second, known(learner.Endpoint()))
	if err := etcd.remove(t.Context(), j.first.ID()); err != nil {
		t.Errorf("removed again: %v", err)
	}
	wantPair(t, etcd, "k", 0, "x")
}

// A learner refuses what a KV asks, and nothing is left unknown by that; whether it has
// started it says before etcd's list of members does.
func TestDialLearner(t *testing.T) {
	t.Parallel()
	j := newJoining(t)
	id := j.add(t)
	learner := startServer(t, j.o)
	_, err := dialled(t, learner.Endpoint()).Commit(t.Context(), Txn{Then: []Op{put("k", "x")}})
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknown) {
		t.Errorf("commit: %v", err)
	}
	eventually(t, 5*time.Second, func() error {
		if !j.etcd.reachable(t.Context(), learner.Endpoint(), id) {
			return errors.New("not reachable")
		}
		return nil
	})
	if j.etcd.reachable(t.Context(), learner.Endpoint(), id+1) || j.etcd.reachable(t.Context(), j.first.Endpoint(), id) {
		t.Error("taken for another member")
	}
	learner.Close()
	began := time.Now()
	if j.etcd.reachable(t.Context(), learner.Endpoint(), id) || time.Since(began) > reachTimeout+time.Second {
		t.Errorf("closed, and reachable, or asked for %v", time.Since(began))
	}
}
