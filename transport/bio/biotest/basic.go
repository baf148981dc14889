// SPDX-License-Identifier: Apache-2.0

package biotest

import (
	"errors"

	"braid/transport/bio"
)

const block = 4096

// A fresh device reads as zeroes, at its start, its end and in between.
func testFresh(r *runner) {
	for _, off := range []uint64{0, r.size/2/block*block + block, r.size - 64<<10} {
		r.same("fresh device", off, r.get(off, 64<<10), make([]byte, 64<<10))
	}
}

// What is written is read: whole blocks of many sizes, also across the borders
// of stripe units, chunks and rows.
func testReadWrite(r *runner) {
	lengths := []uint64{block, 2 * block, 64 << 10, 68 << 10, 128 << 10, 512 << 10, r.h.MaxLen}
	offsets := []uint64{0, block, 60 << 10, 64 << 10, 1<<20 - block, 1 << 20, 3<<20 - 8<<10}
	if r.size > 9<<20 {
		offsets = append(offsets, 8<<20-block, 8<<20-64<<10)
	}
	salt := byte(0)
	for _, off := range offsets {
		for _, length := range lengths {
			length = min(length, r.size-off)
			salt++
			want := pattern(off, length, salt)
			r.put(off, want, 0)
			r.same("read back", off, r.get(off, length), want)
		}
	}
}

// Ranges of any alignment read, merge and write their edge blocks: the bytes
// around a write stay as they were.
func testOddOffsets(r *runner) {
	const window = 512 << 10
	base := uint64(1<<20 - window/2) // across a chunk border
	model := pattern(base, window, 1)
	r.put(base, model, 0)
	cases := [][2]uint64{
		{0, 1}, {1, 1}, {4095, 1}, {4095, 2}, {1, 4095}, {1, 4096}, {4097, 8191},
		{511, 513}, {512, 512}, {65535, 2}, {window/2 - 1, 2}, {window/2 - 100, 70000},
		{12345, 123456}, {window - 1, 1}, {3, 5000}, {8192, 10}, {8190, 4100},
	}
	for i, c := range cases {
		at, length := r.down(c[0]), r.up(c[1])
		length = min(length, window-at)
		bytes := pattern(base+at, length, byte(i+2))
		copy(model[at:], bytes)
		r.put(base+at, bytes, 0)
		r.same("odd read", base+at, r.get(base+at, length), bytes)
	}
	r.same("after odd writes", base, r.get(base, window), model)
}

// The first and the last byte of the device can be written and read alone.
func testBoundary(r *runner) {
	n := r.up(1)
	tail := pattern(r.size-128<<10, 128<<10, 9)
	r.put(r.size-128<<10, tail, 0)
	last := pattern(r.size-n, n, 77)
	copy(tail[uint64(len(tail))-n:], last)
	r.put(r.size-n, last, bio.FUA)
	r.same("tail", r.size-128<<10, r.get(r.size-128<<10, 128<<10), tail)
	r.put(0, last, 0)
	r.same("first bytes", 0, r.get(0, n), last)
	for _, kind := range []bio.Op{bio.Trim, bio.WriteZeroes} {
		r.do(command(kind, r.size-n, n, 0))
		copy(tail[uint64(len(tail))-n:], make([]byte, n))
		r.same("tail after "+kind.String(), r.size-128<<10, r.get(r.size-128<<10, 128<<10), tail)
	}
	r.do(command(bio.Cache, r.size-n, n, 0), command(bio.BlockStatus, r.size-n, n, 0))
}

// Writes of one range that are submitted together end as the last one.
func testOverlapOrder(r *runner) {
	const window = 256 << 10
	base := uint64(1<<20 - window/2)
	for round := range 8 {
		model := make([]byte, window)
		r.put(base, model, 0)
		var ops []*op
		for i := range 48 {
			at := r.down(uint64(r.rng.Intn(window - block)))
			length := r.up(uint64(1 + r.rng.Intn(window/2)))
			length = min(length, window-at)
			if i%8 == 7 {
				ops = append(ops, command(bio.WriteZeroes, base+at, length, bio.Flags(i/8%2)*bio.NoHole))
				clear(model[at : at+length])
				continue
			}
			bytes := pattern(base+at, length, byte(round*48+i))
			copy(model[at:], bytes)
			ops = append(ops, r.write(base+at, bytes, 0))
		}
		r.do(ops...)
		r.release(ops...)
		r.same("overlapping writes", base, r.get(base, window), model)
	}
}

// A read submitted while a write of its range is in flight waits for it.
func testReadAfterSubmittedWrite(r *runner) {
	for i := range 32 {
		off := r.down(uint64(i) * 40_000)
		length := r.up(uint64(1 + r.rng.Intn(100_000)))
		w := r.write(off, pattern(off, length, byte(i)), bio.Flags(i%2)*bio.FUA)
		rd := r.read(off, length)
		r.do(w, rd)
		r.same("read behind a write", off, rd.Data, w.Data)
		r.release(w, rd)
	}
}

