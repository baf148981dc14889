// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"math/bits"

	"braid/cluster"
)

// MaxWidth is the widest row in chunks. It bounds the pieces of a request.
const MaxWidth = 256

// Layout is the shape of a volume. The zero value is not usable; see New.
type Layout struct {
	unit      uint64 // bytes
	unitShift uint
	unitMask  uint64
	width     uint64 // chunks in a row
	rowSize   uint64 // bytes
}

// New checks the shape: unit is a power of two from cluster.BlockSize to
// cluster.ChunkSize, width is 1 to MaxWidth chunks.
func New(unit, width uint32) (Layout, error) {
	if unit < cluster.BlockSize || unit > cluster.ChunkSize || unit&(unit-1) != 0 {
		return Layout{}, fmt.Errorf("stripe unit %d: want a power of two from %d to %d bytes",
			unit, cluster.BlockSize, cluster.ChunkSize)
	}
	if width < 1 || width > MaxWidth {
		return Layout{}, fmt.Errorf("stripe width %d: want 1 to %d chunks", width, MaxWidth)
	}
	return Layout{
		unit:      uint64(unit),
		unitShift: uint(bits.TrailingZeros32(unit)),
		unitMask:  uint64(unit) - 1,
		width:     uint64(width),
		rowSize:   uint64(width) * cluster.ChunkSize,
	}, nil
}

// Unit is the stripe unit in bytes.
func (l *Layout) Unit() uint64 { return l.unit }

// Width is the number of chunks in a row.
func (l *Layout) Width() uint64 { return l.width }

// Locate returns the chunk that holds the volume's byte at off, and the byte's
// offset in it.
func (l *Layout) Locate(off uint64) (chunkIndex uint64, inChunk uint32) {
	row, inRow := off/l.rowSize, off%l.rowSize
	unitIndex := inRow >> l.unitShift
	inChunk = uint32((unitIndex/l.width)<<l.unitShift + inRow&l.unitMask)
	return row*l.width + unitIndex%l.width, inChunk
}

// Offset is the inverse of Locate.
func (l *Layout) Offset(chunkIndex uint64, inChunk uint32) uint64 {
	row, column := chunkIndex/l.width, chunkIndex%l.width
	unitIndex := (uint64(inChunk)>>l.unitShift)*l.width + column
	return row*l.rowSize + unitIndex<<l.unitShift + uint64(inChunk)&l.unitMask
}

// MaxPieces is the largest number of chunks that length bytes can touch,
// however they lie.
func (l *Layout) MaxPieces(length uint64) int {
	if length == 0 {
		return 0
	}
	units := (length+l.unit-2)>>l.unitShift + 1
	rows := (length+l.rowSize-2)/l.rowSize + 1
	return int(min(units, rows*l.width))
}

// MaxViews is the largest number of views of all pieces of length bytes.
func (l *Layout) MaxViews(length uint64) int {
	if length == 0 {
		return 0
	}
	return int((length+l.unit-2)>>l.unitShift + 1)
}

// Piece is the part of a range that lies in one chunk, where it is contiguous.
type Piece struct {
	Chunk  uint64 // chunk index
	Off    uint32 // offset in the chunk, bytes
	Length uint32 // bytes, at least 1
}

// Pieces walks the chunks that a range touches, in the order in which the range
// first touches them.
type Pieces struct {
	l         *Layout
	off, end  uint64 // what is left, beginning with the current row
	row       uint64
	firstUnit uint64 // of the range in the current row
	lastUnit  uint64
	next      uint64 // unit that opens the next piece; > lastUnit or a width on: row is done
}

// Pieces starts a walk over [off, off+length). It keeps a pointer to l.
func (l *Layout) Pieces(off, length uint64) Pieces {
	p := Pieces{l: l, off: off, end: off + length}
	if length > 0 {
		p.enterRow()
	}
	return p
}

func (p *Pieces) enterRow() {
	l := p.l
	p.row = p.off / l.rowSize
	rowStart := p.row * l.rowSize
	p.firstUnit = (p.off - rowStart) >> l.unitShift
	last := min(p.end, rowStart+l.rowSize) - rowStart - 1
	p.lastUnit = last >> l.unitShift
	p.next = p.firstUnit
}

// Next returns the next piece, or false after the last.
func (p *Pieces) Next() (Piece, bool) {
	if p.off >= p.end {
		return Piece{}, false
	}
	l := p.l
	rowStart := p.row * l.rowSize
	rowEnd := min(p.end, rowStart+l.rowSize)
	u := p.next
	column := u % l.width
	unitCount := (p.lastUnit-u)/l.width + 1
	start := (u / l.width) << l.unitShift
	stop := start + unitCount<<l.unitShift
	if u == p.firstUnit {
		start += (p.off - rowStart) & l.unitMask
	}
	if u+(unitCount-1)*l.width == p.lastUnit {
		stop -= l.unit - ((rowEnd-rowStart-1)&l.unitMask + 1)
	}
	piece := Piece{Chunk: p.row*l.width + column, Off: uint32(start), Length: uint32(stop - start)}
	p.next++
	if p.next > p.lastUnit || p.next == p.firstUnit+l.width {
		p.off = rowEnd
		if p.off < p.end {
			p.enterRow()
		}
	}
	return piece, true
}

// Rest is the offset in the volume from which on no piece was returned yet. It
// is exact only between rows; inside a row it is the row's start.
func (p *Pieces) Rest() uint64 { return p.off }

// View is one contiguous run of a piece within the volume.
type View struct {
	Off    uint64 // offset in the volume, bytes
	Length uint32 // bytes
}

// Views walks the runs of a piece in chunk order.
type Views struct {
	l     *Layout
	chunk uint64
	off   uint32
	end   uint32
}

// Views starts a walk over the runs of p. It keeps a pointer to l.
func (l *Layout) Views(p Piece) Views {
	return Views{l: l, chunk: p.Chunk, off: p.Off, end: p.Off + p.Length}
}

// Next returns the next run, or false after the last. With a width of 1 the
// whole piece is one run.
func (v *Views) Next() (View, bool) {
	if v.off >= v.end {
		return View{}, false
	}
	n := v.end - v.off
	if v.l.width > 1 {
		n = min(n, uint32(v.l.unit-uint64(v.off)&v.l.unitMask))
	}
	run := View{Off: v.l.Offset(v.chunk, v.off), Length: n}
	v.off += n
	return run, true
}
