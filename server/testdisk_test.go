// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// memDisk is a disk with a volatile cache: what was written is read back at
// once, and survives powerLoss only when a Flush came after it. It has no file
// descriptor, so that the server drives it by calls.
type memDisk struct {
	mu       sync.Mutex
	current  []byte
	durable  []byte
	dirty    map[int64]bool // blocks that differ
	flushErr error          // what Flush returns from now on
	hang     chan struct{}  // not nil: flushes wait until it is closed
	flushes  int
	closed   bool
}

func newMemDisk(size int64) *memDisk {
	return &memDisk{current: make([]byte, size), durable: make([]byte, size), dirty: map[int64]bool{}}
}

func (d *memDisk) Size() int64 { return int64(len(d.current)) }
func (d *memDisk) FD() int     { return -1 }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.current[off:]), nil
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := off / 4096; b < (off+int64(len(p))+4095)/4096; b++ {
		d.dirty[b] = true
	}
	return copy(d.current[off:], p), nil
}

func (d *memDisk) Flush() error {
	d.mu.Lock()
	hang := d.hang
	d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	if d.flushErr != nil {
		return d.flushErr
	}
	for b := range d.dirty {
		copy(d.durable[b*4096:(b+1)*4096], d.current[b*4096:])
	}
	clear(d.dirty)
	return nil
}

func (d *memDisk) Discard(off, n int64) error { return nil }

func (d *memDisk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("closed twice")
	}
	d.closed = true
	return nil
}

// powerLoss returns the disk as it is after the machine lost power.
func (d *memDisk) powerLoss() *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := newMemDisk(int64(len(d.durable)))
	copy(n.durable, d.durable)
	copy(n.current, d.durable)
	return n
}

// reopened returns the disk as the next process finds it: nothing is lost.
func (d *memDisk) reopened() *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &memDisk{current: d.current, durable: d.durable, dirty: d.dirty}
}

// failFlushes makes every flush from now on fail with EIO.
func (d *memDisk) failFlushes() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushErr = unix.EIO
}

// hangFlushes makes flushes wait; the returned function lets them go.
func (d *memDisk) hangFlushes() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ch := make(chan struct{})
	d.hang = ch
	return func() {
		d.mu.Lock()
		d.hang = nil
		d.mu.Unlock()
		close(ch)
	}
}
