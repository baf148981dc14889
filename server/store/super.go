// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
)

const superMagic = "BRAIDDEV"

const superClean = 1 << 0

// superblock is the root of a device.
//
// Byte table (little-endian), one 4 KiB page, stored twice:
//
//	   0   8  magic "BRAIDDEV"
//	   8   4  format version
//	  12   4  flags: 1 the last stop was clean
//	  16  16  device UUID
//	  32  16  cluster UUID, 0: claimed by none
//	  48   8  sequence number: the valid copy with the higher one counts
//	  56   8  start counter
//	  64   8  start counter at which the present incarnation began
//	  72   8  bytes of the device in use
//	  80   4  log ring pages
//	  84   4  chunk slots
//	  88   8  offset of the header table
//	  96   8  offset of the pages
//	 104   8  offset of the chunk slots
//	 112   8  errors met in the present incarnation, as of the last stop
//	 120   8  log pages before this number were certainly flushed (a clean stop did)
//	 128   8  number drawn at the present start, tells two starts with one counter apart
//	 136   8  the one that was drawn when the present incarnation began
//	4088   8  xxhash64 of bytes 0-4087
type superblock struct {
	flags   uint32
	device  cluster.UUID
	cluster cluster.UUID
	seq     uint64
	starts  uint64
	epoch   uint64
	errors  uint64
	certain uint64
	startID uint64
	epochID uint64
	layout  layout
}

func (s *superblock) encode(b []byte) {
	clear(b[:pageSize])
	le := binary.LittleEndian
	copy(b, superMagic)
	le.PutUint32(b[8:], Version)
	le.PutUint32(b[12:], s.flags)
	copy(b[16:], s.device[:])
	copy(b[32:], s.cluster[:])
	le.PutUint64(b[48:], s.seq)
	le.PutUint64(b[56:], s.starts)
	le.PutUint64(b[64:], s.epoch)
	le.PutUint64(b[72:], uint64(s.layout.size))
	le.PutUint32(b[80:], s.layout.ringPages)
	le.PutUint32(b[84:], s.layout.slots)
	le.PutUint64(b[88:], uint64(s.layout.hdrOff))
	le.PutUint64(b[96:], uint64(s.layout.pageOff))
	le.PutUint64(b[104:], uint64(s.layout.dataOff))
	le.PutUint64(b[112:], s.errors)
	le.PutUint64(b[120:], s.certain)
	le.PutUint64(b[128:], s.startID)
	le.PutUint64(b[136:], s.epochID)
	seal(b)
}

// decode validates everything that later arithmetic relies on.
func (s *superblock) decode(b []byte) error {
	le := binary.LittleEndian
	if string(b[:8]) != superMagic {
		return ErrNotFormatted
	}
	if !sealed(b) {
		return fmt.Errorf("%w: superblock checksum", ErrCorrupt)
	}
	if v := le.Uint32(b[8:]); v != Version {
		return fmt.Errorf("%w %d (this program knows %d)", ErrVersion, v, Version)
	}
	s.flags = le.Uint32(b[12:])
	copy(s.device[:], b[16:])
	copy(s.cluster[:], b[32:])
	s.seq = le.Uint64(b[48:])
	s.starts = le.Uint64(b[56:])
	s.epoch = le.Uint64(b[64:])
	s.errors = le.Uint64(b[112:])
	s.certain = le.Uint64(b[120:])
	s.startID = le.Uint64(b[128:])
	s.epochID = le.Uint64(b[136:])
	ring, slots := le.Uint32(b[80:]), le.Uint32(b[84:])
	if ring < leastRing/pageSize || ring > maxRing/pageSize || slots == 0 || slots > maxSlots {
		return fmt.Errorf("%w: superblock geometry", ErrCorrupt)
	}
	s.layout = layout{ringPages: ring}
	s.layout.place(slots)
	l := &s.layout
	if uint64(l.size) != le.Uint64(b[72:]) || uint64(l.hdrOff) != le.Uint64(b[88:]) ||
		uint64(l.pageOff) != le.Uint64(b[96:]) || uint64(l.dataOff) != le.Uint64(b[104:]) {
		return fmt.Errorf("%w: superblock geometry", ErrCorrupt)
	}
	return nil
}

func (s *superblock) identity() Identity {
	return Identity{
		Device: s.device, Cluster: s.cluster, Starts: s.starts, StartID: s.startID, Size: s.layout.size,
		Capacity: int64(s.layout.slots) << chunkShift, Clean: s.flags&superClean != 0,
	}
}

// salt ties every other metadata page to this device: what an earlier format
// left behind is not taken for ours.
func (s *superblock) salt() uint64 { return xxhash.Sum64(s.device[:]) }

// seal puts the checksum of a page into its last 8 bytes; sealed checks it.
func seal(b []byte) {
	binary.LittleEndian.PutUint64(b[pageSize-8:], xxhash.Sum64(b[:pageSize-8]))
}

func sealed(b []byte) bool {
	return binary.LittleEndian.Uint64(b[pageSize-8:]) == xxhash.Sum64(b[:pageSize-8])
}

func readFull(d Disk, p []byte, off int64) error {
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("short read of %d bytes", n)
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

func writeFull(d Disk, p []byte, off int64) error {
	n, err := d.WriteAt(p, off)
	if err == nil && n != len(p) {
		err = fmt.Errorf("short write of %d bytes", n)
	}
	if err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// readSuper returns the newest valid superblock. twins tells which copies were
// valid. A damaged copy is healed by the next writeSuper.
func readSuper(d Disk) (s superblock, twins [2]bool, err error) {
	if d.Size() < superB+pageSize {
		return s, twins, fmt.Errorf("%w: %d bytes", ErrTooSmall, d.Size())
	}
	b := alignedBytes(pageSize)
	var errs [2]error
	for i, off := range [2]int64{superA, superB} {
		if errs[i] = readFull(d, b, off); errs[i] != nil {
			continue
		}
		var x superblock
		if errs[i] = x.decode(b); errs[i] != nil {
			continue
		}
		twins[i] = true
		if !twins[0] || i == 0 || x.seq > s.seq {
			s = x
		}
	}
	switch {
	case twins[0] || twins[1]:
	case errs[0] == errs[1]:
		return s, twins, errs[0]
	case errs[0] == ErrNotFormatted:
		return s, twins, fmt.Errorf("both superblocks unreadable: %w", errs[1])
	default:
		return s, twins, fmt.Errorf("both superblocks unreadable: %w", errs[0])
	}
	if s.layout.size > d.Size() {
		return s, twins, fmt.Errorf("%w: formatted for %d bytes, the device has only %d",
			ErrCorrupt, s.layout.size, d.Size())
	}
	return s, twins, nil
}

// writeSuper advances the sequence number and writes A, then B, each made
// durable before the next step: at any instant one copy is whole, and at rest
// both say the same, so that rot of one cannot bring an old counter back.
func writeSuper(d Disk, s *superblock) error {
	s.seq++
	b := alignedBytes(pageSize)
	s.encode(b)
	for _, off := range [2]int64{superA, superB} {
		if err := writeFull(d, b, off); err != nil {
			return fmt.Errorf("superblock: %w", err)
		}
		if err := d.Flush(); err != nil {
			return fmt.Errorf("superblock: flush: %w", err)
		}
	}
	return nil
}
