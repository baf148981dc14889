// SPDX-License-Identifier: Apache-2.0

package memlock

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// oomScore is low enough to be the last choice of the OOM killer and still
// killable, should the daemon itself be what eats the memory.
const oomScore = -900

// reexecMark is set in the environment of the second image, so that a kernel
// that forgets the attribute over execve costs one turn and not an endless loop.
const reexecMark = "BRAID_IO_FLUSHER_SET"

// IsFlusher reports whether the calling thread carries the attribute.
func IsFlusher() bool {
	v, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	return err == nil && v == 1
}

// Reexec makes every thread of the program an I/O flusher. Call it first, before
// files are opened or goroutines started. It returns nil in the second image and
// does not return in the first; without the privilege (CAP_SYS_RESOURCE), or on a
// kernel before 5.6, it returns an error that says so and the program may go on.
func Reexec() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if IsFlusher() {
		return nil
	}
	if os.Getenv(reexecMark) != "" {
		return errors.New("memlock: the kernel did not keep PR_SET_IO_FLUSHER over execve")
	}
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("memlock: prctl PR_SET_IO_FLUSHER: %w (needs CAP_SYS_RESOURCE and Linux 5.6)", err)
	}
	path, err := os.Executable()
	if err != nil {
		path = "/proc/self/exe"
	}
	env := append(os.Environ(), reexecMark+"=1")
	return fmt.Errorf("memlock: execute %s again: %w", path, syscall.Exec(path, os.Args, env))
}

// LockAll keeps in memory each page that is or will be touched. It needs
// CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK.
func LockAll() error {
	err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	if err != nil {
		return fmt.Errorf("memlock: mlockall: %w (needs CAP_IPC_LOCK or `ulimit -l unlimited`)", err)
	}
	return prefaultText()
}

// Prefault has the kernel give memory to every page of b now, so that its first
// use later needs none. b is aligned to 8 bytes, which keep their values.
func Prefault(b []byte) {
	const page, word = 4096, 8
	// An atomic addition of nothing is a write that the compiler leaves alone.
	for i := 0; i+word <= len(b); i += page {
		atomic.AddUint64((*uint64)(unsafe.Pointer(&b[i])), 0)
	}
}

// LowerOOMScore tells the OOM killer to choose somebody else.
func LowerOOMScore() error {
	err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(oomScore)), 0)
	if err != nil {
		return fmt.Errorf("memlock: lower oom_score_adj to %d: %w", oomScore, err)
	}
	return nil
}

// prefaultText reads in the program's own code: a page of it that is missing
// under pressure would have to come from a disk.
func prefaultText() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("memlock: find the program's file: %w", err)
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("memlock: list the program's mappings: %w", err)
	}
	defer maps.Close()
	sc := bufio.NewScanner(maps)
	for sc.Scan() {
		from, to, ok := mapping(sc.Text(), exe)
		if !ok {
			continue
		}
		err := populateRead(from, to-from)
		if errors.Is(err, unix.EINVAL) { // before Linux 5.14
			return nil
		}
		if err != nil {
			return fmt.Errorf("memlock: read in %s: %w", exe, err)
		}
	}
	return sc.Err()
}

// mapping parses a line of /proc/self/maps and reports the range if it is a
// read-only mapping of the file exe.
func mapping(line, exe string) (from, to uintptr, ok bool) {
	if !strings.HasSuffix(line, exe) {
		return 0, 0, false
	}
	f := strings.Fields(line)
	if len(f) < 6 || !strings.HasPrefix(f[1], "r-") {
		return 0, 0, false
	}
	a, b, found := strings.Cut(f[0], "-")
	if !found {
		return 0, 0, false
	}
	lo, err1 := strconv.ParseUint(a, 16, 64)
	hi, err2 := strconv.ParseUint(b, 16, 64)
	if err1 != nil || err2 != nil || hi <= lo {
		return 0, 0, false
	}
	return uintptr(lo), uintptr(hi), true
}

func populateRead(addr, n uintptr) error {
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, n, unix.MADV_POPULATE_READ)
	if errno != 0 {
		return errno
	}
	return nil
}
