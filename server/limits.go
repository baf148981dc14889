// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"braid/cluster"
	"braid/transport/buf"
)

// Limits of one device. Together they bound its memory; none is reached in
// quiet operation, and reaching one pauses a connection, it fails nothing.
const (
	maxRequests = 1024 // requests of all connections that are not yet answered
	maxConns    = 256  // connections
	// One connection may hold so many, so that a client that sends requests and
	// reads no reply cannot take them all.
	maxRequestsPerConn = 512
	listBytes          = 64 << 10                   // payload of one part of an activity-log or tag list
	statsBytes         = 64 << 10                   // payload of the answer to OpStats
	maxControlSize     = 64                         // payload of open and fence requests, bytes
	linkMask           = 0x0f                       // the part of Hello.Flags that numbers a client's connections
	bitmapSize         = cluster.BlocksPerChunk / 8 // bytes
)

// Times.
const (
	// An operation of the disk that is older makes the device count as failed: a
	// hung disk is as bad as a dead one, and a client cannot see the difference.
	hungAfter = 5 * time.Second
	// A request that is being received, or a reply that is being sent, for so
	// long holds a slot and a buffer for nothing: its connection is closed.
	stalledAfter       = 10 * time.Second
	resyncTick         = 10 * time.Millisecond // of a device that is being resynced
	askTimeout         = 5 * time.Second       // of a question to the manager
	joinAgain          = 500 * time.Millisecond
	dialAgain          = 200 * time.Millisecond
	watchInterval      = time.Second          // how often a device looks for hung operations
	idleStep           = 2 * time.Millisecond // between steps of the store's background work
	idleInterval       = 500 * time.Millisecond
	registerBackOffMin = 200 * time.Millisecond
	registerBackOffMax = 3 * time.Second
	// A clean stop waits so long for clients to take their last replies, and for
	// the manager to hear of it.
	lastReplies  = time.Second
	leaveTimeout = 2 * time.Second
	// CloseTimeout bounds a clean stop after which the device is left unclean,
	// which costs a recovery at the next start and no data.
	CloseTimeout = 20 * time.Second
)

// payloadConsumers sizes a device's pool: 44 MiB. A request takes the smallest
// buffer that holds its payload, or the next larger one. The counts follow what
// clients send: single blocks of databases, the pages of write-back (16-64 KiB),
// the two stripe units a column gets of a 1 MiB request, and few whole chunks.
func payloadConsumers() []buf.Consumer {
	return []buf.Consumer{
		{Name: "one block", Size: cluster.BlockSize, Count: 1024},
		{Name: "database page", Size: 16 << 10, Count: 256},
		{Name: "stripe unit", Size: 64 << 10, Count: 128},
		{Name: "two stripe units", Size: 128 << 10, Count: 64},
		{Name: "four stripe units", Size: 256 << 10, Count: 16},
		{Name: "whole chunk", Size: cluster.ChunkSize, Count: 8},
		{Name: "chunk to be compared", Size: cluster.ChunkSize, Count: 8},
	}
}
