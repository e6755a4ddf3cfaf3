package nbd

import (
	"errors"
	"fmt"
	"syscall"
)

// What a Device or an Exports may return, bare or wrapped, for a client to
// learn the cause. Anything else is EIO to a client.
var (
	// ErrNotFound: no export of that name.
	ErrNotFound = errors.New("nbd: no such export")
	// ErrBusy: the export exists and cannot be opened now.
	ErrBusy = errors.New("nbd: export is in use")
	// ErrNotAllowed: this client may not open the export.
	ErrNotAllowed = errors.New("nbd: not allowed")
	// ErrNoSpace: the store behind the device is full.
	ErrNoSpace = errors.New("nbd: no space left")
	// ErrReadOnly: the device cannot be written.
	ErrReadOnly = errors.New("nbd: read-only export")
	// ErrOutOfRange: the request lies outside the device.
	ErrOutOfRange = errors.New("nbd: outside the device")
	// ErrInvalid: the request makes no sense to the device.
	ErrInvalid = errors.New("nbd: invalid request")
	// ErrNotSupported: zeroing fast is not possible here.
	ErrNotSupported = errors.New("nbd: not supported")
	// ErrShutdown: the device is going away.
	ErrShutdown = errors.New("nbd: shutting down")
	// ErrServerClosed is returned by Serve after Shutdown.
	ErrServerClosed = errors.New("nbd: server closed")
)

// errno is an error number of the protocol ("Error values" in the document).
// Its values are fixed there and do not depend on the platform.
type errno uint32

const (
	eOK       errno = 0
	ePERM     errno = 1
	eIO       errno = 5
	eNOMEM    errno = 12
	eINVAL    errno = 22
	eNOSPC    errno = 28
	eOVERFLOW errno = 75
	eNOTSUP   errno = 95
	eSHUTDOWN errno = 108
)

func (e errno) String() string {
	switch e {
	case eOK:
		return "OK"
	case ePERM:
		return "EPERM"
	case eIO:
		return "EIO"
	case eNOMEM:
		return "ENOMEM"
	case eINVAL:
		return "EINVAL"
	case eNOSPC:
		return "ENOSPC"
	case eOVERFLOW:
		return "EOVERFLOW"
	case eNOTSUP:
		return "ENOTSUP"
	case eSHUTDOWN:
		return "ESHUTDOWN"
	}
	return fmt.Sprintf("errno(%d)", uint32(e))
}

// errnoOf is the one place where errors become numbers. cmd and flags are
// those of the request that failed: out of range is ENOSPC for what writes,
// EINVAL for the rest, and ENOTSUP is only for a fast zero, as the document
// asks.
func errnoOf(cmd, flags uint16, err error) errno {
	if err == nil {
		return eOK
	}
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case is(ErrNoSpace, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		return eNOSPC
	case is(ErrReadOnly, ErrNotAllowed, syscall.EPERM, syscall.EACCES, syscall.EROFS):
		return ePERM
	case is(ErrShutdown, syscall.ESHUTDOWN):
		return eSHUTDOWN
	case is(ErrOutOfRange):
		if cmd == cmdWrite || cmd == cmdWriteZeroes {
			return eNOSPC
		}
		return eINVAL
	case is(ErrInvalid, syscall.EINVAL):
		return eINVAL
	case is(ErrNotSupported, syscall.ENOTSUP):
		if cmd == cmdWriteZeroes && flags&cmdFlagFastZero != 0 {
			return eNOTSUP
		}
		return eINVAL
	case is(syscall.ENOMEM):
		return eNOMEM
	}
	return eIO
}

// optionErrorOf maps what an Exports returned to a reply to NBD_OPT_GO, INFO
// and the like.
func optionErrorOf(err error) replyType {
	switch {
	case errors.Is(err, ErrNotAllowed):
		return repErrPolicy
	case errors.Is(err, ErrShutdown):
		return repErrShutdown
	}
	return repErrUnknown // "the requested export is not available"
}
