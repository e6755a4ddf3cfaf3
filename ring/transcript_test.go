package ring

import (
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pmezard/go-difflib/difflib"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata/ring")

// TestTranscripts plays what stands in testdata/ring/*.txt: a sentence of why, then
// commands after "$ " with what they print.
//
//	copies N
//	node NAME WEIGHT ZONE HOST   adds or changes a node; NAME is n and its ID
//	remove NAME
//	ring                         builds a ring, from the one before, and prints it
//	look LINEAGE CHUNK           prints where a chunk lies
//	encode                       prints the ring as it is kept
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("../testdata/ring/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, got := string(b), play(t, string(b))
			if got == want {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			diff, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
				A: difflib.SplitLines(want), B: difflib.SplitLines(got), FromFile: file, ToFile: "now", Context: 3,
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Errorf("rewrite it with -update if this is right:\n%s", diff)
		})
	}
}

// A scene is a transcript being played.
type scene struct {
	strings.Builder
	copies  int
	members []Member
	ring    *Ring
}

func play(t *testing.T, script string) string {
	s := &scene{copies: 2}
	why, _, _ := strings.Cut(script, "\n$ ")
	fmt.Fprintf(s, "%s\n\n", strings.TrimRight(why, "\n"))
	for _, line := range strings.Split(script, "\n") {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			fmt.Fprintln(s, line)
			if err := s.command(strings.Fields(command)); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
	}
	return s.String()
}

func (s *scene) command(words []string) error {
	number := func(i int) int64 {
		n, err := strconv.ParseInt(strings.TrimPrefix(words[i], "n"), 10, 64)
		if err != nil {
			panic(err)
		}
		return n
	}
	switch words[0] {
	case "copies":
		s.copies = int(number(1))
	case "node":
		s.remove(NodeID(number(1)))
		s.members = append(s.members, Member{ID: NodeID(number(1)), Weight: number(2), Zone: Zone(words[3]), Host: words[4]})
	case "remove":
		s.remove(NodeID(number(1)))
	case "ring":
		s.build()
	case "look":
		l, c := LineageID(number(1)), ChunkIndex(number(2))
		fmt.Fprintf(s, "partition %d: %s\n", partition(l, c), names(s.ring.Nodes(l, c)))
	case "encode":
		b, err := json.Marshal(s.ring)
		if err != nil {
			return err
		}
		head, table, _ := strings.Cut(string(b), `"table":"`)
		fmt.Fprintf(s, "%s\"table\":\"%.16s... %d bytes\n", strings.ReplaceAll(head, `{"id"`, "\n  {\"id\""), table, len(b))
	default:
		return fmt.Errorf("no such command")
	}
	return nil
}

func (s *scene) remove(id NodeID) {
	s.members = slices.DeleteFunc(s.members, func(m Member) bool { return m.ID == id })
}

// build prints the ring's shares, in percent, how much moved, and a checksum: a table
// that differs is not wrong, but should not differ without being noticed.
func (s *scene) build() {
	r, err := New(s.copies, s.members, s.ring)
	if err != nil {
		fmt.Fprintln(s, err)
		return
	}
	fmt.Fprintf(s, "%-5s %6s  %-5s %-5s %7s %7s %7s\n", "node", "weight", "zone", "host", "best", "data", "first")
	for _, m := range r.Shares() {
		fmt.Fprintf(s, "n%-4d %6d  %-5s %-5s %7.2f %7.2f %7.2f\n", m.Member.ID, m.Member.Weight, m.Member.Zone, m.Member.Host,
			100*m.Best, 100*m.Data, 100*float64(m.First)/Partitions)
	}
	if s.ring != nil {
		fmt.Fprintf(s, "moved %.2f %% (shares alone: %.2f %%)\n", 100*Moved(s.ring, r), 100*leastByShares(s.ring, r))
	}
	h := fnv.New32a()
	for _, id := range r.table {
		fmt.Fprintln(h, id)
	}
	fmt.Fprintf(s, "begins %s, %s, %s; checksum %08x\n", names(r.row(0)), names(r.row(1)), names(r.row(2)), h.Sum32())
	s.ring = r
}

func names(ids []NodeID) string {
	var all []string
	for _, id := range ids {
		all = append(all, fmt.Sprint("n", uint64(id)))
	}
	return strings.Join(all, " ")
}
