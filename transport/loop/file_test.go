// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// What is written reads back, through every file operation.
func TestFileReadWrite(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		f := tempFile(t)
		fd := int(f.Fd())
		before := random(1, 10000)
		want(t, "write", do(t, l, &Op{Kind: Write, FD: fd, Off: 4096, Buf: before}), len(before))
		after := make([]byte, len(before))
		want(t, "read", do(t, l, &Op{Kind: Read, FD: fd, Off: 4096, Buf: after}), len(after))
		if !bytes.Equal(before, after) {
			t.Fatal("read returned other bytes than written")
		}
		a, b, c := random(2, 100), random(3, 5000), random(4, 1)
		want(t, "writev", do(t, l, &Op{Kind: Writev, FD: fd, Off: 7, Iov: vectors(a, b, nil, c)}), 5101)
		want(t, "fsync", do(t, l, &Op{Kind: Fsync, FD: fd}), 0)
		x, y := make([]byte, 5000), make([]byte, 101)
		want(t, "readv", do(t, l, &Op{Kind: Readv, FD: fd, Off: 7, Iov: vectors(x, y)}), 5101)
		if !bytes.Equal(append(x, y...), bytes.Join([][]byte{a, b, c}, nil)) {
			t.Fatal("readv returned other bytes than written")
		}
		if s := l.Stats(); l.Engine() == Uring && s.RingOps == 0 || l.Engine() == Pool && s.RingOps != 0 {
			t.Fatalf("engine %v served by the ring: %d", l.Engine(), s.RingOps)
		}
	})
}

// Reads at and beyond the end are short; bad descriptors and offsets are errors.
func TestFileEndAndErrors(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		f := tempFile(t)
		fd := int(f.Fd())
		want(t, "write", do(t, l, &Op{Kind: Write, FD: fd, Buf: make([]byte, 100)}), 100)
		b := make([]byte, 64)
		want(t, "read across the end", do(t, l, &Op{Kind: Read, FD: fd, Off: 90, Buf: b}), 10)
		want(t, "read at the end", do(t, l, &Op{Kind: Read, FD: fd, Off: 100, Buf: b}), 0)
		want(t, "read of nothing", do(t, l, &Op{Kind: Read, FD: fd, Off: 0}), 0)
		wantErrno(t, "bad fd", do(t, l, &Op{Kind: Read, FD: 1 << 20, Buf: b}), unix.EBADF)
		wantErrno(t, "bad offset", do(t, l, &Op{Kind: Read, FD: fd, Off: -5, Buf: b}), unix.EINVAL)
		ro, err := os.Open(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer ro.Close()
		wantErrno(t, "write to a read-only file",
			do(t, l, &Op{Kind: Write, FD: int(ro.Fd()), Buf: b}), unix.EBADF)
	})
}

// Discard makes a hole in a file: the bytes read as zeroes and the space is free.
func TestFileDiscard(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		f := tempFile(t)
		fd := int(f.Fd())
		const size = 1 << 20
		want(t, "write", do(t, l, &Op{Kind: Write, FD: fd, Buf: random(5, size)}), size)
		want(t, "discard", do(t, l, &Op{Kind: Discard, FD: fd, Off: 4096, Len: size - 8192}), 0)
		b := make([]byte, size-8192)
		want(t, "read", do(t, l, &Op{Kind: Read, FD: fd, Off: 4096, Buf: b}), len(b))
		if len(bytes.Trim(b, "\x00")) != 0 {
			t.Fatal("discarded bytes do not read as zeroes")
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 > size/2 {
			t.Fatalf("%d bytes are still allocated", st.Blocks*512)
		}
		wantErrno(t, "discard of a bad fd", do(t, l, &Op{Kind: Discard, FD: 1 << 20, Len: 4096}), unix.EBADF)
	})
}
