//go:build race

package nbd

import "syscall"

// The race detector takes what syscall.Write sends for seen by whom
// syscall.Read gives something. These two tell it the same of readv and
// writev: reading nothing acquires, writing to no descriptor releases.

func raceAcquire(fd uintptr) { syscall.Read(int(fd), nil) }
func raceRelease()           { syscall.Write(-1, nil) }

const raceEnabled = true
