package main_test

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pmezard/go-difflib/difflib"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// TestTranscripts runs the scenarios in testdata/*.txt with the real program and
// a real node, and compares what is printed. A scenario begins with a sentence
// of why; then come lines "$ COMMAND" with the output after each, and "[exit N]"
// where a command fails. A command that ends with " &" is a node: it runs until
// "$ kill %1", and the commands that follow find it through TORUS_CLUSTER.
//
// What differs from run to run is shown by what stands in mask.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := string(b)
			if strings.Contains(want, "$ nbdcopy") {
				need(t, "nbdcopy")
			}
			got := newSession(t).run(want)
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

// A session is one scenario being run.
type session struct {
	t       *testing.T
	dir     string // where commands run
	cluster string // API of the node, once there is one
	api     string // the same, after the node has ended
	node    *exec.Cmd
	out     *bufio.Reader
	text    strings.Builder
}

func newSession(t *testing.T) *session {
	s := &session{t: t, dir: scratchDir(t), cluster: "127.0.0.1:1"} // where nobody listens
	t.Cleanup(func() {
		if s.node != nil {
			_ = s.node.Process.Kill()
			_ = s.node.Wait()
		}
	})
	return s
}

// run runs the commands of a transcript and returns it with what they print.
func (s *session) run(script string) string {
	why, _, _ := strings.Cut(script, "\n$ ")
	s.text.WriteString(strings.TrimRight(why, "\n") + "\n\n")
	for _, line := range strings.Split(script, "\n") {
		command, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		s.text.WriteString(line + "\n")
		switch node, isNode := strings.CutSuffix(command, " &"); {
		case isNode:
			s.startNode(node)
		case command == "kill %1":
			s.stopNode()
		default:
			s.command(command)
		}
	}
	return s.text.String()
}

// shell returns a command as a person types it. The environment stands for the
// flags that keep parallel tests apart.
func (s *session) shell(command string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir = s.dir
	cmd.Env = []string{
		"PATH=" + filepath.Dir(torus(s.t)) + ":" + os.Getenv("PATH"), "HOME=" + s.dir, "TMPDIR=" + s.dir,
		"TORUS_CLUSTER=" + s.cluster, "TORUS_LOG_LEVEL=error",
	}
	if !strings.Contains(command, "--port") {
		cmd.Env = append(cmd.Env, "TORUS_PORT=0")
	}
	if strings.Contains(command, "torus dev") && !strings.Contains(command, "--nbd") {
		cmd.Env = append(cmd.Env, "TORUS_NBD=127.0.0.1:0")
	}
	return cmd
}

// command runs one command to its end.
func (s *session) command(command string) {
	cmd := s.shell(command)
	out, _ := cmd.CombinedOutput() // its error is the exit code
	s.print(string(out))
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		fmt.Fprintf(&s.text, "[exit %d]\n", code)
	}
}

// startNode runs a node up to the last line of its banner.
func (s *session) startNode(command string) {
	s.node = s.shell("exec " + command)
	s.node.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := s.node.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.node.Stderr = s.node.Stdout // one stream, as on a terminal
	if err := s.node.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	timeout := time.AfterFunc(patience, func() { _ = s.node.Process.Kill() })
	defer timeout.Stop()
	var banner strings.Builder
	for line := ""; line != "Ctrl-C stops it.\n"; banner.WriteString(line) {
		if line, err = s.out.ReadString('\n'); err != nil {
			s.t.Fatalf("%s: %v\n%s%s", command, err, &banner, line)
		}
		if api, ok := strings.CutPrefix(strings.TrimSpace(line), "API"); ok {
			s.cluster = strings.TrimSpace(api)
			s.api = s.cluster
		}
	}
	s.print(banner.String())
}

// stopNode stops it cleanly.
func (s *session) stopNode() {
	if err := s.node.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	rest, err := io.ReadAll(s.out)
	if err != nil {
		s.t.Fatal(err)
	}
	s.print(string(rest))
	if err := s.node.Wait(); err != nil {
		fmt.Fprintf(&s.text, "[%v]\n", err)
	}
	s.node = nil
}

// print adds output, masked.
func (s *session) print(out string) {
	out = strings.ReplaceAll(out, s.dir, "/home/you")
	if host, port, ok := strings.Cut(s.api, ":"); ok {
		// The node's ports, P to P+3, become 17480 to 17483: as many digits.
		var p int
		fmt.Sscan(port, &p)
		for i := range 4 {
			out = strings.ReplaceAll(out, fmt.Sprintf("%s:%d", host, p+i), fmt.Sprintf("%s:%d", host, 17480+i))
		}
	}
	for _, m := range mask {
		out = m.expr.ReplaceAllString(out, m.by)
	}
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	s.text.WriteString(out)
}

// mask is what is hidden, and by what.
var mask = []struct {
	expr *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "0123456789abcdef"}, // IDs
	{regexp.MustCompile(`Still starting .*\n`), ""},              // a slow machine
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "2026-01-02T03:04:05Z"},
	{regexp.MustCompile(`process \d+`), "process 4242"},
	{regexp.MustCompile(`in use by another process \(\d+\)`), "in use by another process (4242)"},
	{regexp.MustCompile(`with port \d{5}`), "with port 17480"},
	{regexp.MustCompile(`torus-dev-\d+`), "torus-dev-1234567890"},
	{regexp.MustCompile(`nbd://127\.0\.0\.1:(3[2-9]|[4-6]\d)\d\d\d\b`), "nbd://127.0.0.1:10809"}, // a port that the kernel chose
	{regexp.MustCompile(`(NBD +)127\.0\.0\.1:(3[2-9]|[4-6]\d)\d\d\d\b`), "${1}127.0.0.1:10809"},
	{regexp.MustCompile(`\d\d\d MiB(  +10 GiB)`), "### MiB$1"}, // segments made ahead
	{regexp.MustCompile(`at \d+ is corrupt: segment [0-9a-f]+ block \d+: .*`), "at 73728 is corrupt: ..."},
	{regexp.MustCompile(`torus \S+, go\S+, \S+`), "torus VERSION, GO, PLATFORM"},
	{regexp.MustCompile(`"host": ".*"`), `"host": "HOST"`},
	{regexp.MustCompile(`"(used|live)": \d+`), `"$1": 0`},
}
