// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ioctl numbers of include/uapi/linux/nbd.h: _IO(0xab, n), the same on every
// architecture that Go knows but mips and ppc64, whose _IO sets another bit.
const (
	ioSetSock       = 0xab00
	ioSetBlockSize  = 0xab01
	ioDoIt          = 0xab03
	ioClearSock     = 0xab04
	ioSetSizeBlocks = 0xab07
	ioDisconnect    = 0xab08
	ioSetTimeout    = 0xab09
	ioSetFlags      = 0xab0a

	ioRescan = unix.BLKRRPART
)

// nodeLimit bounds the open of a device node, which may read from the device.
const nodeLimit = 3 * time.Second

func ioctl(f *os.File, request uint, argument uintptr) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), argument)
	if errno != 0 {
		return errno
	}
	return nil
}

// ioctlSession is a device that is connected by ioctls. DO_IT blocks a goroutine
// for as long as the device is connected.
type ioctlSession struct {
	file *os.File
	done chan struct{} // closed when DO_IT has returned
}

// connectIoctl does what CONNECT does, the old way.
func connectIoctl(path string, c *config) (*ioctlSession, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	step := func(name string, request uint, argument uint64) {
		if err == nil {
			if err = ioctl(f, request, uintptr(argument)); err != nil {
				err = fmt.Errorf("ioctl %s: %w", name, err)
			}
		}
	}
	step("NBD_SET_BLKSIZE", ioSetBlockSize, c.blockSize)
	step("NBD_SET_SIZE_BLOCKS", ioSetSizeBlocks, c.size/c.blockSize)
	step("NBD_SET_TIMEOUT", ioSetTimeout, seconds(c.timeout))
	step("NBD_SET_FLAGS", ioSetFlags, c.flags)
	for _, fd := range c.sockets {
		step("NBD_SET_SOCK", ioSetSock, uint64(fd))
	}
	if err != nil {
		_ = ioctl(f, ioClearSock, 0)
		_ = f.Close()
		return nil, err
	}
	s := &ioctlSession{file: f, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_ = ioctl(f, ioDoIt, 0) // its error is the reason of a disconnect that is seen anyway
		_ = ioctl(f, ioClearSock, 0)
		_ = f.Close()
	}()
	return s, nil
}

func (s *ioctlSession) disconnect() error { return ioctl(s.file, ioDisconnect, 0) }

func (s *ioctlSession) resize(size, blockSize uint64) error {
	return ioctl(s.file, ioSetSizeBlocks, uintptr(size/blockSize))
}

// rescan makes the kernel read the partition table, which it does at the first
// open, or when told.
func rescan(path string) error {
	return within(nodeLimit, func() error {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return ioctl(f, ioRescan, 0)
	})
}
