// SPDX-License-Identifier: Apache-2.0

package transport

import "time"

// BlockSize is the unit of checksums, in bytes.
const BlockSize = 4096

// Limits of a connection. A connection's memory is their sum and does not grow.
const (
	// SmallPayload is where copying ends: a payload below it is copied through the
	// connection's buffers, so that many frames travel in one system call; one of
	// this size or more goes from and to the caller's memory directly.
	SmallPayload = 16 << 10

	// MaxViews bounds the pieces of one payload, on either side.
	MaxViews = 256

	sumsSize = MaxSums * 8

	// The buffers hold 32 requests of 4 KiB with header and checksum (133,376 bytes)
	// and some more, so that a full queue of a usual depth is one system call.
	recvBufSize = 160 << 10
	sendBufSize = 160 << 10

	// The receive window is how much one receive into the buffer asks for. It
	// starts at windowSmall, doubles as long as small frames fill it, and falls to
	// windowLarge with a large frame: what follows one is likely large too, and of
	// that only the header should pass through the buffer.
	windowSmall = 8 << 10
	windowLarge = HeaderSize + sumsSize

	// One send carries at most so many pieces and stops growing at so many bytes,
	// so that the first of its messages does not wait for too many others.
	sendIovs  = 2*MaxViews + 2
	sendBytes = 2 << 20
)

// Times. The keep-alive ones can be set for each connection.
const (
	// DefaultKeepAlive is the keep-alive's tick: a ping is sent in each in which
	// nothing was heard, or nothing said.
	DefaultKeepAlive = 400 * time.Millisecond
	// DefaultSilence is how long nothing may be heard before the peer counts as
	// hung. It is found within one DefaultKeepAlive more.
	DefaultSilence = 1600 * time.Millisecond
	// DefaultHandshake bounds connect and Hello, and with them how long a peer that
	// says nothing can keep a goroutine.
	DefaultHandshake = 5 * time.Second

	// userTimeout is the kernel's own limit (TCP_USER_TIMEOUT) on sent bytes that
	// nobody acknowledges. It is longer than DefaultSilence because it also ends
	// connections whose peer lives but has paused for want of a buffer.
	userTimeout = 15 * time.Second

	// maxHandshakes bounds the goroutines of one Listener; further connections wait
	// in the kernel's accept queue.
	maxHandshakes = 256
	// acceptBackoff is how long a Listener waits after a failed accept, for example
	// when the process is out of file descriptors.
	acceptBackoff = 50 * time.Millisecond
)
