package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
)

// Saved is records that were read without a server.
type Saved struct {
	Info     Info // Info.Recovery: the one that they stem from
	From     string
	Revision Revision
	pairs    []Pair // in the order of keys
}

// Volumes returns how many volumes are among them.
func (s Saved) Volumes() int {
	n := 0
	for _, p := range s.pairs {
		if strings.HasPrefix(p.Key, keyVolumes) {
			n++
		}
	}
	return n
}

// ReadSaved returns the records in a snapshot. Errors as of ReadSnapshot.
func ReadSaved(path string) (Saved, error) {
	_, _, err := verifySnapshot(path)
	var s Saved
	if err == nil {
		s, err = readSaved(path)
	}
	if err != nil {
		return s, fmt.Errorf("snapshot %s: %w", path, err)
	}
	s.From = "snapshot " + path
	return s, nil
}

func readSaved(path string) (s Saved, err error) {
	if s.pairs, s.Revision, err = readDatabase(path); err != nil {
		return s, err
	}
	if s.Info, err = infoOf(s.pairs); err != nil {
		return s, err
	}
	for _, p := range s.pairs {
		if p.Key == keyRecovery {
			var r recoveryRecord
			err = decode(p.Key, p.Value, &r)
			s.Info.Recovery = r.Recovery
		}
	}
	return s, err
}

// ReadSurvivor returns the records that a stopped member has, with all that is in its
// log: what a majority without it has acknowledged is missing. The member's directory
// is left as it is; a copy in scratch, which is removed, runs alone for a moment, so
// that its log is applied. ErrNotFound if there is no member.
func ReadSurvivor(ctx context.Context, o ServerOptions, scratch string) (s Saved, err error) {
	if s, err = readSurvivor(ctx, o, scratch); err != nil {
		return s, fmt.Errorf("records in %s: %w", o.Dir, err)
	}
	s.From = "etcd member in " + o.Dir
	return s, nil
}

func readSurvivor(ctx context.Context, o ServerOptions, scratch string) (s Saved, err error) {
	if !hasLog(o.Dir) {
		return s, fmt.Errorf("%w: there is no etcd member", ErrNotFound)
	}
	if err := os.RemoveAll(scratch); err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := os.CopyFS(memberDir(scratch), os.DirFS(memberDir(o.Dir))); err != nil {
		return s, err
	}
	if err := commitLog(filepath.Join(memberDir(scratch), "wal")); err != nil {
		return s, err
	}
	o.Dir = scratch
	alone := newServer(o.unseen())
	alone.alone = true
	if _, err := alone.runAlone(ctx); err != nil {
		return s, err
	}
	if err := alone.Close(); err != nil {
		return s, err
	}
	return readSaved(filepath.Join(memberDir(scratch), "snap", "db"))
}

// commitLog has a stopped member take all of its log for committed. A member that goes
// on alone drops what it does not know to be, which the others may have acknowledged
// with its vote a moment before they were lost.
func commitLog(dir string) error {
	log := zap.NewNop()
	snaps, err := wal.ValidSnapshotEntries(log, dir)
	if err != nil || len(snaps) == 0 {
		return fmt.Errorf("%w: etcd's log in %s: %v", ErrCorrupt, dir, err)
	}
	for repaired := false; ; repaired = true {
		w, err := wal.Open(log, dir, snaps[len(snaps)-1])
		if err != nil {
			return err
		}
		_, state, entries, err := w.ReadAll()
		if err == nil && len(entries) > 0 {
			last := entries[len(entries)-1].GetIndex()
			state.Commit = &last
			err = w.Save(state, nil)
		}
		err = errors.Join(err, w.Close())
		if !errors.Is(err, io.ErrUnexpectedEOF) || repaired || !wal.Repair(log, dir) { // cut off by the end of the machine
			return err
		}
	}
}

// unseen returns o for a member that nobody is to find.
func (o ServerOptions) unseen() ServerOptions {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	o.Listen, o.Advertise, o.ClientPort, o.PeerPort = loopback, loopback, 0, 0
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// runAlone starts a member that is its own quorum, and returns when it serves, with all
// that it had committed applied. It is closed on failure.
func (s *Server) runAlone(ctx context.Context) (*Server, error) {
	setSegmentSize()
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if _, err := s.run(foundOrRestart); err != nil {
		return nil, err
	}
	for !s.onlyVoter() { // until it has applied that the others are gone
		pause := firstPause
		if !wait(ctx, &pause) {
			s.Close() // only logs
			return nil, fmt.Errorf("member in %s does not serve alone: %w", s.opts.Dir, ctx.Err())
		}
	}
	if err := s.becomeLeader(ctx); err != nil {
		s.Close() // only logs
		return nil, err
	}
	return s, nil
}

// Refound makes, in the new directory o.Dir, an etcd member that is the first of its
// cluster and has the records that were saved, as r, which is o.Recovery, makes them:
// see recoverPairs. Nobody finds it until StartServer starts it. What an attempt that
// was killed has left in the directory is removed.
func Refound(ctx context.Context, o ServerOptions, saved Saved, r Recovered) error {
	if saved.Info.ID != o.Cluster {
		return fmt.Errorf("recover: the records are those of %w: %s, not %s", ErrOtherCluster, saved.Info.ID, o.Cluster)
	}
	r.At, r.From = r.At.UTC().Truncate(time.Second), saved.From
	pairs, err := recoverPairs(saved.pairs, r)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := refound(ctx, o, pairs); err != nil {
		return fmt.Errorf("recover in %s: %w", o.Dir, err)
	}
	return nil
}

func refound(ctx context.Context, o ServerOptions, pairs []Pair) error {
	if err := os.RemoveAll(o.Dir); err != nil {
		return err
	}
	o = o.unseen()
	if _, err := claimDir(o); err != nil {
		return err
	}
	s, err := newServer(o).runAlone(ctx)
	if err != nil {
		return err
	}
	err = putAll(ctx, s.kv, pairs)
	if err == nil {
		err = markFounded(o, s.ID())
	}
	return errors.Join(err, s.Close(), syncDir(filepath.Dir(o.Dir)))
}

// maxPutBytes is far below what etcd takes in one request, 1.5 MiB, but for a ring.
const maxPutBytes = 256 << 10

// putAll writes pairs, as many at a time as fit a transaction.
func putAll(ctx context.Context, kv KV, pairs []Pair) error {
	var ops []Op
	bytes := 0
	for i, p := range pairs {
		ops = append(ops, Op{Kind: OpPut, Key: p.Key, Value: p.Value})
		if bytes += len(p.Value); bytes < maxPutBytes && len(ops) < MaxTxnOps/2 && i < len(pairs)-1 {
			continue
		}
		if _, err := kv.Commit(ctx, Txn{Then: ops}); err != nil {
			return err
		}
		ops, bytes = nil, 0
	}
	return nil
}
