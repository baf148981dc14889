// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

const (
	headerMagic    = 0x44485242 // "BRHD"
	chunkMagic     = 0x50435242 // "BRCP"
	headerSize     = 64
	headersPerPage = pageSize/headerSize - 1
)

// The states of a chunk slot on the disk.
const (
	slotFree = 0
	slotUsed = 1
)

// chunkKey names a chunk.
type chunkKey struct {
	volume uint64
	chunk  uint64
	layer  uint32
}

// header is a chunk header: one entry of the header table.
//
// Byte table (little-endian), 64 bytes:
//
//	 0  8  volume
//	 8  8  chunk index
//	16  4  layer
//	20  1  state: 0 free, 1 used
//	21  1  reserved, 0
//	22  2  blocks present
//	24  8  tag: generation
//	32  8  tag: interval
//	40  4  sequence number of the chunk's newest page; 0: none was written
//	44 20  reserved, 0
type header struct {
	key      chunkKey
	gen      uint64
	interval uint64
	pageSeq  uint32
	blocks   uint16
	state    uint8
}

func (h *header) encode(b []byte) {
	_ = b[headerSize-1]
	le := binary.LittleEndian
	le.PutUint64(b, h.key.volume)
	le.PutUint64(b[8:], h.key.chunk)
	le.PutUint32(b[16:], h.key.layer)
	b[20], b[21] = h.state, 0
	le.PutUint16(b[22:], h.blocks)
	le.PutUint64(b[24:], h.gen)
	le.PutUint64(b[32:], h.interval)
	le.PutUint32(b[40:], h.pageSeq)
	clear(b[44:headerSize])
}

func (h *header) decode(b []byte) {
	_ = b[headerSize-1]
	le := binary.LittleEndian
	h.key = chunkKey{le.Uint64(b), le.Uint64(b[8:]), le.Uint32(b[16:])}
	h.state = b[20]
	h.blocks = le.Uint16(b[22:])
	h.gen = le.Uint64(b[24:])
	h.interval = le.Uint64(b[32:])
	h.pageSeq = le.Uint32(b[40:])
}

// sealHeaderPage completes a page of the header table, whose entries lie from
// byte 64 on.
//
// Byte table (little-endian), 4 KiB, stored as twins that are written in turn:
//
//	 0   4  magic "BRHD"
//	 4   2  format version
//	 6   2  entries: 63
//	 8   8  salt: xxhash64 of the device UUID
//	16   8  sequence number: the valid twin with the higher one counts; twin = number mod 2
//	24   4  index of the page in the table
//	28  28  reserved, 0
//	56   8  checksum: xxhash64 of bytes 0-55, xor xxhash64 of bytes 64-4095 rotated left by 1
//	64      entries
func sealHeaderPage(b []byte, salt, seq uint64, index uint32) {
	le := binary.LittleEndian
	le.PutUint32(b, headerMagic)
	le.PutUint16(b[4:], Version)
	le.PutUint16(b[6:], headersPerPage)
	le.PutUint64(b[8:], salt)
	le.PutUint64(b[16:], seq)
	le.PutUint32(b[24:], index)
	clear(b[28:56])
	le.PutUint64(b[56:], splitSum(b))
}

// splitSum is the checksum of a page that carries it in bytes 56-63.
func splitSum(b []byte) uint64 {
	return xxhash.Sum64(b[:56]) ^ bits.RotateLeft64(xxhash.Sum64(b[64:pageSize]), 1)
}

// openHeaderPage validates a header page and returns its sequence number.
func openHeaderPage(b []byte, salt uint64, index uint32) (seq uint64, ok bool) {
	le := binary.LittleEndian
	if le.Uint32(b) != headerMagic || le.Uint16(b[4:]) != Version ||
		le.Uint16(b[6:]) != headersPerPage || le.Uint64(b[8:]) != salt ||
		le.Uint32(b[24:]) != index || le.Uint64(b[56:]) != splitSum(b) {
		return 0, false
	}
	return le.Uint64(b[16:]), true
}

// chunkPage is the decoded checksum and bitmap page of a chunk.
//
// Byte table (little-endian), 4 KiB, stored as twins that are written in turn:
//
//	   0    4  magic "BRCP"
//	   4    2  format version
//	   6    1  state: 0 free, 1 used
//	   7    1  reserved, 0
//	   8    8  salt: xxhash64 of the device UUID
//	  16    4  slot
//	  20    4  sequence number; twin = number mod 2
//	  24    8  volume
//	  32    8  chunk index
//	  40    4  layer
//	  44    4  reserved, 0
//	  48    8  tag: generation
//	  56    8  tag: interval
//	  64   32  bitmap: block i is bit i mod 8 of byte i/8; 1: present
//	  96 2048  checksums: xxhash64 of each block, 0 where absent
//	2144       reserved, 0
//	4088    8  xxhash64 of bytes 0-4087
type chunkPage struct {
	head header
	slot uint32
	bits bitmap
}

