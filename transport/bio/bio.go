// SPDX-License-Identifier: Apache-2.0

package bio

import (
	"errors"

	"braid/transport/buf"
)

// Op is what a request does.
type Op uint8

// The operations. Their meaning is that of the NBD command of the same name.
const (
	Read Op = iota
	Write
	Flush
	Trim
	WriteZeroes
	Cache
	BlockStatus
)

func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case Flush:
		return "flush"
	case Trim:
		return "trim"
	case WriteZeroes:
		return "write-zeroes"
	case Cache:
		return "cache"
	case BlockStatus:
		return "block-status"
	}
	return "unknown"
}

// Flags modify a request.
type Flags uint8

// FUA: durable on completion. NoHole: write zeroes without deallocating.
// FastZero: fail with ErrNotSupported rather than write zeroes slowly.
// ReqOne: one extent is enough.
const (
	FUA Flags = 1 << iota
	NoHole
	FastZero
	ReqOne
)

// Errors a device may complete a request with. Only package nbd maps them to
// error numbers.
var (
	ErrInvalid      = errors.New("invalid request")
	ErrNoSpace      = errors.New("no space")
	ErrIO           = errors.New("input/output error")
	ErrShutdown     = errors.New("device is shutting down")
	ErrReadOnly     = errors.New("device is read-only")
	ErrNotSupported = errors.New("not supported")
)

// Extent is a run of blocks with one allocation state, for BlockStatus.
type Extent struct {
	Length uint64 // bytes
	Hole   bool   // no data is stored; it reads as zeroes
}

// Completer is told when a request has ended.
type Completer interface {
	// RequestDone runs on the loop. r.Err and, for BlockStatus, r.Extents are set.
	RequestDone(r *Request)
}

// Request is one operation on [Off, Off+Len). Off and Len are bytes of any
// alignment; the front end has checked that they lie within the device.
type Request struct {
	Op    Op
	Flags Flags
	Off   uint64
	Len   uint64
	// Data holds exactly Len bytes, 4 KiB-aligned when Off is: the source of a
	// Write, the destination of a Read; nil otherwise. Buf is the counted buffer
	// that Data lies in; the submitter holds a reference until RequestDone. A
	// device that may still touch the bytes after RequestDone (a late replica)
	// Retains it.
	Data []byte
	Buf  *buf.Buf
	// Extents is filled by BlockStatus, appended to its zero-length start. It
	// covers at least the first byte of the range and no more than the range.
	Extents []Extent
	Err     error
	Done    Completer
	// Gone: whoever asked is not there any more. Where the request waits for what may
	// never come it may fail.
	Gone  bool
	Trace Trace

	// Dev is scratch for the device while it owns the request.
	Dev struct {
		Slot  int32
		Stamp int64
		Next  *Request
	}
}
