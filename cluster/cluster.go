// Package cluster keeps the records of a cluster: its nodes, rings, lineages,
// volumes, layers and attachments. It promises that every change of them is one
// transaction that states what it read, that epochs only grow, that a volume
// has one attachment at a time, and that a layer's record says "deleted" until
// every node that had the layer has dropped it (I8).
//
// Records stand on a KV: etcd, embedded (StartServer) or reached over the
// network (Dial), or Memory. What the nodes' stores hold, who must be fenced
// and when a volume may be served is left to package volume.
package cluster

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// Options is what a Cluster gets from outside. All of it may be left out.
type Options struct {
	Log *slog.Logger // nil discards

	// Now is the clock by which an attachment judges its own lease. It must run
	// while the machine is suspended. nil: CLOCK_BOOTTIME.
	Now func() time.Duration
	// Wall gives the times that records carry. nil: time.Now.
	Wall func() time.Time
	// Random is where IDs come from. nil: crypto/rand.
	Random io.Reader
	// Patience is how long one operation goes on trying while the records are
	// unavailable, unless its context ends before. 0: 15 s.
	Patience time.Duration
	// Lease is the TTL of attachments. 0: 10 s.
	Lease time.Duration
	// ManualRenewal leaves renewing to the callers of Attachment.Renew.
	ManualRenewal bool
}

// Cluster is the records of one cluster. All methods may be called concurrently.
type Cluster struct {
	kv   KV
	opts Options
	info Info
}

// Founding is what a new cluster begins with.
type Founding struct {
	ID       ID  // "": one is drawn
	Replicas int // default number of copies; 1 to MaxReplicas
}

// Found writes the first record of a cluster. Founding the same one again is
// no error and changes nothing; ErrOtherCluster if kv has another one's records.
func Found(ctx context.Context, kv KV, f Founding, opts Options) (*Cluster, error) {
	c := newCluster(kv, opts)
	if f.ID == "" {
		f.ID = ID(hexID(c.draw()).String())
	}
	if err := f.ID.check(); err != nil {
		return nil, fmt.Errorf("found cluster: %w", err)
	}
	if err := inRange("replicas", f.Replicas, 1, MaxReplicas); err != nil {
		return nil, fmt.Errorf("found cluster: %w", err)
	}
	err := c.transact(ctx, func(ctx context.Context, t *tx) error {
		var r infoRecord
		found, err := t.get(ctx, keyCluster, &r)
		if err != nil {
			return err
		}
		if !found {
			r = infoRecord{ID: f.ID, Created: c.wall(), Replicas: f.Replicas}
			t.put(keyCluster, &r)
		}
		c.info = r.info()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("found cluster %s: %w", f.ID, err)
	}
	if c.info.ID != f.ID {
		return nil, fmt.Errorf("found cluster %s: the records are those of %w: %s", f.ID, ErrOtherCluster, c.info.ID)
	}
	return c, nil
}

// Open returns the cluster whose records kv has. want is its ID, "" for
// whichever it is. ErrNotFound if none was founded there, ErrOtherCluster if it
// has another ID, ErrFormat if it is too new.
func Open(ctx context.Context, kv KV, want ID, opts Options) (*Cluster, error) {
	c := newCluster(kv, opts)
	var r infoRecord
	found, err := c.read(ctx, keyCluster, 0, &r)
	switch {
	case err != nil:
		return nil, fmt.Errorf("open cluster: %w", err)
	case !found:
		return nil, fmt.Errorf("open cluster: record %s: %w: no cluster was founded here", keyCluster, ErrNotFound)
	case want != "" && r.ID != want:
		return nil, fmt.Errorf("open cluster %s: the records are those of %w: %s", want, ErrOtherCluster, r.ID)
	}
	c.info = r.info()
	is, err := c.Recovered(ctx)
	if err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", r.ID, err)
	}
	c.info.Recovery = is.Recovery
	return c, nil
}

func newCluster(kv KV, opts Options) *Cluster {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = bootTime
	}
	if opts.Wall == nil {
		opts.Wall = time.Now
	}
	if opts.Random == nil {
		opts.Random = rand.Reader
	}
	if opts.Patience == 0 {
		opts.Patience = 15 * time.Second
	}
	if opts.Lease == 0 {
		opts.Lease = 10 * time.Second
	}
	return &Cluster{kv: kv, opts: opts}
}

// Info returns what holds for the whole cluster, as it was when c was opened.
func (c *Cluster) Info() Info { return c.info }

// Lease returns the TTL of attachments.
func (c *Cluster) Lease() time.Duration { return c.opts.Lease }

// wall returns the time as records carry it.
func (c *Cluster) wall() time.Time { return c.opts.Wall().UTC().Truncate(time.Second) }

// draw returns a random ID other than 0.
func (c *Cluster) draw() uint64 {
	var b [8]byte
	for {
		if _, err := io.ReadFull(c.opts.Random, b[:]); err != nil {
			panic(fmt.Sprintf("cluster: no random bytes: %v", err)) // crypto/rand never fails
		}
		if id := binary.BigEndian.Uint64(b[:]); id != 0 {
			return id
		}
	}
}

// bootTime reads the clock that runs during suspend too.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("cluster: CLOCK_BOOTTIME: %v", err)) // there since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}
