// SPDX-License-Identifier: Apache-2.0

// Package server is the data server: it serves the chunks of local devices to
// clients. The rules of storage live in the pure package store; this package is
// the thin shell that connects a store to sockets, a disk and the metadata
// manager.
//
//	clients                       one loop (OS thread) for each device
//	  |  frames            +----------------------------------------------+
//	  +------------------> | transport.Conn -> conn: slot, buffer, checks |
//	                       |        ^               | store.Submit        |
//	                       |        | replies       v                     |
//	                       |        +------- store.Core (pure)            |
//	                       |                  ^     | effects             |
//	                       |          IODone  |     v                     |
//	                       |               loop ops on the disk           |
//	                       +----------------------------------------------+
//	metadata manager <----  registrar: register, renew, follow the map
//
// A connection concerns one device and lives on that device's loop, so nothing
// on the data path is shared and nothing is locked. A request takes a slot and a
// payload buffer when its header arrives; when either has run out the
// connection is not read until one is back. The slot holds the store's request,
// the reply and the checksums, so that a request allocates nothing.
//
// What may be served is decided by the pure package gate; how this device's copy
// gets into sync when the map makes it a target, by the pure package resync, which
// target drives.
//
// Goroutines: one accepts, one for each handshake, two talk to the manager, and
// one loop runs for each device; a device that is being resynced has one for each
// dial and each question to the manager under way. Close ends them all.
//
// Buffers: a slot owns its buffer from Incoming to the store's reply (writes) or
// until the reply is sent (reads), and gives it back exactly once.
//
// A device that fails goes out of service alone: its connections are closed,
// the manager is told why, the other devices go on.
package server
