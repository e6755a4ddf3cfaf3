package cli

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// script returns what "torus completion SHELL" prints.
func script(t *testing.T, shell string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := Run(t.Context(), []string{"completion", shell}, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	return out.String()
}

// TestCompleteInBash asks a real bash what it would offer.
func TestCompleteInBash(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("bash is not installed")
	}
	load := script(t, "bash")
	for line, want := range map[string]string{
		"torus vol":                                 "volume",
		"torus volume re":                           "rename",
		"torus volume create x 1G --min":            "--min-copies",
		"torus -o json volume de":                   "delete",
		"torus completion f":                        "fish",
		"torus dev --data":                          "--data-dir",
		"torus --cluster 10.0.0.1:1 status --log-f": "--log-format",
	} {
		words := strings.Fields(line)
		ask := load + "\nCOMP_WORDS=(\"$@\"); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _torus; echo \"${COMPREPLY[*]}\""
		out, err := exec.Command("bash", append([]string{"-c", ask, "bash"}, words...)...).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", line, got, err, want)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	if s := script(t, "fish"); !strings.Contains(s, "complete -c torus -f -n '__fish_seen_subcommand_from volume' -a create") {
		t.Errorf("fish is told nothing of volume create:\n%s", s)
	}
	if s := script(t, "zsh"); !strings.Contains(s, "bashcompinit") || !strings.Contains(s, "complete -F _torus torus") {
		t.Errorf("zsh:\n%s", s)
	}
	var out, errs bytes.Buffer
	if code := Run(t.Context(), []string{"completion", "csh"}, &out, &errs); code != exitUsage {
		t.Errorf("csh: exit code %d", code)
	}
}
