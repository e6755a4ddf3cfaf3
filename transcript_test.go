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
	"slices"
	"strconv"
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
// where a command fails. A command that ends with " &" is a node, or an exporter:
// it runs until "$ kill %1", the second of them until "$ kill %2", or ends by
// itself at "$ wait %2"; the commands that follow find the first node through
// TORUS_CLUSTER. A line
//
//	# until: COMMAND shows N TEXT
//
// waits until the output of a command has a text N times.
//
// What differs from run to run is shown by what stands in mask.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel() // most of it is waiting
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
	cluster string // API of the first node, once there is one
	apis    []string
	jobs    []*job
	text    strings.Builder
}

// A job is a command that runs in the background.
type job struct {
	cmd   *exec.Cmd
	out   *bufio.Reader
	ended bool
}

func newSession(t *testing.T) *session {
	s := &session{t: t, dir: scratchDir(t), cluster: "127.0.0.1:1"} // where nobody listens
	t.Cleanup(func() {
		for _, j := range s.jobs {
			if !j.ended {
				_ = j.cmd.Process.Kill()
				_ = j.cmd.Wait()
			}
		}
	})
	return s
}

// run runs the commands of a transcript and returns it with what they print.
func (s *session) run(script string) string {
	why, _, _ := strings.Cut(script, "\n$ ")
	s.text.WriteString(strings.TrimRight(why, "\n") + "\n\n")
	for _, line := range strings.Split(script, "\n") {
		if condition, ok := strings.CutPrefix(line, "# until: "); ok {
			s.text.WriteString(line + "\n")
			s.until(condition)
		}
		command, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		s.text.WriteString(line + "\n")
		background, isJob := strings.CutSuffix(command, " &")
		killed, isKill := strings.CutPrefix(command, "kill %")
		awaited, isWait := strings.CutPrefix(command, "wait %")
		switch {
		case isJob:
			s.start(background)
		case isKill:
			s.kill(s.job(killed))
		case isWait:
			s.wait(s.job(awaited))
		default:
			s.command(command)
		}
	}
	return s.text.String()
}

// shell returns a command as a person types it. The environment stands for the
// flags that keep parallel tests apart.
func (s *session) shell(command string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", s.unmask(command))
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
	if strings.Contains(command, "nbd serve") && !strings.Contains(command, "--listen") && !strings.Contains(command, "--socket") {
		cmd.Env = append(cmd.Env, "TORUS_LISTEN=127.0.0.1:0")
	}
	return cmd
}

// until waits for a condition: COMMAND shows N TEXT.
func (s *session) until(condition string) {
	command, shown, _ := strings.Cut(condition, " shows ")
	number, text, _ := strings.Cut(shown, " ")
	want, err := strconv.Atoi(number)
	if err != nil || text == "" {
		s.t.Fatalf("%q: want COMMAND shows N TEXT", condition)
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		out, err := s.shell(command).CombinedOutput()
		if err == nil && strings.Count(string(out), text) == want { // it may fail meanwhile
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("waited %v until %s; now it shows, %v:\n%s", patience, condition, err, out)
		}
	}
}

