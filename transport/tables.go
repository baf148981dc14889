// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/binary"
	"fmt"
)

// Sizes of the tables that replies of resolve and resync carry, in bytes.
const (
	ListHeadSize = 16
	RegionSize   = 64
	TagEntrySize = 32
	SumTableSize = 128 + 8*MaxSums
	bitmapSize   = MaxSums / 8

	// MaxRegions and MaxTags are how many entries one reply holds.
	MaxRegions = (MaxPayload - ListHeadSize) / RegionSize
	MaxTags    = (MaxPayload - ListHeadSize) / TagEntrySize
)

// Bitmap has a bit for each block of a chunk: bit i%8 of byte i/8.
type Bitmap [bitmapSize]byte

// Has reports whether the bit of block i is set.
func (b *Bitmap) Has(i int) bool { return b[i>>3]>>(i&7)&1 != 0 }

// Set sets the bit of block i.
func (b *Bitmap) Set(i int) { b[i>>3] |= 1 << (i & 7) }

// Region is one activity-log entry of the volume that was asked for.
//
// Byte table (little-endian):
//
//	 0  8  chunk index
//	 8  8  generation and
//	16  8  interval of the newest write that the device remembers
//	24  4  layer
//	28  1  marks, as in the store
//	29  3  reserved, 0
//	32 32  bitmap of the blocks that matched no checksum after a crash
type Region struct {
	Chunk    uint64
	Gen      uint64
	Interval uint64
	Layer    uint32
	Marks    uint8
	Torn     Bitmap
}

// TagEntry is one stored chunk of the volume that was asked for.
//
// Byte table (little-endian):
//
//	 0  8  chunk index
//	 8  8  generation and
//	16  8  interval of the last write
//	24  4  layer
//	28  2  number of blocks that hold data
//	30  2  reserved, 0
type TagEntry struct {
	Chunk    uint64
	Gen      uint64
	Interval uint64
	Layer    uint32
	Blocks   uint16
}

// List is the start of a RegionList or TagList: the payload of a reply to
// OpALList or OpTags. As many entries follow as fill the payload.
//
// Byte table (little-endian):
//
//	0  8  cursor of the next request (its Chunk), 0: this was the last part
//	8  4  number of entries
//	12 4  reserved, 0
//
// Entries that exist from the first request to the last are in the list; one
// that comes or goes meanwhile may be in it or not.

// BeginList writes the head of a list to an empty buffer of sufficient capacity.
func BeginList(b []byte, next uint64, count int) []byte {
	b = binary.LittleEndian.AppendUint64(b, next)
	b = binary.LittleEndian.AppendUint32(b, uint32(count))
	return append(b, 0, 0, 0, 0)
}

// Append writes r behind a list.
func (r *Region) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, r.Chunk)
	b = le.AppendUint64(b, r.Gen)
	b = le.AppendUint64(b, r.Interval)
	b = le.AppendUint32(b, r.Layer)
	b = append(b, r.Marks, 0, 0, 0)
	return append(b, r.Torn[:]...)
}

// Append writes t behind a list.
func (t *TagEntry) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, t.Chunk)
	b = le.AppendUint64(b, t.Gen)
	b = le.AppendUint64(b, t.Interval)
	b = le.AppendUint32(b, t.Layer)
	b = le.AppendUint16(b, t.Blocks)
	return append(b, 0, 0)
}

// decodeHead checks the head of a list whose entries have that size. The count
// is compared with the payload, so that nobody allocates for entries that did
// not come.
func decodeHead(b []byte, size int) (next uint64, entries []byte, err error) {
	if len(b) < ListHeadSize || !zero(b[12:ListHeadSize]) {
		return 0, nil, fmt.Errorf("list of %d bytes: %w", len(b), ErrPayload)
	}
	entries = b[ListHeadSize:]
	count := uint64(binary.LittleEndian.Uint32(b[8:]))
	if count*uint64(size) != uint64(len(entries)) {
		return 0, nil, fmt.Errorf("list of %d entries in %d bytes: %w", count, len(b), ErrPayload)
	}
	return binary.LittleEndian.Uint64(b), entries, nil
}

