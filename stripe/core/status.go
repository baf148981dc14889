// SPDX-License-Identifier: Apache-2.0

package core

import (
	"braid/cluster"
	"braid/transport/bio"
)

// fillExtents turns the bitmaps of the chunks, which lie in the request's edge
// memory in the order of its pieces, into extents in the volume's order.
func (c *Core) fillExtents(q *request) {
	r := q.r
	ext := r.Extents[:0]
	end := min(r.Off+r.Len, q.end)
	for off := r.Off; off < end; {
		next := min(end, (off+cluster.BlockSize)&^blockMask)
		hole := !c.holds(q, off)
		switch n := len(ext); {
		case n > 0 && ext[n-1].Hole == hole:
			ext[n-1].Length += next - off
		case n > 0 && r.Flags&bio.ReqOne != 0:
			r.Extents = ext
			return
		default:
			ext = append(ext, bio.Extent{Length: next - off, Hole: hole})
		}
		off = next
	}
	r.Extents = ext
}

// holds looks the block at off up in its chunk's bitmap: bit k, from the least
// significant one, of byte b stands for block 8b+k.
func (c *Core) holds(q *request, off uint64) bool {
	chunk, inChunk := c.layout.Locate(off)
	block := int(inChunk / cluster.BlockSize)
	bitmap := q.bounce[c.pieceOrdinal(q, chunk)*bitmapSize:]
	return bitmap[block/8]&(1<<(block%8)) != 0
}

// pieceOrdinal is the place of a chunk in the order in which layout.Pieces walks
// the request's range. The range is not longer than a row, so it touches two
// rows at most.
func (c *Core) pieceOrdinal(q *request, chunk uint64) int {
	width := c.layout.Width()
	rowSize := width * cluster.ChunkSize
	row := q.first / rowSize
	firstColumn := q.first % rowSize / c.layout.Unit() % width
	if chunk/width == row {
		return int((chunk%width + width - firstColumn) % width)
	}
	rowEnd := min(q.end, (row+1)*rowSize)
	units := (rowEnd-1-row*rowSize)/c.layout.Unit() - q.first%rowSize/c.layout.Unit() + 1
	return int(min(units, width) + chunk%width)
}
