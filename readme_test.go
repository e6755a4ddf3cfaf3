package main_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadme runs the commands of README.md in their order. Ports, directories
// and the binary are put in place of those that it names; a command that keeps
// running is taken to work when its node serves, and is stopped by the next
// section.
func TestReadme(t *testing.T) {
	for _, tool := range []string{"nbdinfo", "nbdcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			cannot(t, "%s: %v", tool, err)
		}
	}
	r := &readme{t: t, dir: t.TempDir(), ran: map[string]bool{}}
	image := make([]byte, 1<<20)
	copy(image, "an image")
	if err := os.WriteFile(filepath.Join(r.dir, "disk.img"), image, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range shellLines(t, "README.md") {
		r.run(line)
	}
	if r.node != nil {
		r.node.stop()
	}
	for _, must := range []string{"go run . dev", "nbdcopy", "torus init", "torus start", "torus store check", "torus status"} {
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
	t    *testing.T
	dir  string
	node *process // the one that runs
	ran  map[string]bool
}

// run does what one line says.
func (r *readme) run(line string) {
	r.t.Helper()
	for _, what := range []string{"go run . dev", "nbdcopy", "torus init", "torus start", "torus store check", "torus status"} {
		if strings.Contains(line, what) {
			r.ran[what] = true
		}
	}
	line = strings.ReplaceAll(line, "/var/lib/torus", filepath.Join(r.dir, "node"))
	args := strings.Fields(line)
	switch {
	case line == "go test ./...", strings.HasPrefix(line, "go build"):
		return // this is that; the binary is built
	case line == "go run . dev":
		r.start("dev", "--port", "0", "--nbd", "127.0.0.1:0")
	case args[0] == "./torus" && args[1] == "init":
		r.start(append(replaceNBD(args[1:]), "--port", "0")...)
	case args[0] == "./torus" && args[1] == "start":
		r.start(args[1:]...)
	default:
		r.command(args)
	}
}

// start runs a node in place of the one before.
func (r *readme) start(args ...string) {
	if r.node != nil {
		r.node.stop()
	}
	r.node = startNode(r.t, args...)
}

// command runs a program that ends. The store is checked while no node has it.
func (r *readme) command(args []string) {
	r.t.Helper()
	if args[0] == "./torus" {
		args[0] = torus(r.t)
		if args[1] == "store" && r.node != nil {
			r.node.stop()
			r.node = nil
		}
	}
	for i, a := range args {
		args[i] = strings.Replace(a, "nbd://127.0.0.1:10809/vol1", r.uri(), 1)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = r.dir, os.Environ()
	if r.node != nil {
		cmd.Env = append(cmd.Env, "TORUS_CLUSTER="+r.node.running.API)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

func (r *readme) uri() string {
	if r.node != nil && len(r.node.running.URIs) > 0 {
		return r.node.running.URIs[0]
	}
	return "no node"
}

func replaceNBD(args []string) []string {
	for i, a := range args {
		args[i] = strings.Replace(a, ":10809", ":0", 1)
	}
	return args
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
