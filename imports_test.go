package main_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// edges is which package of this module may import which, and why. It is the
// table "The house" of the design; whatever is not here is forbidden.
var edges = map[string]map[string]string{
	"torus": {
		"torus/cli": "the program is its command line",
	},
	"torus/cli": {
		"torus/node":          "dev, init and start run one",
		"torus/cluster":       "commands read and change the records",
		"torus/ring":          "words: zones",
		"torus/store":         "words: sizes of volumes",
		"torus/store/segment": "store check looks at a stopped node's store",
		"torus/volume":        "tools that read a volume",
		"torus/nbd":           "exporting from a process that is no node",
	},
	"torus/node": {
		"torus/cluster":       "runs etcd, registers itself, attaches volumes",
		"torus/volume":        "opens what it attached",
		"torus/store":         "the contract of the pages that it keeps",
		"torus/store/segment": "keeps them on this machine's disk",
		"torus/store/remote":  "dials other nodes' stores, and serves its own",
		"torus/nbd":           "exports volumes",
		"torus/ring":          "words: node IDs, and where chunks lie",
	},
	"torus/volume": {
		"torus/cluster": "words of attachments, stale records",
		"torus/store":   "the contract that copies are kept by",
		"torus/ring":    "words: node IDs, chunks",
	},
	"torus/cluster": {
		"torus/ring":  "words: nodes, lineages",
		"torus/store": "words: volumes, layers, epochs, incarnations",
	},
	"torus/store/segment":    {"torus/store": "implements it"},
	"torus/store/remote":     {"torus/store": "implements it"},
	"torus/store/memstore":   {"torus/store": "implements it"},
	"torus/store/faultstore": {"torus/store": "implements it"},
	"torus/store/storetest":  {"torus/store": "tests it"},
	"torus/store":            {},
	"torus/ring":             {},
	"torus/nbd":              {},
}

// owners says which package alone names a dependency.
var owners = []struct{ prefix, owner, why string }{
	{"go.etcd.io/", "torus/cluster", "the records could stand on something else"},
	{"go.uber.org/", "torus/cluster", "zap is etcd's log, not ours"},
	{"google.golang.org/", "torus/cluster", "gRPC is how etcd is spoken to"},
	{"github.com/dgraph-io/", "torus/store/segment", "the index could be another"},
	{"github.com/alecthomas/kong", "torus/cli", "commands could be parsed by another"},
	{"github.com/prometheus/", "torus/node", "packages keep plain counters"},
}

// anywhere may be imported by every package.
var anywhere = []string{"golang.org/x/sys/unix"}

// TestImports holds the code, tests apart, to the table.
func TestImports(t *testing.T) {
	for path, imports := range listImports(t) {
		allowed, known := edges[path]
		if !known {
			t.Errorf("package %s is not in the table: say what it may import, and why", path)
		}
		for _, imported := range imports {
			checkImport(t, path, imported, allowed)
		}
	}
}

func checkImport(t *testing.T, path, imported string, allowed map[string]string) {
	t.Helper()
	if strings.HasPrefix(imported, "torus/") {
		if allowed[imported] == "" {
			t.Errorf("%s imports %s, which the table does not permit", path, imported)
		}
		return
	}
	if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") || slices.Contains(anywhere, imported) {
		return // the standard library has no dot
	}
	for _, o := range owners {
		if strings.HasPrefix(imported, o.prefix) {
			if path != o.owner {
				t.Errorf("%s imports %s, which only %s names: %s", path, imported, o.owner, o.why)
			}
			return
		}
	}
	t.Errorf("%s imports %s, which no package owns: add it to the table", path, imported)
}

// listImports returns what each package of this module imports, tests apart.
func listImports(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string][]string{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p.Imports
	}
	if len(all) < 5 {
		t.Fatalf("go list names only %d packages", len(all))
	}
	return all
}
