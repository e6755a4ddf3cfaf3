package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// scratch is where the tests of this package keep what they share; TestMain
// removes it.
var scratch string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "torus-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	scratch = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// buildBinary builds the program, once, as it is released: static.
var buildBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "torus")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// torus returns the path of the built program.
func torus(t testing.TB) string {
	t.Helper()
	path, err := buildBinary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// long reports whether tests take their time, and whether a tool that is
// missing is a failure: on the machines that decide.
func long() bool { return os.Getenv("TORUS_LONG_TESTS") == "1" }

// cannot skips a test for want of something on this machine; with
// TORUS_LONG_TESTS=1 that is a failure.
func cannot(t testing.TB, format string, args ...any) {
	t.Helper()
	if long() {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// need wants programs to be installed.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			cannot(t, "%s is not installed", p)
		}
	}
}
