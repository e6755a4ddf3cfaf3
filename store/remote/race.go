//go:build race

package remote

import "syscall"

// The race detector takes what syscall.Write sends for seen by whom
// syscall.Read gives something; of writev it knows nothing. Writing to no
// descriptor releases too.
func release() { syscall.Write(-1, nil) }

const raceEnabled = true
