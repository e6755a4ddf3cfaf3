package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The six workloads, each after a sequential fill of the range.
var workloads = []struct {
	name string
	args []string
}{
	{"write 1M d8", []string{"--rw=write", "--bs=1M", "--iodepth=8"}},
	{"read 1M d8", []string{"--rw=read", "--bs=1M", "--iodepth=8"}},
	{"write 4k d32", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}},
	{"read 4k d32, from the disk", []string{"--rw=randread", "--bs=4k", "--iodepth=32"}},
	{"read 4k d32, again", []string{"--rw=randread", "--bs=4k", "--iodepth=32"}},
	{"write 4k d1 fsync", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}},
	{"read 4k d1", []string{"--rw=randread", "--bs=4k", "--iodepth=1"}},
}

// BenchmarkYardstick runs fio over NBD against "torus dev" and against qemu-nbd
// with direct I/O on a preallocated file, in turn, three rounds, and prints
// medians: requests a second, our share of the yardstick, processor time a
// request, and bytes to disk for each byte written.
//
// TORUS_BENCH_DIR names a directory on the disk that is meant, else the
// temporary one is used. It takes about five minutes:
//
//	go test -run '^$' -bench Yardstick -benchtime 1x .
func BenchmarkYardstick(b *testing.B) { benchYardstick(b, startTorusPeer) }

// BenchmarkYardstickCluster is the same for a volume with three copies on three
// nodes, all on this machine, exported by one of them:
//
//	go test -run '^$' -bench YardstickCluster -benchtime 1x .
func BenchmarkYardstickCluster(b *testing.B) { benchYardstick(b, startClusterPeer) }

func benchYardstick(b *testing.B, start func(b *testing.B, dir string) *peer) {
	for _, tool := range []string{"fio", "qemu-nbd"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skipf("%s is not here: %v", tool, err)
		}
	}
	if testing.Short() {
		b.Skip("takes minutes")
	}
	dir, err := os.MkdirTemp(os.Getenv("TORUS_BENCH_DIR"), "yardstick-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	ours := start(b, dir)
	theirs := startQemuPeer(b, dir)
	const rounds = 3
	for range b.N {
		results := map[string]map[string][]sample{}
		for range rounds {
			for _, p := range []*peer{theirs, ours} {
				for name, s := range p.round(b) {
					if results[name] == nil {
						results[name] = map[string][]sample{}
					}
					results[name][p.name] = append(results[name][p.name], s)
				}
			}
		}
		printShares(b, results)
	}
}

// A peer is a server with an export of 1 GiB at least.
type peer struct {
	name string
	uri  string
	pids []int
	// cold makes the next reads come from the disk.
	cold func()
	// collected returns the bytes that the collector has copied so far.
	collected func() float64
}

// A sample is one workload's outcome.
type sample struct {
	rate, cpu float64 // requests/s, µs a request
	// Bytes to disk for each byte written: without what was collected, and that.
	diskRatio, collected float64
}

func startTorusPeer(b *testing.B, dir string) *peer {
	p := startDev(b, filepath.Join(dir, "data"), "--size", "1GiB")
	return torusPeer(b, p.uri(), p)
}

// torusPeer is a volume kept by nodes.
func torusPeer(b *testing.B, uri string, nodes ...*process) *peer {
	p := &peer{name: "torus", uri: uri, cold: dropCaches(b)}
	for _, n := range nodes {
		p.pids = append(p.pids, n.cmd.Process.Pid)
	}
	p.collected = func() (sum float64) {
		for _, n := range nodes {
			sum += scrape(b, n.running.API, "torus_store_collected_bytes_total")
		}
		return sum
	}
	return p
}

func startClusterPeer(b *testing.B, dir string) *peer {
	c := startClusterIn(b, dir, 3, "--nbd", "127.0.0.1:0")
	c.torus("volume", "create", "vol1", "1GiB", "--replicas", "3")
	return torusPeer(b, "nbd://"+c.nodes[0].running.NBD[0]+"/vol1", c.nodes...)
}

// scrape reads one value from a node's API.
func scrape(b *testing.B, api, name string) float64 {
	b.Helper()
	resp, err := http.Get("http://" + api + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("no metric %s", name)
	return 0
}

func startQemuPeer(b *testing.B, dir string) *peer {
	file := filepath.Join(dir, "yardstick")
	command(b, "fallocate", "-l", "1G", file)
	port := freePort(b)
	cmd := exec.Command("qemu-nbd", "-f", "raw", "--cache=none", "--aio=native", "-t", "-e", "8",
		"-b", "127.0.0.1", "-p", strconv.Itoa(port), file)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	p := &peer{name: "qemu-nbd", uri: fmt.Sprintf("nbd://127.0.0.1:%d/", port), pids: []int{cmd.Process.Pid}, cold: func() {},
		collected: func() float64 { return 0 }}
	waitFor(b, "qemu-nbd serves", func() bool { return exec.Command("nbdinfo", "--size", p.uri).Run() == nil })
	return p
}

// freePort returns a port that was free a moment ago.
func freePort(b *testing.B) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// dropCaches empties the page cache, where that is permitted.
func dropCaches(b *testing.B) func() {
	return func() {
		command(b, "sync")
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
			b.Logf("reads may come from the page cache: %v", err)
		}
	}
}

