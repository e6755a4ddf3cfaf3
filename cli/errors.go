package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"torus/cluster"
	"torus/node"
	"torus/store/segment"
)

// A usageError is a mistake in the arguments that the parser could not see.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func badUsage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// A helpful error adds the command that helps.
type helpful struct {
	err  error
	help string
}

func (e *helpful) Error() string { return e.err.Error() + ": " + e.help }
func (e *helpful) Unwrap() error { return e.err }

// advise adds help to err where err is what help is for.
func advise(err, when error, format string, args ...any) error {
	if !errors.Is(err, when) {
		return err
	}
	return &helpful{err, fmt.Sprintf(format, args...)}
}

// report prints an error and returns its exit code.
func report(w io.Writer, err error) int {
	// Several errors at once stand on lines of their own.
	fmt.Fprintf(w, "torus: %s\n", strings.ReplaceAll(err.Error(), "\n", "\ntorus: "))
	return exitCode(err)
}

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	var u *usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &u), is(cluster.ErrInvalid, node.ErrSettings):
		return exitUsage
	case is(cluster.ErrNotFound, node.ErrNoNode):
		return exitNotFound
	case is(cluster.ErrExists, cluster.ErrBusy, cluster.ErrOtherCluster,
		node.ErrLocked, node.ErrFounded, node.ErrNothingLost, cluster.ErrRecovered, segment.ErrLocked, syscall.EADDRINUSE):
		return exitConflict
	}
	return exitFailed
}
