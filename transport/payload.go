// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/binary"
	"fmt"
)

// OpenRequestSize is the size of an encoded OpenRequest in bytes.
const OpenRequestSize = 24

// OpenRequest is the payload of OpOpen and OpFence.
//
// Byte table (little-endian):
//
//	 0  8  volume
//	 8  8  generation
//	16  1  flags: bit 0 read-only, the others 0
//	17  7  reserved, 0
type OpenRequest struct {
	Volume     uint64
	Generation uint64
	ReadOnly   bool
}

// Encode writes r to b[:OpenRequestSize] and returns that part of b.
func (r *OpenRequest) Encode(b []byte) []byte {
	b = b[:OpenRequestSize]
	clear(b)
	binary.LittleEndian.PutUint64(b, r.Volume)
	binary.LittleEndian.PutUint64(b[8:], r.Generation)
	if r.ReadOnly {
		b[16] = 1
	}
	return b
}

// Decode reads r from a whole payload. The error is ErrPayload.
func (r *OpenRequest) Decode(b []byte) error {
	if len(b) != OpenRequestSize {
		return fmt.Errorf("open request of %d bytes, want %d: %w", len(b), OpenRequestSize, ErrPayload)
	}
	if b[16]&^1 != 0 || !zero(b[17:]) {
		return fmt.Errorf("open request: %w: %w", ErrPayload, ErrReserved)
	}
	r.Volume = binary.LittleEndian.Uint64(b)
	r.Generation = binary.LittleEndian.Uint64(b[8:])
	r.ReadOnly = b[16] == 1
	return nil
}

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