func (p *peer) round(b *testing.B) map[string]sample {
	out := map[string]sample{}
	for i, w := range workloads {
		if i == 0 || !strings.HasPrefix(w.name, "read 4k") {
			p.fio(b, "--rw=write", "--bs=1M", "--iodepth=8")
			time.Sleep(time.Second) // both get the same pause to settle
		}
		if strings.Contains(w.name, "read") && !strings.Contains(w.name, "again") {
			p.cold()
		}
		out[w.name] = p.fio(b, append(w.args, "--time_based", "--runtime=4")...)
	}
	return out
}

// fio runs one job and returns what it did, and what it cost the server.
func (p *peer) fio(b *testing.B, args ...string) sample {
	b.Helper()
	cpu, disk := p.usage(b)
	collected := p.collected()
	all := append([]string{"--name=x", "--ioengine=nbd", "--uri=" + p.uri, "--size=1G", "--output-format=json"}, args...)
	out, err := exec.Command("fio", all...).Output()
	if err != nil {
		b.Fatalf("fio %q: %v", args, err)
	}
	cpu2, disk2 := p.usage(b)
	var r struct {
		Jobs []struct {
			Read, Write struct {
				IOPS     float64 `json:"iops"`
				TotalIOs float64 `json:"total_ios"`
				IOBytes  float64 `json:"io_bytes"`
			}
		}
	}
	text := string(out)
	if err := json.Unmarshal([]byte(text[strings.Index(text, "{"):]), &r); err != nil || len(r.Jobs) != 1 {
		b.Fatalf("fio's answer: %v\n%s", err, text)
	}
	j := r.Jobs[0]
	s := sample{rate: j.Read.IOPS + j.Write.IOPS, cpu: (cpu2 - cpu) / (j.Read.TotalIOs + j.Write.TotalIOs)}
	if j.Write.IOBytes > 0 {
		copied := p.collected() - collected
		s.diskRatio, s.collected = (disk2-disk-copied)/j.Write.IOBytes, copied/j.Write.IOBytes
	}
	return s
}

// usage returns the servers' processor time in µs and their bytes written to disk.
func (p *peer) usage(b *testing.B) (cpu, disk float64) {
	b.Helper()
	for _, pid := range p.pids {
		c, d := usage(b, pid)
		cpu, disk = cpu+c, disk+d
	}
	return cpu, disk
}

func usage(b *testing.B, pid int) (cpu, disk float64) {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, f := range fields[11:13] { // user and system time, in ticks of 10 ms
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			b.Fatal(err)
		}
		cpu += n * 10_000
	}
	counters, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(counters)) {
		if n, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			if disk, err = strconv.ParseFloat(strings.TrimSpace(n), 64); err != nil {
				b.Fatal(err)
			}
		}
	}
	return cpu, disk
}

func printShares(b *testing.B, results map[string]map[string][]sample) {
	fmt.Printf("\n%-28s %12s %12s %7s %16s %10s %10s\n", "", "qemu-nbd/s", "torus/s", "share", "CPU us (theirs)", "to disk", "collected")
	for _, w := range workloads {
		ours, theirs := results[w.name]["torus"], results[w.name]["qemu-nbd"]
		share := median(ours, rate) / median(theirs, rate)
		fmt.Printf("%-28s %12.0f %12.0f %7.2f %8.1f (%5.1f) %10.2f %10.2f\n", w.name, median(theirs, rate), median(ours, rate), share,
			median(ours, processor), median(theirs, processor), median(ours, toDisk), median(ours, copied))
		b.ReportMetric(share, strings.NewReplacer(" ", "_", ",", "").Replace(w.name))
	}
}

func rate(s sample) float64      { return s.rate }
func processor(s sample) float64 { return s.cpu }
func toDisk(s sample) float64    { return s.diskRatio }

func copied(s sample) float64 { return s.collected }

func median(samples []sample, of func(sample) float64) float64 {
	var values []float64
	for _, s := range samples {
		values = append(values, of(s))
	}
	slices.Sort(values)
	return values[len(values)/2]
}
