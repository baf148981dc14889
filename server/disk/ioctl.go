// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// blkDiscard is BLKDISCARD of linux/fs.h: _IO(0x12, 119).
const blkDiscard = 0x1277

func blockSize64(fd int) (int64, error) {
	var n uint64
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64,
		uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return 0, e
	}
	return int64(n), nil
}

func blockDiscard(fd int, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), blkDiscard, uintptr(unsafe.Pointer(&r)))
	if e != 0 {
		return e
	}
	return nil
}
