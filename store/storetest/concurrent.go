package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"torus/store"
)

var concurrentBehaviours = []behaviour{
	{"AttachWaitsForRequestsOfLowerEpochs", func(f *fixture) {
		// Whatever was let in under the lower epoch shows when Attach returns,
		// and nothing of it comes later (N1).
		for epoch := first; epoch < first+5; epoch++ {
			f.attachBesideWriters(epoch)
		}
	}},
	{"PagesAreWholeAndNoOlderThanAnswered", func(f *fixture) {
		const pages, writers, readers, rounds = 6, 4, 4, 500
		var sequence atomic.Uint64
		var answered [pages]atomic.Uint64 // the highest version answered
		var writing, reading sync.WaitGroup
		for w := range uint64(writers) {
			writing.Go(func() {
				rng := rand.New(rand.NewPCG(w, 1))
				for range rounds {
					page := rng.Int64N(pages)
					n := 1 + rng.Int64N(pages-page)
					version := v(sequence.Add(1))
					if err := f.Write(f.ctx, top, page*ps, pattern(page, n, version), version, 0); err != nil {
						f.Error(err)
						return
					}
					for i := page; i < page+n; i++ {
						raise(&answered[i], uint64(version))
					}
				}
			})
		}
		stop := make(chan struct{})
		for r := range uint64(readers) {
			reading.Go(func() {
				rng := rand.New(rand.NewPCG(r, 2))
				for {
					select {
					case <-stop:
						return
					default:
					}
					page := rng.Int64N(pages)
					n := 1 + rng.Int64N(pages-page)
					if err := f.readWhole(page, n, answered[:]); err != nil {
						f.Error(err)
						return
					}
				}
			})
		}
		writing.Wait()
		close(stop)
		reading.Wait()
		for i := range int64(pages) {
			if at := answered[i].Load(); at != 0 {
				f.expect(chain(top), i, data(top, store.Version(at)))
			}
		}
	}},
	{"SyncBesideWrites", func(f *fixture) {
		const writers, rounds = 4, 40
		var done sync.WaitGroup
		var synced [writers]uint64
		for w := range int64(writers) {
			done.Go(func() {
				for i := uint64(1); i <= rounds; i++ {
					if err := f.Write(f.ctx, top, w*ps, pattern(w, 1, v(i)), v(i), 0); err != nil {
						f.Error(err)
						return
					}
					if i%4 != 1 {
						continue
					}
					if err := f.Sync(f.ctx); err != nil {
						f.Error(err)
						return
					}
					synced[w] = i
				}
			})
		}
		done.Wait()
		f.cutAndOpen()
		_, info := f.read(f.Replica, chain(top), 0, writers)
		for w, page := range info {
			if page.Version < v(synced[w]) {
				f.Errorf("page %d is %+v, sequence %d was synced", w, page, synced[w])
			}
			f.expect(chain(top), int64(w), page)
		}
	}},
}

// attachBesideWriters attaches at epoch+1 while epoch is written under.
func (f *fixture) attachBesideWriters(epoch store.Epoch) {
	f.Helper()
	const writers, pages, tooMany = 4, 8, 100_000
	lower := f.attach(epoch)
	ctx, cancel := context.WithCancel(f.ctx)
	var done sync.WaitGroup
	defer done.Wait()
	defer cancel()
	var answered [writers]atomic.Uint64
	for w := range int64(writers) {
		done.Go(func() {
			for i := uint64(1); i < tooMany; i++ {
				version := store.NewVersion(epoch, i)
				err := lower.Write(ctx, top, w*pages*ps, pattern(w*pages, pages, version), version, 0)
				switch {
				case errors.Is(err, store.ErrFenced) || ctx.Err() != nil:
					return
				case err != nil:
					f.Errorf("got error %v, want %v", err, store.ErrFenced)
					return
				}
				answered[w].Store(i)
			}
			f.Errorf("%d writes were answered, none was fenced", tooMany)
		})
	}
	for answered[int(epoch)%writers].Load() < 5 {
		f.read(f.attach(epoch), chain(bottom), 0, 1)
	}
	f.Replica = f.attach(epoch + 1)
	_, then := f.read(f.Replica, chain(top), 0, writers*pages)
	done.Wait()
	f.expect(chain(top), 0, then...)
	for w := range writers {
		last := answered[w].Load()
		if got := then[w*pages].Version; last > 0 && got < store.NewVersion(epoch, last) {
			f.Fatalf("sequence %d of epoch %d was answered, %v is here", last, epoch, got)
		}
	}
}

func raise(high *atomic.Uint64, to uint64) {
	for {
		was := high.Load()
		if was >= to || high.CompareAndSwap(was, to) {
			return
		}
	}
}

// readWhole reads pages of top and says what is wrong: a page that is no one
// write's, or older than what was answered before the read.
func (f *fixture) readWhole(page, n int64, answered []atomic.Uint64) error {
	atLeast := make([]uint64, n)
	for i := range atLeast {
		atLeast[i] = answered[page+int64(i)].Load()
	}
	p, info := make([]byte, n*ps), make([]store.PageInfo, n)
	if err := f.Read(f.ctx, chain(top), page*ps, p, info); err != nil {
		return err
	}
	for i, at := range info {
		if uint64(at.Version) < atLeast[i] {
			return fmt.Errorf("page %d is %+v, version %v was answered", page+int64(i), at, store.Version(atLeast[i]))
		}
		want := make([]byte, ps)
		if at.Kind == store.Data {
			want = pattern(page+int64(i), 1, at.Version)
		}
		if !bytes.Equal(p[i*ps:(i+1)*ps], want) {
			return fmt.Errorf("page %d, %+v, is not whole", page+int64(i), at)
		}
	}
	return nil
}