// job finds a background command by its number, from 1.
func (s *session) job(number string) *job {
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > len(s.jobs) || s.jobs[n-1].ended {
		s.t.Fatalf("%%%s: no such job runs", number)
	}
	return s.jobs[n-1]
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

// start runs a command in the background, up to the last line of its banner.
func (s *session) start(command string) {
	cmd := s.shell("exec " + command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout // one stream, as on a terminal
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	j := &job{cmd: cmd, out: bufio.NewReader(out)}
	for len(s.jobs) > 0 && s.jobs[len(s.jobs)-1].ended { // numbers are given again, as a shell does
		s.jobs = s.jobs[:len(s.jobs)-1]
	}
	s.jobs = append(s.jobs, j)
	timeout := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timeout.Stop()
	var banner strings.Builder
	for line := ""; line != "Ctrl-C stops it.\n"; banner.WriteString(line) {
		if line, err = j.out.ReadString('\n'); err != nil {
			s.t.Fatalf("%s: %v\n%s%s", command, err, &banner, line)
		}
		if api, ok := strings.CutPrefix(strings.TrimSpace(line), "API"); ok {
			s.serves(strings.TrimSpace(api))
		}
	}
	s.print(banner.String())
}

// serves takes note of where a node answers; one that runs again does so where it
// did.
func (s *session) serves(api string) {
	if !slices.Contains(s.apis, api) {
		s.apis = append(s.apis, api)
	}
	s.cluster = s.apis[0]
}

// kill stops a job cleanly.
func (s *session) kill(j *job) {
	if err := j.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	s.wait(j)
}

// wait prints what a job still says until it has ended.
func (s *session) wait(j *job) {
	timeout := time.AfterFunc(patience, func() { _ = j.cmd.Process.Kill() })
	defer timeout.Stop()
	rest, err := io.ReadAll(j.out)
	if err != nil {
		s.t.Fatal(err)
	}
	s.print(string(rest))
	j.ended = true
	_ = j.cmd.Wait() // its error is the exit code
	if state := j.cmd.ProcessState; state.ExitCode() > 0 {
		fmt.Fprintf(&s.text, "[exit %d]\n", state.ExitCode())
	} else if !state.Success() {
		fmt.Fprintf(&s.text, "[%v]\n", state)
	}
}

// ports calls f with each address of a node, and with what stands for it: the
// ports of the first, P to P+3, become 17480 to 17483, those of the second 17490
// and so on: as many digits.
func (s *session) ports(f func(real, shown string)) {
	for n, api := range s.apis {
		host, port, _ := strings.Cut(api, ":")
		p, err := strconv.Atoi(port)
		if err != nil {
			s.t.Fatalf("API %q: %v", api, err)
		}
		for i := range 4 {
			f(fmt.Sprintf("%s:%d", host, p+i), fmt.Sprintf("%s:%d", host, 17480+10*n+i))
		}
	}
}

// unmask puts the addresses of the nodes into a command.
func (s *session) unmask(command string) string {
	var pairs []string
	s.ports(func(real, shown string) { pairs = append(pairs, shown, real) })
	return strings.NewReplacer(pairs...).Replace(command)
}

// print adds output, masked.
func (s *session) print(out string) {
	out = strings.ReplaceAll(out, s.dir, "/home/you")
	var pairs []string
	s.ports(func(real, shown string) { pairs = append(pairs, real, shown) })
	out = strings.NewReplacer(pairs...).Replace(out)
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
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "0123456789abcdef"},                                    // IDs
	{regexp.MustCompile(`Still starting .*\n`), ""},                                                 // a slow machine
	{regexp.MustCompile(`time=\S+ level=ERROR msg="(volume stopped|attachment ended)[^\n]*\n`), ""}, // said at the end as well
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "2026-01-02T03:04:05Z"},
	{regexp.MustCompile(`process \d+( on [\w.-]+)`), "process 4242 on HOST"},
	{regexp.MustCompile(`process \d+`), "process 4242"},
	{regexp.MustCompile(`in use by another process \(\d+\)`), "in use by another process (4242)"},
	{regexp.MustCompile(`with port \d{5}`), "with port 17480"},
	{regexp.MustCompile(`torus-dev-\d+`), "torus-dev-1234567890"},
	{regexp.MustCompile(`nbd://127\.0\.0\.1:(3[2-9]|[4-6]\d)\d\d\d\b`), "nbd://127.0.0.1:10809"}, // a port that the kernel chose
	{regexp.MustCompile(`(NBD +)127\.0\.0\.1:(3[2-9]|[4-6]\d)\d\d\d\b`), "${1}127.0.0.1:10809"},
	{regexp.MustCompile(`\b(\d+(\.\d)? [KMG]iB|0 B) +(10 GiB)`), "### MiB  $3"}, // segments made ahead
	{regexp.MustCompile(`[\d.]+ \S+ on disk`), "### MiB on disk"},
	{regexp.MustCompile(`(etcd +)127\.0\.0\.1:\d{5}(, 127\.0\.0\.1:\d{5})*`), "${1}127.0.0.1:17482"}, // as many as have joined by then
	{regexp.MustCompile(`"torus join 127\.0\.0\.1:\d{5}"`), `"torus join 127.0.0.1:17480"`},          // any node
	{regexp.MustCompile(`at \d+ is corrupt: segment [0-9a-f]+ block \d+: .*`), "at 73728 is corrupt: ..."},
	{regexp.MustCompile(`torus \S+, go\S+, \S+`), "torus VERSION, GO, PLATFORM"},
	{regexp.MustCompile(`"host": ".*"`), `"host": "HOST"`},
	{regexp.MustCompile(`"(used|live)": \d+`), `"$1": 0`},
}
