package node

import (
	"testing"
)

// A volume whose last sync fails is not recorded as clean, and the stop says so.
func TestCloseSaysWhatFailed(t *testing.T) {
	n, _ := newTestNode(t)
	d, release := mustOpen(t, n, "vol1")
	if _, err := d.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	release()
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.exports.close(); err == nil {
		t.Error("closed without a word")
	}
	if v := info(t, n, "vol1"); v.Clean || v.Attached != nil {
		t.Errorf("clean %v, attached %+v", v.Clean, v.Attached)
	}
}

// This node's past processes have ended, whatever /proc says: they held the lock
// of the directory.
func TestOwnPastIsDead(t *testing.T) {
	n, _ := newTestNode(t)
	past := n.process
	n.process.BootID = "before"
	_, release := mustOpen(t, n, "vol1")
	release()
	killed := n.exports
	defer killed.close()
	n.exports = newExports(n, nil) // the records are as a kill leaves them
	n.process = past
	_, release = mustOpen(t, n, "vol1")
	release()
}
