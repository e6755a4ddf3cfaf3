package nbd

import (
	"syscall"
	"unsafe"
)

// readv and writev: the standard library has them only inside package net.

func readv(fd uintptr, iov []syscall.Iovec) (uintptr, syscall.Errno) {
	n, _, e := syscall.Syscall(syscall.SYS_READV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	if e == 0 {
		raceAcquire(fd)
	}
	return n, e
}

func writev(fd uintptr, iov []syscall.Iovec) (uintptr, syscall.Errno) {
	raceRelease()
	n, _, e := syscall.Syscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	return n, e
}

// advance drops the first n bytes of what iov describes.
func advance(iov []syscall.Iovec, n uintptr) []syscall.Iovec {
	for len(iov) > 0 && n >= uintptr(iov[0].Len) {
		n -= uintptr(iov[0].Len)
		iov = iov[1:]
	}
	if n > 0 {
		v := &iov[0]
		v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
		v.SetLen(int(uintptr(v.Len) - n))
	}
	return iov
}