// Flush, FUA and an empty flush complete, alone and amid writes.
func testFlushFUA(r *runner) {
	flush := func() *op { return command(bio.Flush, 0, 0, 0) }
	r.do(flush())
	r.do(flush(), flush(), flush())
	var ops []*op
	for i := range 16 {
		off := uint64(i) * 128 << 10
		ops = append(ops, r.write(off, pattern(off, 8<<10, 3), bio.Flags(i%2)*bio.FUA))
		if i%4 == 3 {
			ops = append(ops, flush())
		}
	}
	r.do(ops...)
	r.release(ops...)
	r.do(command(bio.Trim, 0, 8<<10, bio.FUA), command(bio.WriteZeroes, 128<<10, 8<<10, bio.FUA),
		flush())
	for i := range 16 {
		off := uint64(i) * 128 << 10
		want := pattern(off, 8<<10, 3)
		if i < 2 {
			want = make([]byte, 8<<10)
		}
		r.same("after flush", off, r.get(off, 8<<10), want)
	}
}

func testTrim(r *runner) {
	zeroKinds(r, bio.Trim, []bio.Flags{0, bio.FUA})
	// Twice, never written, and large.
	r.do(command(bio.Trim, 0, r.down(r.size), 0))
	r.do(command(bio.Trim, 0, r.down(r.size), 0))
	r.same("trimmed device", 0, r.get(0, 1<<20), make([]byte, 1<<20))
}

func testWriteZeroes(r *runner) {
	zeroKinds(r, bio.WriteZeroes, []bio.Flags{0, bio.NoHole, bio.FUA, bio.NoHole | bio.FUA})
	o := command(bio.WriteZeroes, 0, 1<<20, bio.FastZero)
	r.try(o)
	if o.Err != nil && !errors.Is(o.Err, bio.ErrNotSupported) {
		r.t.Fatalf("%s: %v, want success or ErrNotSupported", o, o.Err)
	}
}

// zeroKinds zeroes ranges of many alignments amid data and compares all.
func zeroKinds(r *runner, kind bio.Op, flags []bio.Flags) {
	const window = 3 << 20
	model := pattern(0, window, 5)
	r.put(0, model, 0)
	cases := [][2]uint64{
		{0, block}, {block, 1}, {3*block + 1, block}, {5*block - 1, 2}, {7*block + 9, 4 * block},
		{64 << 10, 64 << 10}, {200_000, 300_000}, {1 << 20, 1 << 20}, {1<<20 - 5, 10},
		{1<<20 - 70_000, 1<<20 + 140_001},
	}
	for i, c := range cases {
		at, length := r.down(c[0]), r.up(c[1])
		r.do(command(kind, at, length, flags[i%len(flags)]))
		clear(model[at : at+length])
		r.same(kind.String(), 0, r.get(0, window), model)
		// Data written over it is there again.
		again := pattern(at, min(length, 10*block), byte(i))
		r.put(at, again, 0)
		copy(model[at:], again)
	}
	r.same(kind.String()+" and write", 0, r.get(0, window), model)
}

// Cache is a hint without effect on the bytes.
func testCache(r *runner) {
	want := pattern(0, 256<<10, 8)
	r.put(0, want, 0)
	r.do(command(bio.Cache, 0, 256<<10, 0), command(bio.Cache, 1<<20, 1<<20, 0))
	r.same("after cache", 0, r.get(0, 256<<10), want)
}

// Block status: holes where nothing was written, data where something was.
func testBlockStatus(r *runner) {
	const window = 2 << 20
	for _, m := range r.holes(0, window) {
		if !m {
			r.t.Fatal("a fresh device has data")
		}
	}
	written := [][2]uint64{{0, block}, {3 * block, 2 * block}, {256 << 10, 128 << 10},
		{1<<20 - block, 2 * block}}
	want := make([]bool, window/block)
	for i := range want {
		want[i] = true
	}
	for _, w := range written {
		r.put(w[0], pattern(w[0], w[1], 4), 0)
		for b := w[0] / block; b < (w[0]+w[1])/block; b++ {
			want[b] = false
		}
	}
	check := func(when string) {
		r.t.Helper()
		for b, hole := range r.holes(0, window) {
			if hole != want[b] {
				r.t.Fatalf("%s: block %d: hole %v, want %v", when, b, hole, want[b])
			}
		}
	}
	check("after writes")
	r.do(command(bio.Trim, 256<<10, 64<<10, 0))
	for b := 256 << 10 / block; b < 320<<10/block; b++ {
		want[b] = true
	}
	check("after trim")
	r.do(command(bio.WriteZeroes, 1536<<10, 64<<10, bio.NoHole))
	for b := 1536 << 10 / block; b < 1600<<10/block; b++ {
		want[b] = false
	}
	check("after write zeroes without a hole")

	one := command(bio.BlockStatus, 0, window, bio.ReqOne)
	r.do(one)
	if len(one.Extents) != 1 {
		r.t.Fatalf("block status with ReqOne: %d extents", len(one.Extents))
	}
}

// holes asks for the state of each block, and checks the replies' shape.
func (r *runner) holes(off, length uint64) []bool {
	r.t.Helper()
	var out []bool
	for length > 0 {
		o := command(bio.BlockStatus, off, min(length, r.h.MaxLen-off%r.h.MaxLen), 0)
		r.do(o)
		sum := uint64(0)
		for _, e := range o.Extents {
			if e.Length == 0 || e.Length%block != 0 {
				r.t.Fatalf("%s: an extent of %d bytes", o, e.Length)
			}
			for range e.Length / block {
				out = append(out, e.Hole)
			}
			sum += e.Length
		}
		if sum == 0 || sum > o.Len {
			r.t.Fatalf("%s: extents of %d bytes", o, sum)
		}
		off, length = off+sum, length-sum
	}
	return out
}
