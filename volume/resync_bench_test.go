package volume

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"torus/ring"
	"torus/store"
	"torus/store/remote"
	"torus/store/segment"
)

// resyncBytes is how much a node lacks when it comes back.
const resyncBytes = 1 << 30

// BenchmarkResync is how fast a node gets what it lacks, in random pages and in
// one piece, alone and beside clients, which report what they lose by it. Run it
// with -benchtime 1x.
func BenchmarkResync(b *testing.B) {
	if testing.Short() {
		b.Skip("writes gigabytes")
	}
	for _, order := range []string{"random", "sequential"} {
		for _, clients := range []int{0, 1, 8} {
			b.Run(fmt.Sprintf("%s/clients%d", order, clients), func(b *testing.B) {
				for b.Loop() {
					benchResync(b, order == "random", clients)
				}
			})
		}
	}
}

func benchResync(b *testing.B, random bool, clients int) {
	b.StopTimer()
	stores := farStores(b)
	c := newNodes(3, 3, nil)
	copy(c.stores, stores)
	o := c.options(1, 2*resyncBytes)
	all := []ring.NodeID{1, 2, 3}
	o.Place = func(ring.ChunkIndex) []ring.NodeID { return all }
	var down atomic.Bool
	o.Dial = func(_ context.Context, id ring.NodeID) (store.Store, error) {
		if id == 3 && down.Load() {
			return nil, store.ErrUnreachable
		}
		return stores[id-1], nil
	}
	v, err := Open(context.Background(), o)
	must(b, err)
	defer v.Close()
	down.Store(true)
	v.LetGo(3)
	for v.place.node(3).view.Load().state != away {
		time.Sleep(time.Millisecond)
	}
	if random {
		pages := rand.Perm(int(o.Size / store.PageSize))[:resyncBytes/store.PageSize]
		parallel(16, 16, func(i int) {
			p := alignedPages(1)
			for _, page := range pages[i*len(pages)/16 : (i+1)*len(pages)/16] {
				p[0]++
				write(b, v, p, int64(page)*store.PageSize)
			}
		})
	} else {
		p := alignedPages(256)
		for off := int64(0); off < resyncBytes; off += int64(len(p)) {
			p[0]++
			write(b, v, p, off)
		}
	}
	must(b, v.Sync())
	load := startClients(v, clients)
	if clients > 0 {
		time.Sleep(3 * time.Second)
		load.report(b, "alone")
	}
	down.Store(false)
	for v.place.node(3).view.Load().state != catching {
		time.Sleep(time.Millisecond)
	}
	b.StartTimer()
	began := time.Now()
	for deadline := began.Add(10 * time.Minute); !allInSync(v); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatal("not in sync after 10 min")
		}
	}
	b.StopTimer()
	done := v.place.node(3).progress.done.Load()
	b.ReportMetric(float64(done>>20)/time.Since(began).Seconds(), "MiB/s")
	if clients > 0 {
		load.report(b, "beside")
	}
	load.end()
	b.StartTimer()
}

// farStores are three stores on this disk, the first one used directly.
func farStores(b *testing.B) []store.Store {
	var all []store.Store
	for id := uint64(1); id <= 3; id++ {
		s, err := segment.Open(b.Context(), segment.Options{Dir: b.TempDir(), Reserve: 1 << 20})
		must(b, err)
		b.Cleanup(func() { s.Close() })
		if id == 1 {
			all = append(all, s)
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(b, err)
		server := remote.NewServer(remote.ServerOptions{Store: s, Cluster: "c", Node: id})
		go server.Serve(l)
		b.Cleanup(func() { server.Close() })
		c := remote.NewClient(remote.ClientOptions{Addr: l.Addr().String(), Cluster: "c", Node: id})
		b.Cleanup(func() { c.Close() })
		all = append(all, c)
	}
	return all
}

// benchClients write random pages, each one at a time.
type benchClients struct {
	quit    chan struct{}
	running sync.WaitGroup

	mu    sync.Mutex
	took  []time.Duration
	since time.Time
}

func startClients(v *Volume, n int) *benchClients {
	l := &benchClients{quit: make(chan struct{}), since: time.Now()}
	for range n {
		l.running.Go(func() {
			p := alignedPages(1)
			for {
				select {
				case <-l.quit:
					return
				default:
				}
				began := time.Now()
				if _, err := v.WriteAt(p, rand.Int64N(v.size/store.PageSize)*store.PageSize); err != nil {
					panic(err)
				}
				l.mu.Lock()
				l.took = append(l.took, time.Since(began))
				l.mu.Unlock()
			}
		})
	}
	return l
}

// report reports what the clients got since it was called last.
func (l *benchClients) report(b *testing.B, when string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.took)
	b.ReportMetric(float64(len(l.took))/time.Since(l.since).Seconds(), "writes/s-"+when)
	b.ReportMetric(float64(l.took[len(l.took)*99/100].Microseconds()), "p99-µs-"+when)
	l.took, l.since = nil, time.Now()
}

func (l *benchClients) end() {
	close(l.quit)
	l.running.Wait()
}