func (p *chunkPage) encode(b []byte, salt uint64, sums *[blocks]uint64) {
	le := binary.LittleEndian
	le.PutUint32(b, chunkMagic)
	le.PutUint16(b[4:], Version)
	b[6], b[7] = p.head.state, 0
	le.PutUint64(b[8:], salt)
	le.PutUint32(b[16:], p.slot)
	le.PutUint32(b[20:], p.head.pageSeq)
	le.PutUint64(b[24:], p.head.key.volume)
	le.PutUint64(b[32:], p.head.key.chunk)
	le.PutUint32(b[40:], p.head.key.layer)
	le.PutUint32(b[44:], 0)
	le.PutUint64(b[48:], p.head.gen)
	le.PutUint64(b[56:], p.head.interval)
	p.bits.put(b[64:])
	for i := range sums {
		s := sums[i]
		if !p.bits.has(uint32(i)) {
			s = 0
		}
		le.PutUint64(b[96+8*i:], s)
	}
	clear(b[2144 : pageSize-8])
	seal(b)
}

// decode validates a page of the given slot; sums are filled for present blocks.
func (p *chunkPage) decode(b []byte, salt uint64, slot uint32, sums *[blocks]uint64) bool {
	le := binary.LittleEndian
	if le.Uint32(b) != chunkMagic || le.Uint16(b[4:]) != Version || le.Uint64(b[8:]) != salt ||
		le.Uint32(b[16:]) != slot || b[6] > slotUsed || !sealed(b) {
		return false
	}
	p.slot = slot
	p.head = header{
		key:   chunkKey{le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint32(b[40:])},
		state: b[6], pageSeq: le.Uint32(b[20:]), gen: le.Uint64(b[48:]), interval: le.Uint64(b[56:]),
	}
	p.bits.get(b[64:])
	p.head.blocks = uint16(p.bits.count())
	if sums != nil {
		for i := range sums {
			sums[i] = le.Uint64(b[96+8*i:])
		}
	}
	return true
}

// bitmap has one bit per block of a chunk.
type bitmap [blocks / 64]uint64

func (m *bitmap) has(i uint32) bool { return m[i>>6]&(1<<(i&63)) != 0 }
func (m *bitmap) set(i uint32)      { m[i>>6] |= 1 << (i & 63) }
func (m *bitmap) clear(i uint32)    { m[i>>6] &^= 1 << (i & 63) }
func (m *bitmap) empty() bool       { return m[0]|m[1]|m[2]|m[3] == 0 }

func (m *bitmap) count() int {
	return bits.OnesCount64(m[0]) + bits.OnesCount64(m[1]) + bits.OnesCount64(m[2]) +
		bits.OnesCount64(m[3])
}

// span returns the bits of [first, first+n).
func span(first, n uint32) (m bitmap) {
	for w := range m {
		lo, hi := uint32(w)*64, uint32(w)*64+64
		a, b := max(first, lo), min(first+n, hi)
		if a < b {
			m[w] = (^uint64(0) >> (64 - (b - a))) << (a - lo)
		}
	}
	return m
}

func (m *bitmap) and(o bitmap) (r bitmap) {
	for i := range m {
		r[i] = m[i] & o[i]
	}
	return r
}

func (m *bitmap) or(o bitmap) {
	for i := range m {
		m[i] |= o[i]
	}
}

func (m *bitmap) without(o bitmap) {
	for i := range m {
		m[i] &^= o[i]
	}
}

// first and last set bit; m is not empty.
func (m *bitmap) first() uint32 {
	for w := range m {
		if m[w] != 0 {
			return uint32(w*64 + bits.TrailingZeros64(m[w]))
		}
	}
	return blocks
}

func (m *bitmap) last() uint32 {
	for w := len(m) - 1; w >= 0; w-- {
		if m[w] != 0 {
			return uint32(w*64 + 63 - bits.LeadingZeros64(m[w]))
		}
	}
	return 0
}

func (m *bitmap) put(b []byte) {
	for i := range m {
		binary.LittleEndian.PutUint64(b[8*i:], m[i])
	}
}

func (m *bitmap) get(b []byte) {
	for i := range m {
		m[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
}

func tz(m uint64) int { return bits.TrailingZeros64(m) }
