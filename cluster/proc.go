package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ThisProcess returns what names the running process.
func ThisProcess() (Process, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Process{}, fmt.Errorf("this process: %w", err)
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return Process{}, fmt.Errorf("this process: %w", err)
	}
	s, err := look(Process{}, os.Getpid())
	if err == nil && !s.Exists {
		err = errors.New("not in /proc")
	}
	if err != nil {
		return Process{}, fmt.Errorf("this process: %w", err)
	}
	return Process{
		BootID: strings.TrimSpace(string(boot)), PIDNamespace: ns,
		PID: os.Getpid(), StartTime: s.StartTime,
	}, nil
}

// ProvenDeadHere looks into /proc whether a holder has ended on this machine:
// see ProvenDead. It is what AttachOptions.Dead is for.
func ProvenDeadHere(h Holder) bool {
	self, err := ThisProcess()
	if err != nil {
		return false
	}
	s, err := look(self, h.PID)
	return err == nil && ProvenDead(h.Process, s)
}

// look reads what /proc says about a process ID.
func look(self Process, pid int) (Sighting, error) {
	s := Sighting{Self: self, PID: pid}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) { // ESRCH: it ended between open and read
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s.Exists = true
	s.Zombie, s.StartTime, err = parseStat(stat)
	return s, err
}

// parseStat reads state and start time from /proc/PID/stat (proc_pid_stat(5)):
// fields 3 and 22. The name, field 2, may hold anything, so that one counts from
// the last ')'.
func parseStat(stat []byte) (zombie bool, start uint64, err error) {
	_, rest, ok := bytes.Cut(stat, []byte(") "))
	if i := bytes.LastIndex(stat, []byte(") ")); ok {
		rest = stat[i+2:]
	}
	fields := strings.Fields(string(rest))
	const state, startTime = 0, 19 // the fields behind the name begin with the third
	if !ok || len(fields) <= startTime {
		return false, 0, fmt.Errorf("/proc stat line %q: too few fields", stat)
	}
	start, err = strconv.ParseUint(fields[startTime], 10, 64)
	return fields[state] == "Z" || fields[state] == "X", start, err
}
