// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
)

const (
	logMagic   = 0x474C5242 // "BRLG"
	logHeader  = 64
	logPayload = pageSize - logHeader
)

// logPage is the head of one page of the log ring.
//
// A group is what one commit wrote: pages of consecutive sequence numbers, all
// of which must be valid for any of them to count. A group is written only
// after the device flush of the group before it has returned, so of all groups
// only the last one can lack its flush.
//
// Byte table (little-endian):
//
//	 0  4  magic "BRLG"
//	 4  2  format version
//	 6  2  bytes of records that follow byte 64
//	 8  8  salt: xxhash64 of the device UUID
//	16  8  sequence number; the page lies at number mod ring pages
//	24  8  tail: recovery starts at this sequence number
//	32  8  sequence number of the group's first page
//	40  4  pages in the group
//	44  4  low half of the start counter of the writer
//	48  8  reserved, 0
//	56  8  checksum: as in a header page
//	64     records
type logPage struct {
	seq   uint64
	tail  uint64
	group uint64
	count uint32
	start uint32
	used  uint16
}

func (p *logPage) seal(b []byte, salt uint64) {
	le := binary.LittleEndian
	le.PutUint32(b, logMagic)
	le.PutUint16(b[4:], Version)
	le.PutUint16(b[6:], p.used)
	le.PutUint64(b[8:], salt)
	le.PutUint64(b[16:], p.seq)
	le.PutUint64(b[24:], p.tail)
	le.PutUint64(b[32:], p.group)
	le.PutUint32(b[40:], p.count)
	le.PutUint32(b[44:], p.start)
	clear(b[48:56])
	clear(b[logHeader+int(p.used) : pageSize])
	le.PutUint64(b[56:], splitSum(b))
}

// open validates a page that lies at index of a ring.
func (p *logPage) open(b []byte, salt uint64, index, ringPages uint32) bool {
	le := binary.LittleEndian
	if le.Uint32(b) != logMagic || le.Uint16(b[4:]) != Version || le.Uint64(b[8:]) != salt ||
		le.Uint64(b[56:]) != splitSum(b) {
		return false
	}
	p.used = le.Uint16(b[6:])
	p.seq = le.Uint64(b[16:])
	p.tail = le.Uint64(b[24:])
	p.group = le.Uint64(b[32:])
	p.count = le.Uint32(b[40:])
	p.start = le.Uint32(b[44:])
	return p.used <= logPayload && p.seq%uint64(ringPages) == uint64(index) &&
		p.count > 0 && p.count <= ringPages && p.group <= p.seq && p.seq-p.group < uint64(p.count) &&
		p.group > 0 && p.tail > 0 && p.tail <= p.group && p.seq-p.tail < uint64(ringPages)
}

// recordKind is the first byte of a record.
type recordKind uint8

// The records. Each is a multiple of 8 bytes and starts with kind (1), flags
// (1) and its length in bytes (2).
//
//	AL add, AL remove       4  4  layer
//	                        8  8  volume
//	                       16  8  chunk index          (flags: marks of the entry)
//	fence, drop             4  4  reserved, 0
//	                        8  8  volume
//	                       16  8  generation
//	doubt                   4  4  reserved, 0
//	                        8  8  first sequence number of a group that a restart
//	                              found last: its flush is not certain
//	chunk                   4  4  slot
//	                        8  8  volume
//	                       16  8  chunk index
//	                       24  4  layer
//	                       28  2  checksums that follow
//	                       30  2  reserved, 0
//	                       32  8  tag: generation
//	                       40  8  tag: interval
//	                       48 32  bitmap of the chunk, whole
//	                       80 32  mask of the blocks whose checksums follow
//	                      112 8n  checksums, ascending by block
const (
	recALAdd recordKind = 1 + iota
	recALRemove
	recFence
	recDrop
	recDoubt
	recChunk
)

