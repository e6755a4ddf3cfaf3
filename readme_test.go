package main_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// readmeCommands are what README.md has to show.
var readmeCommands = []string{"go run . dev", "nbdcopy", "torus init", "torus join", "torus start", "torus nbd serve",
	"torus store check", "torus status", "torus node remove"}

// TestReadme runs the commands of README.md in their order. Ports, directories
// and the binary are put in place of those that it names; a command that keeps
// running is taken to work when it serves. dev ends where a cluster begins, and a
// node or an export when a command follows that needs it stopped.
func TestReadme(t *testing.T) {
	for _, tool := range []string{"nbdinfo", "nbdcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			cannot(t, "%s: %v", tool, err)
		}
	}
	r := &readme{t: t, dir: scratchDir(t), running: map[string]*process{}, ran: map[string]bool{}}
	image := make([]byte, 1<<20)
	copy(image, "an image")
	if err := os.WriteFile(filepath.Join(r.dir, "disk.img"), image, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range shellLines(t, "README.md") {
		r.run(line)
	}
	for _, must := range readmeCommands {
		if !r.ran[must] {
			t.Errorf("README.md does not show %q any more", must)
		}
	}
	copied, err := os.ReadFile(filepath.Join(r.dir, "copy.img"))
	if err != nil || string(copied[:len(image)]) != string(image) {
		t.Errorf("what was copied out is not what was copied in (%v)", err)
	}
}

type readme struct {
	t       *testing.T
	dir     string
	running map[string]*process // by data directory; "dev" and "nbd"
	first   string              // API of the first node
	uri     string
	ran     map[string]bool
}

// run does what one line says.
func (r *readme) run(line string) {
	r.t.Helper()
	for _, what := range readmeCommands {
		if strings.Contains(line, what) {
			r.ran[what] = true
		}
	}
	args := strings.Fields(line)
	dir := r.dataDir(args)
	switch {
	case line == "go test ./...", strings.HasPrefix(line, "go build"):
		return // this is that; the binary is built
	case line == "go run . dev":
		r.start("dev", "dev", "--port", "0", "--nbd", "127.0.0.1:0")
		r.uri = r.running["dev"].running.URIs[0]
	case strings.Contains(line, "torus init"):
		r.stop("dev")
		r.start(dir, append(args[1:], "--port", "0")...)
		r.first = r.running[dir].running.API
	case strings.Contains(line, "torus join"):
		args[2] = r.first
		r.start(dir, append(args[1:], "--port", "0")...)
	case strings.Contains(line, "torus start"):
		r.stop(dir)
		r.start(dir, args[1:]...)
	case strings.Contains(line, "torus nbd serve"):
		r.start("nbd", append(args[1:], "--listen", "127.0.0.1:0", "--cluster", r.first)...)
	default:
		if strings.Contains(line, "torus store check") {
			r.stop(dir)
		}
		if strings.Contains(line, "torus volume delete") {
			r.stop("nbd")
		}
		r.command(args)
	}
}

// dataDir puts the data directory that args name below the test's.
func (r *readme) dataDir(args []string) string {
	if i := slices.Index(args, "--data-dir"); i >= 0 {
		args[i+1] = filepath.Join(r.dir, args[i+1])
		return args[i+1]
	}
	return ""
}

func (r *readme) start(name string, args ...string) {
	if i := slices.Index(args, "--port"); i >= 0 && i+2 < len(args) && args[len(args)-2] == "--port" {
		args = slices.Delete(args, i, i+2) // that of the document, where another follows
	}
	r.running[name] = startNode(r.t, args...)
}

func (r *readme) stop(name string) {
	if p := r.running[name]; p != nil {
		p.stop()
		delete(r.running, name)
	}
}

// command runs a program that ends.
func (r *readme) command(args []string) {
	r.t.Helper()
	if args[0] == "./torus" {
		args[0] = torus(r.t)
	}
	for i, a := range args {
		args[i] = strings.Replace(a, "nbd://127.0.0.1:10809/vol1", r.uri, 1)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = r.dir, append(os.Environ(), "TORUS_CLUSTER="+r.first)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// shellLines returns the lines of a document's sh blocks.
func shellLines(t *testing.T, name string) []string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lines []string
	inside := false
	for s := bufio.NewScanner(f); s.Scan(); {
		switch line := strings.TrimSpace(s.Text()); {
		case line == "```sh":
			inside = true
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside && line != "":
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		t.Fatalf("%s has no commands", name)
	}
	return lines
}
