// SPDX-License-Identifier: Apache-2.0

package server

import (
	"math/rand/v2"
	"sync"

	"braid/server/disk"
)

// memDisk is a disk in memory with a volatile cache, whose flushes can be made
// to hang. It has no file descriptor, so that the server drives it by calls.
type memDisk struct {
	*disk.Mem
	mu     sync.Mutex    // guards hang
	hang   chan struct{} // not nil: flushes wait until it is closed
	closed bool
}

func newMemDisk(size int64) *memDisk { return &memDisk{Mem: disk.NewMem(size)} }

func (d *memDisk) Flush() error {
	d.mu.Lock()
	hang := d.hang
	d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return d.Mem.Flush()
}

// Close fails when the disk is closed twice.
func (d *memDisk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		panic("closed twice")
	}
	d.closed = true
	return nil
}

// powerLoss returns the disk as it may be after the machine lost power: of what
// was not flushed anything may be left, or nothing.
func (d *memDisk) powerLoss(seed uint64) *memDisk {
	return &memDisk{Mem: d.Crash(rand.New(rand.NewPCG(seed, 0)), nil)}
}

// reopened returns the disk as the next process finds it: nothing is lost.
func (d *memDisk) reopened() *memDisk { return &memDisk{Mem: d.Clone()} }

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
