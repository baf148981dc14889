// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

var goldenRegions = []Region{
	{Chunk: 0x1112131415161718, Gen: 0x21, Interval: 0x3132, Layer: 0x41424344, Marks: 5,
		Torn: Bitmap{0: 0x80, 31: 1}},
	{Chunk: 1, Gen: 2, Interval: 3},
}

const goldenRegionBytes = `
	8877665544332211 02000000 00000000
	1817161514131211 2100000000000000 3231000000000000 44434241 05 000000
	80000000000000000000000000000000 00000000000000000000000000000001
	0100000000000000 0200000000000000 0300000000000000 00000000 00 000000
	00000000000000000000000000000000 00000000000000000000000000000000`

const goldenTagBytes = `
	0000000000000000 01000000 00000000
	1817161514131211 2827262524232221 3837363534333231 44434241 0001 0000`

func encodeRegions(next uint64, list []Region) []byte {
	b := BeginList(nil, next, len(list))
	for i := range list {
		b = list[i].Append(b)
	}
	return b
}

// Goal: the layout of lists and tables is fixed. Method: golden bytes.
func TestTablesGolden(t *testing.T) {
	want := unhex(t, goldenRegionBytes)
	if got := encodeRegions(0x1122334455667788, goldenRegions); !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x", got, want)
	}
	var back []Region
	next, err := DecodeRegions(want, func(r *Region) { back = append(back, *r) })
	if err != nil || next != 0x1122334455667788 || len(back) != 2 || back[0] != goldenRegions[0] ||
		back[1] != goldenRegions[1] {
		t.Errorf("decoded %+v, next %x, %v", back, next, err)
	}
	tag := TagEntry{Chunk: 0x1112131415161718, Gen: 0x2122232425262728, Interval: 0x3132333435363738,
		Layer: 0x41424344, Blocks: 256}
	want = unhex(t, goldenTagBytes)
	if got := tag.Append(BeginList(nil, 0, 1)); !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x", got, want)
	}
	n := 0
	if _, err := DecodeTags(want, func(e *TagEntry) {
		n++
		if *e != tag {
			t.Errorf("decoded %+v", *e)
		}
	}); err != nil || n != 1 {
		t.Errorf("decoded %d entries, %v", n, err)
	}
	table := SumTable{Present: Bitmap{0: 3, 31: 0x80}, Torn: Bitmap{0: 2}, Rot: Bitmap{0: 1}, Gen: 0x51,
		Interval: 0x6162, Stored: true, Logged: true, Marks: 9}
	table.Sums[0], table.Sums[255] = 0x7172737475767778, 0x81
	got := table.Encode(bytes.Repeat([]byte{0xff}, SumTableSize+1))
	want = make([]byte, SumTableSize)
	copy(want, unhex(t, "03"))
	want[31], want[32], want[64] = 0x80, 2, 1
	copy(want[96:], unhex(t, "5100000000000000 6261000000000000 03 09"))
	copy(want[128:], unhex(t, "7877767574737271"))
	want[128+8*255] = 0x81
	var again SumTable
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x", got, want)
	} else if err := again.Decode(got); err != nil || again != table {
		t.Errorf("decoded %+v, %v", again, err)
	}
}

// Goal: what no server sends is refused. Method: one defect each.
func TestTablesRefused(t *testing.T) {
	edit := func(b []byte, at int, x byte) []byte {
		b = bytes.Clone(b)
		b[at] = x
		return b
	}
	regions, tags := unhex(t, goldenRegionBytes), unhex(t, goldenTagBytes)
	for i, b := range [][]byte{nil, regions[:15], regions[:len(regions)-1], append(bytes.Clone(regions), 0),
		edit(regions, 8, 1), edit(regions, 11, 0xff), edit(regions, 12, 1), edit(regions, 16+29, 1)} {
		if _, err := DecodeRegions(b, func(*Region) {}); !errors.Is(err, ErrPayload) {
			t.Errorf("regions %d: %v", i, err)
		}
	}
	for i, b := range [][]byte{nil, tags[:20], edit(tags, 8, 0), edit(tags, 16+30, 1), edit(tags, 16+28, 1)} {
		if _, err := DecodeTags(b, func(*TagEntry) {}); !errors.Is(err, ErrPayload) {
			t.Errorf("tags %d: %v", i, err)
		}
	}
	table := (&SumTable{Present: Bitmap{1}, Stored: true}).Encode(make([]byte, SumTableSize))
	for i, b := range [][]byte{nil, table[1:], edit(table, 112, 4), edit(table, 112, 0), edit(table, 114, 1),
		edit(table, 127, 1), edit(table, 32, 2), edit(table, 64, 2)} {
		if err := new(SumTable).Decode(b); !errors.Is(err, ErrPayload) {
			t.Errorf("table %d: %v", i, err)
		}
	}
}

// Goal: whatever decodes encodes to the same bytes again, and a count that does
// not fit costs nothing. Method: the fuzzer draws all three kinds.
func FuzzTables(f *testing.F) {
	f.Add(unhex(f, goldenRegionBytes))
	f.Add(unhex(f, goldenTagBytes))
	f.Add((&SumTable{Present: Bitmap{1}, Stored: true}).Encode(make([]byte, SumTableSize)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var regions []Region
		if next, err := DecodeRegions(b, func(r *Region) { regions = append(regions, *r) }); err == nil {
			if again := encodeRegions(next, regions); !bytes.Equal(again, b) {
				t.Fatalf("%x became %x", b, again)
			}
		}
		var again []byte
		if len(b) >= ListHeadSize {
			again = BeginList(nil, binary.LittleEndian.Uint64(b), int(binary.LittleEndian.Uint32(b[8:])))
		}
		if _, err := DecodeTags(b, func(e *TagEntry) { again = e.Append(again) }); err == nil &&
			!bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
		var table SumTable
		if table.Decode(b) == nil && !bytes.Equal(table.Encode(make([]byte, SumTableSize)), b) {
			t.Fatalf("%x became %+v", b, table)
		}
	})
}
