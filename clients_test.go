package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestNBDInfo: a client sees all that the server can do.
func TestNBDInfo(t *testing.T) {
	need(t, "nbdinfo")
	p := startDev(t, t.TempDir(), "--size", "256MiB")
	for _, uri := range []string{p.uri(), p.socketURI()} {
		var info struct {
			Protocol   string
			Structured bool
			Exports    []map[string]any
		}
		if err := json.Unmarshal([]byte(command(t, "nbdinfo", "--json", uri)), &info); err != nil {
			t.Fatal(err)
		}
		if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 1 {
			t.Fatalf("%s: %+v", uri, info)
		}
		got := info.Exports[0]
		for key, want := range map[string]any{
			"export-name": "vol1", "export-size": 256.0 * (1 << 20), "is_read_only": false, "is_rotational": false,
			"can_flush": true, "can_fua": true, "can_trim": true, "can_zero": true, "can_fast_zero": true,
			"can_multi_conn": true, "can_df": true, "can_cache": true,
			"block_size_minimum": 1.0, "block_size_preferred": 4096.0, "block_size_maximum": 32.0 * (1 << 20),
		} {
			if got[key] != want {
				t.Errorf("%s: %s is %v, want %v", uri, key, got[key], want)
			}
		}
		if contexts := fmt.Sprint(got["contexts"]); contexts != "[base:allocation]" {
			t.Errorf("%s: contexts %s", uri, contexts)
		}
	}
	list := command(t, "nbdinfo", "--list", strings.TrimSuffix(p.uri(), "/vol1"))
	if !strings.Contains(list, `export="vol1"`) {
		t.Errorf("nbdinfo --list shows no vol1:\n%s", list)
	}
	p.stop()
}

