// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"braid/cluster"
)

func mustNew(t testing.TB, unit, width uint32) Layout {
	t.Helper()
	l, err := New(unit, width)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Goal: only shapes that the format knows are accepted. Method: a table.
func TestNewRefusesBadShapes(t *testing.T) {
	for _, c := range []struct {
		unit, width uint32
		ok          bool
	}{
		{4096, 1, true}, {65536, 8, true}, {1 << 20, 256, true}, {4096, 256, true},
		{2048, 8, false}, {0, 8, false}, {3 * 4096, 8, false}, {2 << 20, 8, false},
		{65536, 0, false}, {65536, 257, false},
	} {
		if _, err := New(c.unit, c.width); (err == nil) != c.ok {
			t.Errorf("New(%d, %d): error %v, want ok=%v", c.unit, c.width, err, c.ok)
		}
	}
}

// Goal: the formula of the format, by hand. Method: a table of single bytes.
func TestLocate(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		unit, width uint32
		off         uint64
		chunk       uint64
		inChunk     uint32
	}{
		{65536, 8, 0, 0, 0},
		{65536, 8, 65535, 0, 65535},
		{65536, 8, 65536, 1, 0},
		{65536, 8, 8 * 65536, 0, 65536},
		{65536, 8, 8*mib - 1, 7, mib - 1},
		{65536, 8, 8 * mib, 8, 0},
		{4096, 1, 5*mib + 12345, 5, 12345},
		{1 << 20, 4, 6*mib + 7, 6, 7},
		{4096, 3, 3*mib + 4*4096 + 1, 4, 4097},
	} {
		l := mustNew(t, c.unit, c.width)
		chunk, in := l.Locate(c.off)
		if chunk != c.chunk || in != c.inChunk {
			t.Errorf("U=%d W=%d off=%d: chunk %d + %d, want %d + %d",
				c.unit, c.width, c.off, chunk, in, c.chunk, c.inChunk)
		}
	}
}

// naive is the block map that the arithmetic must agree with: it deals the
// units of a row out one after the other.
func naive(unit, width uint32, rows int) (chunkOf []uint64, offsetOf []uint32) {
	fill := make([]uint32, uint64(rows)*uint64(width))
	total := uint64(rows) * uint64(width) * cluster.ChunkSize / cluster.BlockSize
	column, row := uint64(0), uint64(0)
	perUnit := uint64(unit / cluster.BlockSize)
	for b := uint64(0); b < total; {
		chunk := row*uint64(width) + column
		for range perUnit {
			chunkOf = append(chunkOf, chunk)
			offsetOf = append(offsetOf, fill[chunk])
			fill[chunk] += cluster.BlockSize
			b++
		}
		if column++; column == uint64(width) {
			column = 0
			if fill[chunk] == cluster.ChunkSize {
				row++
			}
		}
	}
	return chunkOf, offsetOf
}

// Goal: every block lies where dealing the units out by hand puts it. Method:
// compare Locate and Offset with the naive map for a spread of shapes.
func TestLocateAgainstNaiveMap(t *testing.T) {
	for unit := uint32(4096); unit <= 1<<20; unit *= 4 {
		for _, width := range []uint32{1, 2, 3, 5, 8} {
			l := mustNew(t, unit, width)
			chunkOf, offsetOf := naive(unit, width, 2)
			for b := range chunkOf {
				off := uint64(b) * cluster.BlockSize
				chunk, in := l.Locate(off + 17)
				if chunk != chunkOf[b] || in != offsetOf[b]+17 {
					t.Fatalf("U=%d W=%d block %d: chunk %d + %d, want %d + %d",
						unit, width, b, chunk, in, chunkOf[b], offsetOf[b]+17)
				}
				if back := l.Offset(chunk, in); back != off+17 {
					t.Fatalf("U=%d W=%d: Offset(Locate(%d)) = %d", unit, width, off+17, back)
				}
			}
		}
	}
}

