// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"unsafe"

	"braid/cluster"
)

// Version of the on-disk format. A program refuses any other.
const Version = 1

const (
	pageSize    = 4096
	blockShift  = 12
	chunkShift  = 20
	blocks      = cluster.BlocksPerChunk
	superA      = 0
	superB      = 32 << 10
	ringOffset  = 64 << 10
	minRing     = 1 << 20
	maxRing     = 64 << 20
	leastRing   = 64 << 10 // what a device may have; small ones exist in tests
	ringDivisor = 1024     // ring bytes = device bytes / ringDivisor, within the bounds
	maxSlots    = 1 << 26
)

// layout is where things lie on a device. All offsets are bytes.
//
//	0        superblock A            (4 KiB)
//	32 KiB   superblock B            (4 KiB)
//	64 KiB   log ring                (ringPages x 4 KiB)
//	hdrOff   chunk header table      (2 x 4 KiB per 63 chunk slots)
//	pageOff  checksum/bitmap pages   (2 x 4 KiB per chunk slot)
//	dataOff  chunk slots             (1 MiB each, 1 MiB aligned)
type layout struct {
	size      int64
	ringPages uint32
	slots     uint32
	hdrOff    int64
	pageOff   int64
	dataOff   int64
}

func newLayout(size int64) (layout, error) {
	return layoutWith(size, min(max(size/ringDivisor, minRing), maxRing)&^(pageSize-1))
}

func layoutWith(size, ring int64) (layout, error) {
	l := layout{ringPages: uint32(ring / pageSize)}
	// Each slot needs its megabyte and a little over 8 KiB; start from an upper
	// bound and step down to the first count that fits.
	n := min((size-ring-ringOffset)>>chunkShift, maxSlots)
	for ; n > 0; n-- {
		l.place(uint32(n))
		if l.size <= size {
			return l, nil
		}
		if over := (l.size - size) >> chunkShift; over > 1 {
			n -= over - 1
		}
	}
	return layout{}, fmt.Errorf("%w: %d bytes hold no chunk beside the metadata", ErrTooSmall, size)
}

// place computes all offsets for a number of slots.
func (l *layout) place(slots uint32) {
	l.slots = slots
	l.hdrOff = ringOffset + int64(l.ringPages)*pageSize
	l.pageOff = l.hdrOff + int64(l.headerPages())*2*pageSize
	l.dataOff = (l.pageOff + int64(slots)*2*pageSize + 1<<chunkShift - 1) &^ (1<<chunkShift - 1)
	l.size = l.dataOff + int64(slots)<<chunkShift
}

func (l *layout) headerPages() uint32 {
	return (l.slots + headersPerPage - 1) / headersPerPage
}

func (l *layout) ringAt(seq uint64) int64 {
	return ringOffset + int64(seq%uint64(l.ringPages))*pageSize
}

func (l *layout) headerAt(page, twin uint32) int64 {
	return l.hdrOff + (int64(page)*2+int64(twin))*pageSize
}

func (l *layout) pageAt(slot, twin uint32) int64 {
	return l.pageOff + (int64(slot)*2+int64(twin))*pageSize
}

func (l *layout) dataAt(slot uint32) int64 { return l.dataOff + int64(slot)<<chunkShift }

// alignedBytes returns n bytes that start on a page boundary, as direct I/O needs.
func alignedBytes(n int) []byte {
	return aligned(make([]byte, n+pageSize))
}

// aligned is the part of b, all but a page of it, that starts on a page boundary.
func aligned(b []byte) []byte {
	n := len(b) - pageSize
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (pageSize - 1)
	return b[skip : skip+n : skip+n]
}

// zeroMemory is what writes of zeroes send, for all devices. It is never written.
var zeroMemory [1<<chunkShift + pageSize]byte
