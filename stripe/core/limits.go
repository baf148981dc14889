// SPDX-License-Identifier: Apache-2.0

package core

import (
	"time"

	"braid/cluster"
)

// Sizes of the fixed tables of one volume, and other bounds.
const (
	// MaxCopies is how many devices one chunk's writes can go to: up to four
	// replicas and a resync target, or a fifth one in sync until one of them leaves.
	MaxCopies = 5
	// MaxRequest is the longest read or write, bytes.
	MaxRequest = cluster.ChunkSize

	// maxJobs is how many chunks are resolved at a time. Each holds up to 2 MiB.
	maxJobs = 8
	// maxChunkLocks bounds the locks of one connection, granted or asked for.
	maxChunkLocks = 64

	defaultRequests = 512
	defaultFrames   = 4096
	piecesPerSlot   = 8

	// A request's two edge blocks, read before an unaligned write is merged.
	bounceSize = 2 * cluster.BlockSize
	// localBonus is how many frames in flight a local replica is worth.
	localBonus = 1 << 20

	// What the sums of one request take: its blocks and one more when unaligned.
	sumsSize = (MaxRequest/cluster.BlockSize + 1) * 8
	// bitmapSize is the payload of a status reply, bytes.
	bitmapSize = cluster.BlocksPerChunk / 8
	// Status requests are cut to what fits the edge blocks' memory.
	maxStatusLength = bounceSize / bitmapSize * cluster.BlockSize
)

// Pressure of the activity log, in thousandths (rule 18).
const (
	pressureFlush = 500 // flush, so that servers can retire entries
	pressureHold  = 800 // hold new writes until the running flush is done
	pressureMost  = 1000
)

// Delays.
const (
	retryFirst   = int64(5 * time.Millisecond)
	retryMost    = int64(time.Second)
	checkEvery   = int64(25 * time.Millisecond) // looking for slow reads
	hedgeLeast   = int64(30 * time.Millisecond) // after so long at least another replica is asked
	ioErrorTries = 2                            // before a device's error is believed
	reportEvery  = int64(500 * time.Millisecond)
	reportFirst  = int64(time.Second)           // after the attach
	confirmEvery = int64(50 * time.Millisecond) // while reads are held
)

// Defaults of Config.
const (
	DefaultHedgeAfter = 250 * time.Millisecond
	DefaultFlushEvery = 5 * time.Second
	DefaultFlushBytes = 512 << 20
	// DefaultLease is L of rule 15. mdm lets an attach wait for as long when it
	// cannot fence every device.
	DefaultLease = 4 * time.Second
)
