// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"time"

	"braid/transport/buf"
)

// Limits on what a client may ask for. All are checked before anything is
// allocated or received.
const (
	// MinBlock, PreferredBlock and MaxPayload are the block sizes announced, bytes.
	MinBlock       = 1
	PreferredBlock = 4096
	MaxPayload     = 32 << 20

	maxName        = 4096      // export name, context name: the protocol's own limit
	maxOption      = 64 << 10  // bytes of option data that are looked at
	maxOptionDrain = 1 << 20   // longer options end the connection
	maxOptions     = 256       // options per handshake
	maxQueries     = 64        // meta context queries per option
	maxWriteDrain  = 256 << 20 // payload of a refused write that is read and dropped

	handshakeTime = 30 * time.Second
	// stallTime is how long a client may leave its replies unread while others
	// wait for the buffers that these replies hold.
	stallTime = 10 * time.Second
	// hangupInterval is how soon the end of a client shows while its connection is
	// paused. The kernel waits for a new socket then.
	hangupInterval = 250 * time.Millisecond
)

// Sizes of a connection's tables and buffers.
const (
	requestCount = 256
	pieceCount   = 320 // each request has one; large ones take more

	dataPiece   = 1 << 20  // a read or write piece never crosses a multiple of this
	rangePiece  = 32 << 20 // the same for trim, write zeroes and cache
	statusPiece = 1 << 20
	// Pieces of one request that are at the device or in the send queue at once.
	windowPieces = 8
	// statusPieces bounds one block status reply: 32 MiB of the device.
	statusPieces = 32
	maxExtents   = 2048 // descriptors in a block status reply

	copyLimit  = 16 << 10  // payload below this is copied, at and above it is not
	rxSize     = 128 << 10 // receive buffer
	txSize     = 128 << 10 // headers and copied payload of one send
	txVectors  = 128
	rxLookHead = 4096 // bytes taken beyond a large payload in the same receive

	// orphanLimit is how many requests of connections that have ended a port leaves
	// at the device before it stops reading from the living. A client that gives up
	// on slow requests and sends them again on a new connection (the kernel does)
	// would else pile them up for as long as the device stands still.
	orphanLimit = 256

	// heldLimit is how many bytes of buffers one connection may hold.
	heldLimit = 40 << 20
)

// Consumers is what an Arena's pool must hold for NBD traffic on that pool: one
// request of MaxPayload, always, and depth small and medium requests.
func Consumers(depth int) []buf.Consumer {
	return []buf.Consumer{
		{Name: "nbd small payload", Size: 4 << 10, Count: 8 * depth},
		{Name: "nbd medium payload", Size: 16 << 10, Count: 2 * depth},
		{Name: "nbd large payload", Size: 128 << 10, Count: depth},
		{Name: "nbd pieces", Size: dataPiece, Count: MaxPayload/dataPiece + 1 + depth/4},
	}
}