// Flags of a chunk record.
const (
	chunkFresh = 1 << 0 // the first record of this chunk in this slot: nothing before it counts
	chunkFreed = 1 << 1 // the slot is free
)

const (
	shortRecord = 24
	doubtRecord = 16
	chunkRecord = 112
)

// record is a decoded record; sums points into the page.
type record struct {
	kind     recordKind
	flags    uint8
	key      chunkKey
	slot     uint32
	gen      uint64 // of a fence, or of the tag
	interval uint64
	seq      uint64 // of a doubt
	bits     bitmap
	mask     bitmap
	sums     []byte
}

func putShort(b []byte, kind recordKind, flags uint8, key chunkKey) {
	le := binary.LittleEndian
	b[0], b[1] = byte(kind), flags
	le.PutUint16(b[2:], shortRecord)
	le.PutUint32(b[4:], key.layer)
	le.PutUint64(b[8:], key.volume)
	le.PutUint64(b[16:], key.chunk)
}

func putDoubt(b []byte, seq uint64) {
	le := binary.LittleEndian
	b[0], b[1] = byte(recDoubt), 0
	le.PutUint16(b[2:], doubtRecord)
	le.PutUint32(b[4:], 0)
	le.PutUint64(b[8:], seq)
}

// putChunk writes a chunk record with the sums of r.mask, taken from sums, and
// returns its length.
func putChunk(b []byte, r *record, sums *[blocks]uint64) int {
	le := binary.LittleEndian
	n := r.mask.count()
	size := chunkRecord + 8*n
	_ = b[size-1]
	b[0], b[1] = byte(recChunk), r.flags
	le.PutUint16(b[2:], uint16(size))
	le.PutUint32(b[4:], r.slot)
	le.PutUint64(b[8:], r.key.volume)
	le.PutUint64(b[16:], r.key.chunk)
	le.PutUint32(b[24:], r.key.layer)
	le.PutUint16(b[28:], uint16(n))
	le.PutUint16(b[30:], 0)
	le.PutUint64(b[32:], r.gen)
	le.PutUint64(b[40:], r.interval)
	r.bits.put(b[48:])
	r.mask.put(b[80:])
	o := chunkRecord
	for w, m := range r.mask {
		for ; m != 0; m &= m - 1 {
			le.PutUint64(b[o:], sums[w<<6+tz(m)])
			o += 8
		}
	}
	return size
}

// next decodes the record at the start of b and returns what follows it. ok is
// false when b holds nonsense.
func (r *record) next(b []byte) (rest []byte, ok bool) {
	le := binary.LittleEndian
	if len(b) < doubtRecord {
		return nil, false
	}
	size := int(le.Uint16(b[2:]))
	if size > len(b) || size < doubtRecord {
		return nil, false
	}
	*r = record{kind: recordKind(b[0]), flags: b[1]}
	switch r.kind {
	case recALAdd, recALRemove:
		ok = size == shortRecord
		if ok {
			r.key = chunkKey{le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint32(b[4:])}
		}
	case recFence, recDrop:
		ok = size == shortRecord
		if ok {
			r.key.volume, r.gen = le.Uint64(b[8:]), le.Uint64(b[16:])
		}
	case recDoubt:
		ok = size == doubtRecord
		r.seq = le.Uint64(b[8:])
	case recChunk:
		ok = r.chunk(b[:size])
	}
	if !ok {
		return nil, false
	}
	return b[size:], true
}

func (r *record) chunk(b []byte) bool {
	le := binary.LittleEndian
	if len(b) < chunkRecord {
		return false
	}
	n := int(le.Uint16(b[28:]))
	r.mask.get(b[80:])
	if len(b) != chunkRecord+8*n || r.mask.count() != n {
		return false
	}
	r.slot = le.Uint32(b[4:])
	r.key = chunkKey{le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint32(b[24:])}
	r.gen, r.interval = le.Uint64(b[32:]), le.Uint64(b[40:])
	r.bits.get(b[48:])
	r.sums = b[chunkRecord:]
	return true
}
