package main_test

import "testing"

// TestStartOnFullDisk: a node starts though others have filled its disk while it
// was down.
func TestStartOnFullDisk(t *testing.T) {
	if err := canIsolate(); err != nil {
		cannot(t, "a disk of its own: %v", err)
	}
	r := newRack(t, t.TempDir(), 1)
	t.Cleanup(r.stopAll)
	m := r.nodes[0]
	r.found(m, "init", "--data-dir", m.data(), "--listen", m.ip, "--insecure")
	m.kill()
	r.reboot(m) // so that the store has something to write at once, as etcd has
	r.fill(m, true)
	r.found(m, "start", "--data-dir", m.data())
	r.stop(m)
	if err := r.look(m); err != nil {
		t.Fatal(err)
	}
}
