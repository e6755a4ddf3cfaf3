package cluster

import (
	"os/exec"
	"testing"
)

// A process that ends while it is looked at has ended: that is no failure to look.
func TestLookAtEnding(t *testing.T) {
	for range 200 {
		cmd := exec.Command("true")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for {
			s, err := look(Process{}, cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if !s.Exists {
				break
			}
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}
