package segment

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"torus/store"
)

// A Report is what Check found.
type Report struct {
	Segments int   // in use
	Layers   int   // known
	Pages    int64 // data pages that live
	Holes    int64 // holes and absences by page that are kept
	// Problems name each thing that is not as it should be, up to maxProblems;
	// Corrupt and Damaged count all of them.
	Problems []string
	Corrupt  int64 // pages that fail their checksum
	Damaged  int64 // batch headers, counts, places that contradict each other
}

const maxProblems = 100

// OK reports whether nothing was found.
func (r *Report) OK() bool { return r.Corrupt == 0 && r.Damaged == 0 }

func (r *Report) problem(count *int64, format string, args ...any) {
	*count++
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Check verifies the store in dir, which no process has open: every batch
// header in use, every live page against its checksum, and the counts that
// collecting goes by against a recount. It opens the store as a start does, so
// a torn tail is gone afterwards and a lost index rebuilt; beyond that it
// changes nothing. progress, which may be nil, is told bytes done and in all.
// An error is one of Open's, or the context's; what is wrong inside the store
// is in the report.
func Check(ctx context.Context, dir string, progress func(done, total int64)) (Report, error) {
	var r Report
	if err := mustHaveState(dir); err != nil {
		return r, err
	}
	reserve := int64(blockSize)
	if fi, err := os.Stat(filepath.Join(dir, segmentsDir, ballastName)); err == nil {
		reserve = max(reserve, fi.Size()) // it stays as it is
	}
	st, err := Open(ctx, Options{Dir: dir, Reserve: reserve, manual: true})
	if err != nil {
		return r, err
	}
	c := checker{st: st, report: &r, progress: progress, counts: map[segNum]*segCounts{}}
	err = c.run(ctx)
	return r, errors.Join(err, st.Close())
}

type checker struct {
	st       *Store
	report   *Report
	progress func(done, total int64)
	done     int64
	total    int64
	counts   map[segNum]*segCounts
	page     []byte
}

func (c *checker) run(ctx context.Context) error {
	if _, err := c.st.sweep(); err != nil {
		return err
	}
	c.page = alignedBuffer(blockSize)
	for _, g := range c.st.segments.all() {
		c.total += int64(g.live.Load()) * blockSize
		c.counts[g.num] = &segCounts{}
		c.report.Segments++
	}
	for _, g := range c.st.segments.all() {
		if err := c.headers(ctx, g); err != nil {
			return err
		}
	}
	for _, l := range c.st.tables.allLayers() {
		if err := c.layer(ctx, l); err != nil {
			return err
		}
	}
	for _, g := range c.st.segments.all() {
		n := c.counts[g.num]
		if n.live != uint32(g.live.Load()) || n.tombs != uint32(g.tombs.Load()) {
			c.report.problem(&c.report.Damaged, "segment %v counts %d pages and %d holes, the index has %d and %d",
				g.num, g.live.Load(), g.tombs.Load(), n.live, n.tombs)
		}
	}
	return nil
}

// headers walks a segment to its end.
func (c *checker) headers(ctx context.Context, g *seg) error {
	for w := newWalk(g, c.st.segments.blocks, 1, 0); w.block < g.used.Load(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := w.next(); err != nil {
			c.report.problem(&c.report.Damaged, "segment %v block %d: no batch where one was written: %v", g.num, w.block, err)
			return nil
		}
	}
	return nil
}

func (c *checker) layer(ctx context.Context, l *layer) error {
	if _, known := l.info(); known {
		c.report.Layers++
	}
	chunks, _ := l.chunksIn(0, noChunk)
	for _, ch := range chunks {
		if err := ctx.Err(); err != nil {
			return err
		}
		for i := range bucketsPerChunk {
			b, err := c.st.index.hold(ch, ch.bucket(i), false)
			if err != nil {
				c.report.problem(&c.report.Damaged, "%v", err)
			} else if b != nil {
				c.bucket(l, b)
				c.st.index.release(b)
			}
		}
		if c.progress != nil {
			c.progress(c.done, c.total)
		}
	}
	return nil
}

func (c *checker) bucket(l *layer, b *bucket) {
	for i := range b.pages {
		d := &b.pages[i]
		if d.pos == 0 {
			continue
		}
		off := (int64(b.key.n)*bucketPages + int64(i)) * store.PageSize
		g, n := c.st.segments.get(d.loc.segment()), c.counts[d.loc.segment()]
		if g == nil {
			c.report.problem(&c.report.Damaged, "layer %v at %d lies in segment %v, which is not there", l.id, off, d.loc.segment())
			continue
		}
		if d.kind != store.Data {
			n.tombs++
			c.report.Holes++
			continue
		}
		n.live++
		c.report.Pages++
		c.done += blockSize
		err := g.f.readAt(c.page, int64(d.loc.block())*blockSize, false)
		if sum := checksum(c.page); err == nil && sum != d.crc {
			err = fmt.Errorf("checksum %08x, expected %08x", sum, d.crc)
		}
		if err != nil {
			c.report.problem(&c.report.Corrupt, "layer %v at %d is corrupt: segment %v block %d: %v",
				l.id, off, g.num, d.loc.block(), err)
		}
	}
}
