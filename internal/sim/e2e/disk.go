// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
)

const sector = 4096

var errDead = errors.New("the disk's machine is dead")

// Disk is a disk in memory with a volatile cache. Reads see what was written;
// PowerLoss keeps, of each sector written since the last flush, the old or the
// new bytes. It implements disk.Backing without a file descriptor.
type Disk struct {
	size int64

	mu      sync.Mutex // guards what follows
	current map[int64][]byte
	durable map[int64][]byte // of sectors that differ from current: what a power loss may leave
	dead    bool
	flushes int
}

// NewDisk makes an empty disk.
func NewDisk(size int64) *Disk {
	return &Disk{size: size, current: map[int64][]byte{}, durable: map[int64][]byte{}}
}

// Size, FD, ReadAt, WriteAt, Flush, Discard and Close are disk.Backing.
func (d *Disk) Size() int64 { return d.size }

// FD says that there is no file.
func (d *Disk) FD() int { return -1 }

// ReadAt reads whole sectors.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, errDead
	}
	for n := 0; n < len(p); n += sector {
		if s := d.current[off/sector+int64(n/sector)]; s != nil {
			copy(p[n:], s)
		} else {
			clear(p[n:min(n+sector, len(p))])
		}
	}
	return len(p), nil
}

// WriteAt writes whole sectors.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, errDead
	}
	for n := 0; n < len(p); n += sector {
		i := off/sector + int64(n/sector)
		if _, cached := d.durable[i]; !cached {
			d.durable[i] = d.current[i]
		}
		s := make([]byte, sector)
		copy(s, p[n:])
		d.current[i] = s
	}
	return len(p), nil
}

// Flush makes everything durable.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDead
	}
	clear(d.durable)
	d.flushes++
	return nil
}

// Discard does nothing: what it leaves is not defined anyway.
func (d *Disk) Discard(int64, int64) error { return nil }

// Close is for disk.Backing.
func (d *Disk) Close() error { return nil }

// Flushes counts the flushes so far.
func (d *Disk) Flushes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushes
}

// Spoil changes a bit in each sector that holds one of the sectors of data, as rot
// does, and returns how many there were.
func (d *Disk) Spoil(data []byte) int {
	return d.each(data, func(i int64, s []byte) {
		s = bytes.Clone(s)
		s[100] ^= 4
		d.current[i] = s
		delete(d.durable, i)
	})
}

// Count returns how many sectors hold one of the sectors of data.
func (d *Disk) Count(data []byte) int { return d.each(data, func(int64, []byte) {}) }

func (d *Disk) each(data []byte, do func(i int64, s []byte)) (count int) {
	wanted := map[string]bool{}
	for off := 0; off < len(data); off += sector {
		wanted[string(data[off:off+sector])] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, s := range d.current {
		if wanted[string(s)] {
			do(i, s)
			count++
		}
	}
	return count
}

// die stops the disk for whoever uses it now and returns what the next process
// finds: everything (a process was killed), or after a power loss an arbitrary
// mixture of what was cached.
func (d *Disk) die(powerLoss bool, rng *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	next := &Disk{size: d.size, current: maps.Clone(d.current), durable: map[int64][]byte{}}
	if !powerLoss {
		next.durable = maps.Clone(d.durable)
		return next
	}
	for i, s := range d.durable {
		switch {
		case rng.IntN(2) == 0:
		case s == nil:
			delete(next.current, i)
		default:
			next.current[i] = s
		}
	}
	return next
}
