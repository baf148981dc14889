// SPDX-License-Identifier: Apache-2.0

// Package loop is an event loop that owns an io_uring (or, where that is
// forbidden, an epoll set and a pool of worker threads) on its own OS thread.
package loop

import "golang.org/x/sys/unix"

// Kind is what an Op does.
type Kind uint8

// The operations. Recv and Send use Buf; Recvmsg and Sendmsg use Iov. Read,
// Write use Buf at Off of a file; Readv, Writev use Iov. Fsync is fdatasync.
const (
	Recv Kind = iota
	Recvmsg
	Send
	Sendmsg
	Read
	Readv
	Write
	Writev
	Fsync
	Discard // fallocate PUNCH_HOLE on files, BLKDISCARD on block devices
)

// Completer is told when an Op has ended, on the loop's thread.
type Completer interface {
	// OpDone: res is a byte count, or -errno.
	OpDone(op *Op, res int)
}

// Op is one operation, embedded by value in the caller's own request structure
// (which must live on the heap or in a slot table) and reused. It and its
// memory must stay untouched until OpDone.
type Op struct {
	Kind  Kind
	FD    int
	Off   int64
	Len   int64 // Discard only
	Buf   []byte
	Iov   []unix.Iovec
	Flags int // MSG_* for sockets, RWF_* for files
	Done  Completer
	Tag   uint64 // the caller's own

	msg    unix.Msghdr
	slot   int32
	active bool
}
