// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Backing is what a store lies on. ReadAt, WriteAt, Flush and Discard block.
// Offsets, lengths and memory are multiples of 4 KiB.
type Backing interface {
	Size() int64
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Flush() error
	// Discard gives n bytes at off back. What they hold afterwards is undefined.
	Discard(off, n int64) error
	Close() error
	// FD is the file descriptor for an event loop, or -1 when the methods above
	// have to be used.
	FD() int
}

// Options for Open.
type Options struct {
	ReadOnly bool // inspect and check: shared, no lock on the device
	// Force opens what the probes say belongs to someone else. It never overrides
	// a device that is in use.
	Force bool
}

// Errors of Open, to be tested with errors.Is.
var (
	ErrInUse   = errors.New("device is in use")
	ErrForeign = errors.New("device holds something else")
	ErrKind    = errors.New("not a block device or regular file")
	ErrAlign   = errors.New("device cannot do aligned direct I/O")
)

// Device is an open block device or preallocated file.
type Device struct {
	file  *os.File
	path  string
	size  int64
	block bool
}

// Open opens a raw block device or a preallocated file with O_DIRECT. A block
// device is opened O_EXCL, which the kernel refuses while it is mounted or part
// of another device; a file is locked. What a probe recognises as foreign is
// refused.
func Open(path string, o Options) (Backing, error) {
	d, err := open(path, o)
	if err != nil {
		return nil, err
	}
	if !o.Force {
		if what, err := Probe(d); err != nil {
			_ = d.Close()
			return nil, fmt.Errorf("open %s: %w", path, err)
		} else if what != "" {
			_ = d.Close()
			return nil, fmt.Errorf("open %s: %w: %s; if it may be destroyed, wipe it (wipefs -a) or use --force",
				path, ErrForeign, what)
		}
	}
	return wrapTest(d)
}

func open(path string, o Options) (*Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	flags := unix.O_DIRECT | unix.O_CLOEXEC
	block := st.Mode&unix.S_IFMT == unix.S_IFBLK
	switch {
	case block:
		if !o.ReadOnly {
			flags |= unix.O_EXCL
		}
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("open %s: %w", path, ErrKind)
	}
	if o.ReadOnly {
		flags |= unix.O_RDONLY
	} else {
		flags |= unix.O_RDWR
	}
	fd, err := unix.Open(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("open %s: %w: it is mounted, part of a RAID, LVM or device-mapper device, "+
			"or another sds has it", path, ErrInUse)
	}
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("open %s: %w: its file system refuses O_DIRECT", path, ErrAlign)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	d := &Device{file: os.NewFile(uintptr(fd), path), path: path, block: block}
	if err := d.prepare(fd, o, &st); err != nil {
		_ = d.file.Close()
		return nil, err
	}
	return d, nil
}

func (d *Device) prepare(fd int, o Options, st *unix.Stat_t) error {
	if !o.ReadOnly {
		// Two servers on one device destroy it; O_EXCL alone does not keep a second
		// opener of a regular file out.
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return fmt.Errorf("open %s: %w: another process, probably an sds, has locked it", d.path, ErrInUse)
		}
	}
	d.size = st.Size
	if d.block {
		n, err := blockSize64(fd)
		if err != nil {
			return fmt.Errorf("size of %s: %w", d.path, err)
		}
		d.size = n
	}
	return nil
}

// Size in bytes.
func (d *Device) Size() int64 { return d.size }

// FD is the file descriptor.
func (d *Device) FD() int { return int(d.file.Fd()) }

// Path it was opened by.
func (d *Device) Path() string { return d.path }

// IsBlock reports whether it is a block device.
func (d *Device) IsBlock() bool { return d.block }

// ReadAt reads len(p) bytes at off.
func (d *Device) ReadAt(p []byte, off int64) (int, error) { return d.file.ReadAt(p, off) }

// WriteAt writes p at off.
func (d *Device) WriteAt(p []byte, off int64) (int, error) { return d.file.WriteAt(p, off) }

// Flush makes everything written durable, through the device's cache.
func (d *Device) Flush() error { return unix.Fdatasync(d.FD()) }

// Discard gives a range back to the device or the file system.
func (d *Device) Discard(off, n int64) error {
	if d.block {
		return blockDiscard(d.FD(), off, n)
	}
	return unix.Fallocate(d.FD(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Close closes the device.
func (d *Device) Close() error { return d.file.Close() }