// checkWalk holds one walk against Locate: each byte of the range appears in
// exactly one view, the pieces are one per chunk, and the bounds hold.
func checkWalk(l *Layout, off, length uint64) error {
	var total uint64
	pieces, views := 0, 0
	type seen struct{ chunk uint64 }
	chunks := map[seen]bool{}
	it := l.Pieces(off, length)
	for {
		p, ok := it.Next()
		if !ok {
			break
		}
		pieces++
		if chunks[seen{p.Chunk}] {
			return fmt.Errorf("chunk %d appears twice", p.Chunk)
		}
		chunks[seen{p.Chunk}] = true
		if p.Length == 0 || uint64(p.Off)+uint64(p.Length) > cluster.ChunkSize {
			return fmt.Errorf("piece %+v does not fit a chunk", p)
		}
		in := p.Off
		vs := l.Views(p)
		for {
			v, ok := vs.Next()
			if !ok {
				break
			}
			views++
			if v.Off < off || v.Off+uint64(v.Length) > off+length {
				return fmt.Errorf("view %+v of %+v leaves the range", v, p)
			}
			for _, at := range []uint32{0, v.Length / 2, v.Length - 1} {
				chunk, o := l.Locate(v.Off + uint64(at))
				if chunk != p.Chunk || o != in+at {
					return fmt.Errorf("view %+v of %+v: byte %d is chunk %d + %d", v, p, at, chunk, o)
				}
			}
			in += v.Length
			total += uint64(v.Length)
		}
		if in != p.Off+p.Length {
			return fmt.Errorf("views of %+v cover up to %d", p, in)
		}
	}
	if total != length {
		return fmt.Errorf("pieces cover %d of %d bytes", total, length)
	}
	if pieces > l.MaxPieces(length) || views > l.MaxViews(length) {
		return fmt.Errorf("%d pieces, %d views; bounds %d, %d",
			pieces, views, l.MaxPieces(length), l.MaxViews(length))
	}
	return nil
}

// Goal: any range of any shape is cut without loss, overlap or a byte beyond.
// Method: random shapes and ranges, dense around the borders of units and rows.
func TestPiecesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unit := uint32(4096) << rapid.IntRange(0, 8).Draw(t, "unitShift")
		width := rapid.Uint32Range(1, 33).Draw(t, "width")
		l, err := New(unit, width)
		if err != nil {
			t.Fatal(err)
		}
		rowSize := uint64(width) << 20
		off := rapid.Uint64Range(0, 3).Draw(t, "row") * rowSize
		off += rapid.Uint64Range(0, rowSize/uint64(unit)).Draw(t, "unit") * uint64(unit)
		off += rapid.Uint64Range(0, 4097).Draw(t, "odd")
		length := rapid.OneOf(rapid.Uint64Range(1, 9000), rapid.Uint64Range(1, 1<<20),
			rapid.Uint64Range(1, 3*rowSize)).Draw(t, "length")
		if err := checkWalk(&l, off, length); err != nil {
			t.Fatalf("U=%d W=%d [%d,+%d): %v", unit, width, off, length, err)
		}
	})
}

func FuzzPieces(f *testing.F) {
	f.Add(uint8(4), uint16(8), uint64(0), uint32(1<<20))
	f.Add(uint8(0), uint16(2), uint64(4095), uint32(4098))
	f.Add(uint8(8), uint16(1), uint64(1<<20-1), uint32(2))
	f.Fuzz(func(t *testing.T, shift uint8, width uint16, off uint64, length uint32) {
		l, err := New(uint32(4096)<<(shift%9), uint32(width%MaxWidth)+1)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkWalk(&l, off%(1<<50), uint64(length%(4<<20))); err != nil {
			t.Fatal(err)
		}
	})
}

// Goal: with the default shape a 1 MiB request goes to 8 chunks at once, and
// two units of each. Method: count.
func TestDefaultShapeFansOut(t *testing.T) {
	l := mustNew(t, 65536, 8)
	it := l.Pieces(16<<20, 1<<20)
	n := 0
	for p, ok := it.Next(); ok; p, ok = it.Next() {
		if p.Length != 2*65536 {
			t.Errorf("piece %+v: want 128 KiB", p)
		}
		n++
	}
	if n != 8 {
		t.Errorf("%d pieces, want 8", n)
	}
}

// Goal: the walk is free of allocation. Method: AllocsPerRun.
func TestWalkAllocatesNothing(t *testing.T) {
	l := mustNew(t, 4096, 8)
	sum := uint64(0)
	allocs := testing.AllocsPerRun(100, func() {
		it := l.Pieces(12345, 1<<20)
		for p, ok := it.Next(); ok; p, ok = it.Next() {
			vs := l.Views(p)
			for v, ok := vs.Next(); ok; v, ok = vs.Next() {
				sum += v.Off
			}
		}
	})
	if allocs != 0 || sum == 0 {
		t.Errorf("%v allocations per walk", allocs)
	}
}

func BenchmarkWalk4K(b *testing.B) {
	l := mustNew(b, 65536, 8)
	b.ReportAllocs()
	for i := range b.N {
		it := l.Pieces(uint64(i)*4096, 4096)
		for p, ok := it.Next(); ok; p, ok = it.Next() {
			vs := l.Views(p)
			for _, ok := vs.Next(); ok; _, ok = vs.Next() {
			}
		}
	}
}
