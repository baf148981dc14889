// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"braid/transport/bio"
)

// Goal: the wire is what the protocol says, byte by byte. Method: golden bytes.
func TestGoldenBytes(t *testing.T) {
	h := requestHeader{flags: cmdFlagFUA, cmd: cmdWrite, cookie: 0x0102030405060708, off: 0x1122334455667788,
		length: 0x99aabbcc}
	b := make([]byte, requestHeaderSize)
	h.encode(b)
	want := []byte{0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
		0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc}
	if !bytes.Equal(b, want) {
		t.Errorf("request % x", b)
	}
	var back requestHeader
	if !back.decode(b) || back != h {
		t.Errorf("decoded %+v", back)
	}
	b = make([]byte, simpleReplySize)
	putSimple(b, errnoNoSpace, 0x0102030405060708)
	want = []byte{0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8}
	if !bytes.Equal(b, want) {
		t.Errorf("simple reply % x", b)
	}
	b = make([]byte, structuredHeaderSize)
	putChunk(b, chunkFlagDone, chunkErrorOffset, 0x0102030405060708, 0x10203)
	want = []byte{0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3}
	if !bytes.Equal(b, want) {
		t.Errorf("chunk % x", b)
	}
}

// Goal: each error that a device may give has the number that the protocol names
// for it, however it is wrapped; the unknown is an I/O error.
func TestErrnoTable(t *testing.T) {
	for _, c := range []struct {
		err  error
		want uint32
	}{
		{nil, 0}, {bio.ErrInvalid, 22}, {bio.ErrNoSpace, 28}, {bio.ErrIO, 5}, {bio.ErrShutdown, 108},
		{bio.ErrReadOnly, 1}, {bio.ErrNotSupported, 95}, {errBeyondEnd, 22}, {errWriteEnd, 28},
		{errFragment, 75}, {errNoContext, 22}, {errors.New("anything"), 5},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("wrapped: %w", err)
		}
		if got := errno(err); got != c.want {
			t.Errorf("errno(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}

// Goal: decoding option data never panics, never reads beyond it, and accepts
// only what encodes back to itself.
func FuzzOptions(f *testing.F) {
	f.Add(goPayload("disk", infoName, infoBlockSize))
	f.Add(pack(uint32(4), "disk", uint32(2), uint32(15), contextAllocation, uint32(5), "base:"))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var g goOption
		if g.decode(b) == nil {
			if back := goPayload(g.name, g.requests...); !bytes.Equal(back, b) {
				t.Errorf("GO option % x decodes to % x", b, back)
			}
		}
		var m metaOption
		if m.decode(b) == nil {
			parts := []any{uint32(len(m.name)), m.name, uint32(len(m.queries))}
			for _, q := range m.queries {
				parts = append(parts, uint32(len(q)), q)
			}
			if back := pack(parts...); !bytes.Equal(back, b) {
				t.Errorf("meta option % x decodes to % x", b, back)
			}
		}
	})
}

// Goal: decode(encode(x)) = x for every header that has the right magic.
func FuzzRequestHeader(f *testing.F) {
	b := make([]byte, requestHeaderSize)
	(&requestHeader{cmd: cmdRead, length: 4096}).encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < requestHeaderSize {
			return
		}
		var h requestHeader
		if !h.decode(b) {
			return
		}
		back := make([]byte, requestHeaderSize)
		h.encode(back)
		if !bytes.Equal(back, b[:requestHeaderSize]) {
			t.Errorf("% x encodes to % x", b[:requestHeaderSize], back)
		}
	})
}