// DecodeRegions calls each for every entry of a RegionList, in order, and
// returns the next cursor. The error is ErrPayload, found before the first call
// or at the entry that is wrong.
func DecodeRegions(b []byte, each func(*Region)) (next uint64, err error) {
	next, b, err = decodeHead(b, RegionSize)
	for ; err == nil && len(b) > 0; b = b[RegionSize:] {
		if !zero(b[29:32]) {
			return 0, fmt.Errorf("activity-log entry: %w: %w", ErrPayload, ErrReserved)
		}
		le := binary.LittleEndian
		r := Region{Chunk: le.Uint64(b), Gen: le.Uint64(b[8:]), Interval: le.Uint64(b[16:]),
			Layer: le.Uint32(b[24:]), Marks: b[28]}
		copy(r.Torn[:], b[32:])
		each(&r)
	}
	return next, err
}

// DecodeTags is DecodeRegions for a TagList.
func DecodeTags(b []byte, each func(*TagEntry)) (next uint64, err error) {
	next, b, err = decodeHead(b, TagEntrySize)
	for ; err == nil && len(b) > 0; b = b[TagEntrySize:] {
		le := binary.LittleEndian
		t := TagEntry{Chunk: le.Uint64(b), Gen: le.Uint64(b[8:]), Interval: le.Uint64(b[16:]),
			Layer: le.Uint32(b[24:]), Blocks: le.Uint16(b[28:])}
		if !zero(b[30:32]) || t.Blocks > MaxSums {
			return 0, fmt.Errorf("tag entry: %w: %w", ErrPayload, ErrReserved)
		}
		each(&t)
	}
	return next, err
}

// SumTable is the payload of a reply to OpSums: what one device holds of a
// chunk, from bytes that it has just read from its disk.
//
// Byte table (little-endian):
//
//	  0 32   bitmap of the blocks that hold data
//	 32 32   bitmap of the torn ones: written after the last flush before a crash,
//	         and unlike their stored checksum since; they are to be resolved
//	 64 32   bitmap of the rotten ones: unlike their stored checksum though they
//	         were flushed; they are to be repaired, and never copied
//	 96  8   generation and
//	104  8   interval of the last write
//	112  1   flags: bit 0 the chunk is stored, bit 1 its region is in the activity log
//	113  1   marks of the activity-log entry, as in the store
//	114  14  reserved, 0
//	128 2048 checksum of each block's bytes, 0 for a block without data
type SumTable struct {
	Present, Torn, Rot Bitmap
	Gen, Interval      uint64
	Stored, Logged     bool
	Marks              uint8
	Sums               [MaxSums]uint64
}

const (
	sumsStored = 1 << iota
	sumsLogged
)

// Encode writes t to b[:SumTableSize] and returns that part of b.
func (t *SumTable) Encode(b []byte) []byte {
	b = b[:SumTableSize]
	le := binary.LittleEndian
	copy(b, t.Present[:])
	copy(b[32:], t.Torn[:])
	copy(b[64:], t.Rot[:])
	le.PutUint64(b[96:], t.Gen)
	le.PutUint64(b[104:], t.Interval)
	clear(b[112:128])
	if t.Stored {
		b[112] |= sumsStored
	}
	if t.Logged {
		b[112] |= sumsLogged
	}
	b[113] = t.Marks
	for i, sum := range t.Sums {
		le.PutUint64(b[128+8*i:], sum)
	}
	return b
}

// Decode reads t from a whole payload. The error is ErrPayload.
func (t *SumTable) Decode(b []byte) error {
	if len(b) != SumTableSize {
		return fmt.Errorf("checksum table of %d bytes, want %d: %w", len(b), SumTableSize, ErrPayload)
	}
	if b[112]&^(sumsStored|sumsLogged) != 0 || !zero(b[114:128]) {
		return fmt.Errorf("checksum table: %w: %w", ErrPayload, ErrReserved)
	}
	le := binary.LittleEndian
	copy(t.Present[:], b)
	copy(t.Torn[:], b[32:])
	copy(t.Rot[:], b[64:])
	t.Gen, t.Interval = le.Uint64(b[96:]), le.Uint64(b[104:])
	t.Stored, t.Logged = b[112]&sumsStored != 0, b[112]&sumsLogged != 0
	t.Marks = b[113]
	for i := range t.Sums {
		t.Sums[i] = le.Uint64(b[128+8*i:])
	}
	for i := range t.Present {
		if (t.Torn[i]|t.Rot[i])&^t.Present[i] != 0 || t.Present[i] != 0 && !t.Stored {
			return fmt.Errorf("checksum table: blocks that do not exist are torn or rotten: %w", ErrPayload)
		}
	}
	return nil
}
