// SPDX-License-Identifier: Apache-2.0

package server

import (
	"math"
	"time"

	"braid/cluster"
	"braid/server/resync"
)

// Terms of the measured rate of catching up.
const (
	catchUpSample = 500 * time.Millisecond // between two looks, at least
	catchUpMemory = 5 * time.Second        // a look of that age counts for a third of a new one
)

// catchUpMeter measures how fast a device comes in sync: what its counters gain in
// a time, smoothed. What the pace allows is no measure of that: the disk, the
// network and the source decide, too, and most of a chunk may be equal already.
type catchUpMeter struct {
	at              int64 // ns, of the newest look; 0: none
	bytes, chunks   uint64
	copied, settled float64 // bytes a second
	known           bool
}

// look takes the counters of a device that catches up.
func (m *catchUpMeter) look(now int64, s *resync.Stats) {
	passed := time.Duration(now - m.at)
	switch {
	case m.at == 0:
		m.at, m.bytes, m.chunks = now, s.BytesCopied, s.Copied
		return
	case passed < catchUpSample:
		return
	}
	copied := float64(s.BytesCopied-m.bytes) / passed.Seconds()
	settled := float64((s.Copied-m.chunks)*cluster.ChunkSize) / passed.Seconds()
	weight := 1.0
	if m.known {
		weight = 1 - math.Exp(-passed.Seconds()/catchUpMemory.Seconds())
	}
	m.copied += weight * (copied - m.copied)
	m.settled += weight * (settled - m.settled)
	// While chunks are only compared with, nothing is known about the copying.
	m.known = m.known || s.Copied > m.chunks
	m.at, m.bytes, m.chunks = now, s.BytesCopied, s.Copied
}
