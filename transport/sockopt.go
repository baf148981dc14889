// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketBuffer is what the kernel is asked to buffer in each direction: a full
// queue of small requests, or a chunk.
const socketBuffer = 1 << 20

// detach takes the file descriptor out of nc, which is closed. The Go runtime
// no longer watches it then.
func detach(nc net.Conn) (fd int, err error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("a %T has no file descriptor: want TCP or a Unix socket", nc)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	var dupErr error
	err = raw.Control(func(old uintptr) {
		fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return -1, fmt.Errorf("take over the socket: %w", err)
	}
	// Closing the original shuts nothing down: the copy keeps the socket open.
	if err := nc.Close(); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("take over the socket: %w", err)
	}
	return fd, nil
}

// tune sets the options of a connected socket. Only TCP_NODELAY matters enough
// to fail for; a Unix socket has none of the TCP ones.
func tune(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("ask for the socket's domain: %w", err)
	}
	if domain == unix.AF_UNIX {
		buffers(fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE)
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	// Not every kernel knows it; the keep-alive works without.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT,
		int(userTimeout.Milliseconds()))
	buffers(fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE)
	buffers(fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE)
	return nil
}

// buffers raises one of the kernel's buffers to socketBuffer. A fixed size ends
// the kernel's own tuning, so where neither the right nor the system's limit
// allows the full size, the size stays the kernel's to tune.
func buffers(fd, opt, force int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) == nil {
		return
	}
	limit := "/proc/sys/net/core/wmem_max"
	if opt == unix.SO_RCVBUF {
		limit = "/proc/sys/net/core/rmem_max"
	}
	if sysctl(limit) >= socketBuffer {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, socketBuffer)
	}
}

// sysctl reads a number of the kernel, 0 where it cannot.
func sysctl(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
}
