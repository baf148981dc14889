// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"

	"braid/cluster"
)

// Identity says which device this is.
type Identity struct {
	Device   cluster.UUID
	Cluster  cluster.UUID // zero: claimed by no cluster yet
	Starts   uint64       // advanced and made durable by every Open (rule 21)
	Size     int64        // bytes of the device that the format uses
	Capacity int64        // bytes for chunks
	Clean    bool         // the last stop was clean
}

// Errors of the offline functions.
var (
	// ErrNotFormatted: neither superblock carries Braid's magic.
	ErrNotFormatted = errors.New("no Braid superblock")
	// ErrCorrupt: a superblock or the log is damaged beyond what a crash explains.
	ErrCorrupt = errors.New("metadata is corrupt")
	// ErrVersion: formatted by a version this program does not know.
	ErrVersion = errors.New("unknown format version")
	// ErrTooSmall: no room for metadata and one chunk.
	ErrTooSmall = errors.New("device is too small")
)
