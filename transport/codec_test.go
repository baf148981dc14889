// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// unhex turns a golden dump, blanks ignored, into bytes.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// seal puts the checksum that the decoders want at the end of b.
func seal(b []byte) []byte {
	n := len(b) - 4
	binary.LittleEndian.PutUint32(b[n:], uint32(xxhash.Sum64(b[:n])))
	return b
}

var goldenHeader = Header{
	Op: OpWrite, Flags: FlagReply | FlagFUA, Status: StatusNoSpace, ID: 0x1122334455667788,
	Payload: 0x2000, Session: 0xa1a2a3a4, Interval: 0x0102030405060708, PG: 0xb1b2b3b4,
	Epoch: 0xc1c2c3c4, Chunk: 0xd1d2d3d4d5d6d7d8, Offset: 0xe1e2e3e4, Length: 0xf1f2f3f4, Sums: 2,
}

// The wire format of a frame header, byte by byte: what is written here is what
// other versions have on their side.
const goldenHeaderBytes = `
	42524431 05 03 0200 8877665544332211 00200000 a4a3a2a1
	0807060504030201 b4b3b2b1 c4c3c2c1 d8d7d6d5d4d3d2d1
	e4e3e2e1 f4f3f2f1 0200 0000`

func TestHeaderGolden(t *testing.T) {
	want := seal(append(unhex(t, goldenHeaderBytes), 0, 0, 0, 0))
	got := make([]byte, HeaderSize)
	goldenHeader.Encode(got)
	if !bytes.Equal(got, want) {
		t.Fatalf("encoded\n%x, want\n%x", got, want)
	}
	var h Header
	if err := h.Decode(want); err != nil || h != goldenHeader {
		t.Fatalf("decoded %+v, %v", h, err)
	}
}

