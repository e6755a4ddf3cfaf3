package main_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"torus/node"
)

// flipPage changes a byte of a page, of which p is the content, in the store of a
// data directory, behind its back.
func flipPage(t *testing.T, dir string, p []byte) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(node.StoreDir(dir), "segments", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(b, p)
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{p[100] ^ 1}, int64(at)+100)
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("the page is in none of %q", names)
}

// TestScrub: what a disk has lost without anybody noticing is found, and rewritten
// from another copy; what no copy has is told.
func TestScrub(t *testing.T) {
	c := startCluster(t, 3)
	c.awaitVoters(3)
	c.torus("volume", "create", "vol1", "16M", "--replicas", "3")
	p := c.serve()
	_, addr := p.served()
	l := startLoad(t, addr, 8<<20)
	l.another()
	l.end()
	want := l.content(8 << 20)
	page := func(n int) []byte { return want[n*4096:][:4096] }
	scrub := func() (found []struct{ Corrupt, Unlike, Lost, Bytes, Done, Total int64 }) {
		t.Helper()
		if err := json.Unmarshal([]byte(c.torus("scrub", "vol1", "-o", "json")), &found); err != nil || len(found) != 1 {
			t.Fatalf("%v: %+v", err, found)
		}
		return found
	}

	flipPage(t, c.dirs[0], page(3))
	flipPage(t, c.dirs[1], page(700))
	s := scrub()[0]
	if s.Corrupt != 2 || s.Lost != 0 || s.Unlike != 0 || s.Bytes != 3*8<<20 || s.Done != 16<<20 || s.Total != s.Done {
		t.Errorf("with two bytes flipped: %+v", s)
	}
	waitFor(t, "the pages to be rewritten", func() bool { s = scrub()[0]; return s.Corrupt == 0 })
	var status string
	waitFor(t, "status to name the nodes", func() bool {
		status = c.torus("status")
		return strings.Contains(status, "node n1 came upon corrupt pages, ") && strings.Contains(status, "node n2 came upon corrupt pages, ")
	})
	if strings.Contains(status, "node n3 ") {
		t.Errorf("status says\n%s", status)
	}
	if shown := c.torus("volume", "show", "vol1"); !strings.Contains(shown, "all whole and alike") {
		t.Errorf("the volume shows\n%s", shown)
	}

	for _, dir := range c.dirs {
		flipPage(t, dir, page(5))
	}
	out := refused(t, 1, torus(t), "scrub", "--cluster", c.api())
	if !strings.Contains(out, "volume vol1: 1 page: no copy is whole: restore them from a backup") {
		t.Errorf("with a page flipped everywhere:\n%s", out)
	}
	if status = c.torus("status"); !strings.Contains(status, "volume vol1 has 1 page of which no copy is whole") {
		t.Errorf("status says\n%s", status)
	}
	cl, err := dialNBD(addr, "vol1")
	if err != nil {
		t.Fatal(err)
	}
	defer cl.close()
	if err := <-cl.write(page(5), 5*4096).done; err != nil {
		t.Fatal(err)
	}
	if s = scrub()[0]; s.Corrupt != 0 || s.Lost != 0 {
		t.Errorf("with the page written again: %+v", s)
	}
	p.stop()
	flipPage(t, c.dirs[2], page(9))
	if s = scrub()[0]; s.Corrupt != 1 || s.Lost != 0 {
		t.Errorf("attached by nobody, with a byte flipped: %+v", s)
	}
	waitFor(t, "the volume to be given up", func() bool { return c.epoch() == 0 })
	for _, n := range c.nodes {
		n.stop()
	}
	c.equalCopies(t, append(want, make([]byte, 8<<20)...), 3)
}
