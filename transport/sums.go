// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// Blocks is the number of checksums that n bytes have: one for each block begun.
func Blocks(n int) int { return (n + BlockSize - 1) / BlockSize }

// BlockSums writes the checksum of each 4 KiB block of b to dst, 8 bytes each,
// little-endian, and returns the bytes of dst used. dst must hold
// 8*Blocks(len(b)) bytes.
func BlockSums(dst, b []byte) []byte {
	n := Blocks(len(b))
	dst = dst[:8*n]
	for i := range n {
		lo := i * BlockSize
		binary.LittleEndian.PutUint64(dst[8*i:], xxhash.Sum64(b[lo:min(lo+BlockSize, len(b))]))
	}
	return dst
}

// VerifySums compares b with its checksums and returns the index of the first
// block that differs or has no checksum, or -1 when all agree.
func VerifySums(b, sums []byte) int {
	for i := range Blocks(len(b)) {
		if len(sums) < 8*i+8 {
			return i
		}
		lo := i * BlockSize
		sum := xxhash.Sum64(b[lo:min(lo+BlockSize, len(b))])
		if sum != binary.LittleEndian.Uint64(sums[8*i:]) {
			return i
		}
	}
	return -1
}