// Each field that a hostile peer may set is refused with its own error.
func TestHeaderRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(b []byte)
		want error
	}{
		{"magic", func(b []byte) { b[0] ^= 1 }, ErrMagic},
		{"checksum", func(b []byte) { b[60] ^= 1 }, ErrHeader},
		{"a bit under the checksum", func(b []byte) { b[20] ^= 1 }, ErrHeader},
		{"op 0", func(b []byte) { b[4] = 0; seal(b) }, ErrReserved},
		{"op beyond", func(b []byte) { b[4] = byte(opSentinel); seal(b) }, ErrReserved},
		{"flag", func(b []byte) { b[5] |= 0x80; seal(b) }, ErrReserved},
		{"status beyond", func(b []byte) { b[6] = byte(statusSentinel); seal(b) }, ErrReserved},
		{"status in a request", func(b []byte) { b[5] &^= FlagReply; seal(b) }, ErrReserved},
		{"reserved", func(b []byte) { b[59] = 1; seal(b) }, ErrReserved},
		{"payload", func(b []byte) { b[18] = 0x10; b[16] = 1; seal(b) }, ErrTooLong},
		{"payload, high bit", func(b []byte) { b[19] = 0xff; seal(b) }, ErrTooLong},
		{"sums beyond", func(b []byte) { b[57] = 2; seal(b) }, ErrTooLong},
		{"one sum too few", func(b []byte) { b[56] = 1; seal(b) }, ErrSums},
		{"one sum too many", func(b []byte) { b[56] = 3; seal(b) }, ErrSums},
		{"sums without payload", func(b []byte) { clear(b[16:20]); seal(b) }, ErrSums},
		{"ping with payload", func(b []byte) { b[4], b[56] = byte(OpPing), 0; seal(b) }, ErrReserved},
	} {
		b := make([]byte, HeaderSize)
		goldenHeader.Encode(b)
		tc.edit(b)
		var h Header
		if err := h.Decode(b); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

func TestHeaderAllocs(t *testing.T) {
	b := make([]byte, HeaderSize)
	var h Header
	if n := testing.AllocsPerRun(100, func() {
		goldenHeader.Encode(b)
		if err := h.Decode(b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a header", n)
	}
}

var goldenHello = Hello{
	VersionMin: 1, VersionMax: 3, Features: 0x8000000000000001,
	Cluster: [16]byte{1, 2, 3}, Device: [16]byte{4, 5, 6}, Client: [16]byte{7, 8, 9},
	Role: Peer, Flags: 0x5a,
}

const goldenHelloBytes = `
	42524448 0100 0300 0100000000000080
	01020300000000000000000000000000 04050600000000000000000000000000
	07080900000000000000000000000000 02 5a
	0000000000000000000000000000000000000000000000000000`

func TestHelloGolden(t *testing.T) {
	want := seal(append(unhex(t, goldenHelloBytes), 0, 0, 0, 0))
	got := make([]byte, HelloSize)
	goldenHello.Encode(got)
	if !bytes.Equal(got, want) {
		t.Fatalf("encoded\n%x, want\n%x", got, want)
	}
	var h Hello
	if err := h.Decode(want); err != nil || h != goldenHello {
		t.Fatalf("decoded %+v, %v", h, err)
	}
}

func TestHelloRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(b []byte)
		want error
	}{
		{"magic", func(b []byte) { b[3] = 'R' }, ErrMagic},
		{"checksum", func(b []byte) { b[95] ^= 1 }, ErrHeader},
		{"too new", func(b []byte) { b[4], b[6] = 2, 9; seal(b) }, ErrVersion},
		{"too old", func(b []byte) { b[4], b[6] = 0, 0; seal(b) }, ErrVersion},
		{"versions crossed", func(b []byte) { b[4], b[6] = 2, 1; seal(b) }, ErrVersion},
		{"role 0", func(b []byte) { b[64] = 0; seal(b) }, ErrReserved},
		{"role beyond", func(b []byte) { b[64] = 3; seal(b) }, ErrReserved},
		{"reserved", func(b []byte) { b[91] = 1; seal(b) }, ErrReserved},
	} {
		b := make([]byte, HelloSize)
		goldenHello.Encode(b)
		tc.edit(b)
		if err := new(Hello).Decode(b); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

var goldenReply = HelloReply{
	Status: HelloStarting, Version: 1, Features: 0x42, Incarnation: 0x1020304050607080, Text: "wait ☕",
}

const goldenReplyBytes = `
	42524452 0400 0100 4200000000000000 8070605040302010
	0800 000000000000 7761697420 e29895`

func TestHelloReplyGolden(t *testing.T) {
	want := make([]byte, HelloReplySize)
	copy(want, unhex(t, goldenReplyBytes))
	seal(want)
	got := make([]byte, HelloReplySize)
	goldenReply.Encode(got)
	if !bytes.Equal(got, want) {
		t.Fatalf("encoded\n%x, want\n%x", got, want)
	}
	var r HelloReply
	if err := r.Decode(want); err != nil || r != goldenReply {
		t.Fatalf("decoded %+v, %v", r, err)
	}
}

func TestHelloReplyRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(b []byte)
		want error
	}{
		{"magic", func(b []byte) { b[3] = 'H' }, ErrMagic},
		{"checksum", func(b []byte) { b[100] ^= 1 }, ErrHeader},
		{"text too long", func(b []byte) { b[24] = MaxHelloText + 1; seal(b) }, ErrTooLong},
		{"text longer than said", func(b []byte) { b[24] = 2; seal(b) }, ErrReserved},
		{"reserved", func(b []byte) { b[31] = 1; seal(b) }, ErrReserved},
	} {
		b := make([]byte, HelloReplySize)
		goldenReply.Encode(b)
		tc.edit(b)
		if err := new(HelloReply).Decode(b); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

// A status of a later version is a refusal; a long text is cut between two
// characters; control characters do not reach the terminal.
func TestHelloReplyText(t *testing.T) {
	b := make([]byte, HelloReplySize)
	(&HelloReply{Status: 99, Text: strings.Repeat("é", 100)}).Encode(b)
	var r HelloReply
	if err := r.Decode(b); err != nil {
		t.Fatal(err)
	}
	if r.Status != HelloRefused || r.Text != strings.Repeat("é", MaxHelloText/2) {
		t.Errorf("decoded %+v", r)
	}
	(&HelloReply{Status: HelloRefused, Text: "a\x1b[2Jb\xffc\u009bd"}).Encode(b)
	if err := r.Decode(b); err != nil || r.Text != "a?[2Jb?c?d" {
		t.Errorf("decoded %q, %v", r.Text, err)
	}
}

func TestOpenRequestGolden(t *testing.T) {
	r := OpenRequest{Volume: 0x1112131415161718, Generation: 0x2122232425262728, ReadOnly: true}
	want := unhex(t, "1817161514131211 2827262524232221 01 00000000000000")
	got := r.Encode(bytes.Repeat([]byte{0xff}, 40))
	if !bytes.Equal(got, want) {
		t.Fatalf("encoded %x, want %x", got, want)
	}
	var back OpenRequest
	if err := back.Decode(got); err != nil || back != r {
		t.Fatalf("decoded %+v, %v", back, err)
	}
	for _, bad := range [][]byte{nil, want[:23], append(want, 0),
		unhex(t, "1817161514131211 2827262524232221 02 00000000000000"),
		unhex(t, "1817161514131211 2827262524232221 01 00000000000001")} {
		if err := back.Decode(bad); !errors.Is(err, ErrPayload) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

func TestBlockSums(t *testing.T) {
	b := make([]byte, 3*BlockSize+100)
	for i := range b {
		b[i] = byte(i * 7)
	}
	sums := BlockSums(make([]byte, sumsSize), b)
	if len(sums) != 32 {
		t.Fatalf("%d bytes of checksums for %d blocks", len(sums), Blocks(len(b)))
	}
	if got := binary.LittleEndian.Uint64(sums[24:]); got != xxhash.Sum64(b[3*BlockSize:]) {
		t.Errorf("checksum of the partial block: %x", got)
	}
	if i := VerifySums(b, sums); i != -1 {
		t.Errorf("block %d differs", i)
	}
	if i := VerifySums(b, sums[:24]); i != 3 {
		t.Errorf("without the last checksum: block %d", i)
	}
	for want, at := range []int{0, BlockSize, 3*BlockSize - 1, len(b) - 1} {
		b[at] ^= 1
		if i := VerifySums(b, sums); i != want {
			t.Errorf("byte %d changed: block %d differs, want %d", at, i, want)
		}
		b[at] ^= 1
	}
	if n := testing.AllocsPerRun(10, func() { VerifySums(b, BlockSums(sums, b)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever decodes encodes to the same bytes again, with or without the
// checksum corrected, so that the fuzzer gets past it.
func FuzzHeader(f *testing.F) {
	b := make([]byte, HeaderSize)
	goldenHeader.Encode(b)
	f.Add(b)
	(&Header{Op: OpPing}).Encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		b = bytes.Clone(b[:HeaderSize])
		for range 2 {
			var h Header
			if err := h.Decode(b); err == nil {
				again := make([]byte, HeaderSize)
				h.Encode(again)
				if !bytes.Equal(again, b) {
					t.Fatalf("%x became %x", b, again)
				}
			}
			binary.LittleEndian.PutUint32(b, Magic)
			seal(b)
		}
	})
}

func FuzzHello(f *testing.F) {
	b := make([]byte, HelloSize)
	goldenHello.Encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HelloSize {
			return
		}
		b = bytes.Clone(b[:HelloSize])
		for range 2 {
			var h Hello
			if err := h.Decode(b); err == nil {
				again := make([]byte, HelloSize)
				h.Encode(again)
				if !bytes.Equal(again, b) {
					t.Fatalf("%x became %x", b, again)
				}
			}
			binary.LittleEndian.PutUint32(b, helloMagic)
			seal(b)
		}
	})
}

// A reply's text and status may be altered by the decoder for safety, so what is
// compared is the second decoding with the first.
func FuzzHelloReply(f *testing.F) {
	b := make([]byte, HelloReplySize)
	goldenReply.Encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HelloReplySize {
			return
		}
		b = bytes.Clone(b[:HelloReplySize])
		for range 2 {
			var r, back HelloReply
			if err := r.Decode(b); err == nil {
				again := make([]byte, HelloReplySize)
				r.Encode(again)
				if err := back.Decode(again); err != nil || back != r {
					t.Fatalf("%+v became %+v, %v", r, back, err)
				}
			}
			binary.LittleEndian.PutUint32(b, replyMagic)
			seal(b)
		}
	})
}

func FuzzOpenRequest(f *testing.F) {
	f.Add((&OpenRequest{Volume: 1, Generation: 2, ReadOnly: true}).Encode(make([]byte, 24)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r OpenRequest
		if r.Decode(b) == nil && !bytes.Equal(r.Encode(make([]byte, OpenRequestSize)), b) {
			t.Fatalf("%x became %+v", b, r)
		}
	})
}