// TestImage: a file system image goes in and comes out identical, also after
// the node has stopped and runs again; what was not written or trimmed is a
// hole.
func TestImage(t *testing.T) {
	need(t, "nbdcopy", "nbdinfo", "mkfs.ext4", "e2fsck", "qemu-io")
	dir, data := t.TempDir(), t.TempDir()
	const size = 64 << 20
	image := filepath.Join(dir, "in.img")
	makeExt4(t, image, size)

	p := startDev(t, data, "--size", "64MiB")
	if m := command(t, "nbdinfo", "--map", p.uri()); strings.Join(strings.Fields(m), " ") != fmt.Sprintf("0 %d 3 hole,zero", size) {
		t.Errorf("the map of an empty volume:\n%s", m)
	}
	command(t, "nbdcopy", "--flush", image, p.uri())
	checkImage(t, image, p.uri())
	p.stop()

	p = startDev(t, data)
	checkImage(t, image, p.socketURI())
	totals := command(t, "nbdinfo", "--map", "--totals", p.uri())
	if !strings.Contains(totals, "hole,zero") || !strings.Contains(totals, "data") {
		t.Errorf("an image with holes has the map\n%s", totals)
	}
	command(t, "qemu-io", "-f", "raw", "-d", "unmap", "-c", fmt.Sprintf("discard 0 %d", size), p.uri())
	if m := command(t, "nbdinfo", "--map", p.uri()); strings.Join(strings.Fields(m), " ") != fmt.Sprintf("0 %d 3 hole,zero", size) {
		t.Errorf("the map of a trimmed volume:\n%s", m)
	}
	command(t, "nbdcopy", p.uri(), filepath.Join(dir, "zero.img"))
	zero, err := os.ReadFile(filepath.Join(dir, "zero.img"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(zero, make([]byte, size)) {
		t.Error("a trimmed volume does not read as zeroes")
	}
	p.stop()
}

// makeExt4 makes an image with files in it.
func makeExt4(t *testing.T, image string, size int) {
	t.Helper()
	files := t.TempDir()
	rng := rand.NewChaCha8([32]byte{1})
	for i := range 20 {
		b := make([]byte, 1000+i*50000)
		rng.Read(b)
		if err := os.WriteFile(filepath.Join(files, fmt.Sprintf("file%d", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "mkfs.ext4", "-q", "-F", "-d", files, image, fmt.Sprintf("%dk", size>>10))
}

// checkImage copies a volume out and compares it.
func checkImage(t *testing.T, image, uri string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out.img")
	command(t, "nbdcopy", uri, out)
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the image came out different")
	}
	command(t, "e2fsck", "-fn", out)
}

// TestQemuIO: requests with edges inside pages.
func TestQemuIO(t *testing.T) {
	need(t, "qemu-io")
	p := startDev(t, t.TempDir(), "--size", "16MiB")
	out := command(t, "qemu-io", "-f", "raw", "-d", "unmap",
		"-c", "write -P 0xab 512 65536", "-c", "write -z 4k 1k", "-c", "discard 2M 1M", "-c", "write -f -P 0xcd 12345k 3k", "-c", "flush",
		"-c", "read -P 0xab 512 3584", "-c", "read -P 0 4k 1k", "-c", "read -P 0xab 5k 60928", "-c", "read -P 0 66048 512",
		"-c", "read -P 0xcd 12345k 3k", "-c", "read -P 0 0 512", p.uri())
	if strings.Contains(out, "fail") || strings.Contains(out, "rror") {
		t.Error(out)
	}
	p.stop()
}

// TestFio: what was written is what is read, at all sizes and alignments.
func TestFio(t *testing.T) {
	need(t, "fio")
	if !strings.Contains(command(t, "fio", "--enghelp"), "nbd") {
		cannot(t, "fio has no nbd engine")
	}
	p := startDev(t, t.TempDir(), "--size", "256MiB")
	io := "24M"
	if long() {
		io = "256M"
	}
	for _, blocks := range [][]string{
		{"--bs=4k"}, {"--bs=64k"}, {"--bs=1M"},
		{"--bsrange=4k-1M"},
		{"--bsrange=512-128k", "--blockalign=512", "--bs_unaligned=0"},
	} {
		t.Run(strings.Join(blocks, " "), func(t *testing.T) {
			// Blocks may overlap: of two that do, one waits for the other.
			args := append([]string{"--name=verify", "--ioengine=nbd", "--uri=" + p.uri(), "--rw=randwrite", "--size=128M",
				"--io_size=" + io, "--iodepth=16", "--serialize_overlap=1", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
				"--fsync=64", "--verify_state_save=0", "--minimal"}, blocks...)
			command(t, "fio", args...)
		})
	}
	p.stop()
}

// TestKernelFileSystem mounts a file system on the volume, through nbdfuse and a
// loop device, works in it, and checks it.
func TestKernelFileSystem(t *testing.T) {
	need(t, "nbdfuse", "losetup", "mkfs.ext4", "mount", "umount", "e2fsck")
	if os.Getuid() != 0 {
		cannot(t, "mounting needs root")
	}
	if _, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		cannot(t, "no FUSE: %v", err)
	}
	p := startDev(t, t.TempDir(), "--size", "256MiB")
	dir := scratchDir(t)
	fuse, mnt := filepath.Join(dir, "fuse"), filepath.Join(dir, "mnt")
	for _, d := range []string{fuse, mnt} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	serveFuse(t, fuse, p.uri())
	loop, err := exec.Command("losetup", "-f", "--show", filepath.Join(fuse, "nbd")).CombinedOutput()
	if err != nil {
		cannot(t, "no loop device: %v: %s", err, loop)
	}
	device := strings.TrimSpace(string(loop))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() }) // done already, if all went well

	command(t, "mkfs.ext4", "-q", device)
	command(t, "mount", device, mnt)
	t.Cleanup(func() { _ = exec.Command("umount", mnt).Run() }) // likewise
	work := `set -e; cd "$1"; for i in $(seq 50); do head -c $((i*7919)) /dev/urandom > f$i; done
		sync; sha256sum f* > sums; rm f1? ; mkdir d; mv f2? d; dd if=/dev/zero of=big bs=1M count=32 conv=fsync 2>/dev/null; sync`
	command(t, "sh", "-c", work, "sh", mnt)
	command(t, "umount", mnt)
	command(t, "e2fsck", "-fn", device)
	command(t, "mount", device, mnt)
	command(t, "sh", "-c", `cd "$1" && mv d/* . && sha256sum -c --quiet --ignore-missing sums`, "sh", mnt)
	command(t, "umount", mnt)
	command(t, "e2fsck", "-fn", device)
	command(t, "losetup", "-d", device)
}

// serveFuse shows the volume as the file nbd in dir, until the test ends.
func serveFuse(t *testing.T, dir, uri string) {
	t.Helper()
	log := &logBuffer{}
	cmd := exec.Command("nbdfuse", dir, uri)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // how it ended does not matter
	t.Cleanup(func() {
		_ = exec.Command("umount", dir).Run() // nbdfuse ends with it
		<-ended
	})
	waitFor(t, "nbdfuse to show the volume", func() bool {
		select {
		case <-ended:
			cannot(t, "nbdfuse: %s", log)
		default:
		}
		_, err := os.Stat(filepath.Join(dir, "nbd"))
		return err == nil
	})
}
