// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// HeaderSize is the size of a frame header in bytes.
const HeaderSize = 64

// Magic opens every frame: "BRD1" read as little-endian bytes.
const Magic = 0x31445242

// Limits on the variable parts of a frame. Both are checked before anything is
// allocated or received.
const (
	MaxPayload = 1 << 20 // bytes: one chunk
	MaxSums    = 256     // one checksum for each 4 KiB block of a chunk
)

// Op is what a frame asks for. A reply carries the op of its request and
// FlagReply.
type Op uint8

// The operations on a connection, which concerns one device. On a connection of
// role peer there are no sessions: OpALList, OpTags, OpSums and OpCopy name the
// volume by Interval there.
const (
	OpInvalid Op = iota
	OpPing
	OpOpen   // a volume session on this device: payload is an OpenRequest; the reply's Session is the handle
	OpClose  // end a volume session
	OpRead   // Chunk, Offset, Length
	OpWrite  // Chunk, Offset, Length; sums and payload follow
	OpFlush  // Interval: all writes of the session with interval <= it become durable
	OpTrim   // Chunk, Offset, Length (multiples of 4 KiB)
	OpZero   // as OpTrim; with FlagNoHole the blocks stay allocated
	OpStatus // Chunk: the reply's payload is the 32-byte bitmap of the chunk
	OpFence  // stop, drain and persist a generation: payload is an OpenRequest
	OpALList // activity-log entries of a volume from cursor Chunk on: the reply's payload is a RegionList
	OpTags   // stored chunks of a volume from cursor Chunk on: the reply's payload is a TagList
	OpStamp  // Chunk: give it the tag (generation, Interval) and clear its marks, when it is resolved
	OpCopy   // as OpRead, but with checksums of the bytes just read, whatever is stored
	OpSums   // Chunk: the reply's payload is a SumTable
	// OpLock is a request of the server to the client of Session: keep every
	// request off Chunk, let those end that are under way, reply, and go on keeping
	// them off until OpUnlock, the end of the connection, or a map in which the
	// device is not the target any more.
	OpLock
	OpUnlock  // a request of the server: ends OpLock; answered too
	OpConfirm // answered with StatusOK if the session's generation is the newest here
	OpStats   // the reply's payload is the device's counters, as JSON
	OpMend    // Chunk, Offset, Length: some block there did not match its checksum when it was read
	opSentinel
)

// Flags of a frame.
const (
	FlagReply   uint8 = 1 << iota // this is a reply
	FlagFUA                       // durable on reply
	FlagNoHole                    // write zeroes: keep the blocks allocated
	FlagHole                      // read reply: the range holds no data; no sums, no payload
	FlagMore                      // more reply frames follow with this id
	FlagSkipped                   // reply of a resync target: not applied, the copy will bring it (rules 11, 25)
	flagsKnown  = FlagReply | FlagFUA | FlagNoHole | FlagHole | FlagMore | FlagSkipped
)

// Status is the outcome that a reply carries.
type Status uint16

// The outcomes. Everything but StatusOK carries no payload, except that
// StatusIO and StatusRefused may carry a short text.
const (
	StatusOK         Status = iota
	StatusIO                // the device failed this request
	StatusNoSpace           // no room for a chunk on the device
	StatusStaleEpoch        // the sender's map of the placement group is old: refetch, retry
	StatusFenced            // a newer generation is attached
	StatusNoSession         // unknown session handle: open again
	StatusRefused           // not served here (role, wrong device, read-only)
	StatusBadSum            // a block's checksum did not match at receive
	StatusRetry             // try again later: starting, draining, log full
	StatusInvalid           // the request makes no sense
	StatusRot               // a stored block does not match its checksum
	StatusLogFull           // a write: no room in the activity log, so it was never applied under its interval
	statusSentinel
)

// Header is the fixed part of a frame.
//
// Byte table (little-endian):
//
//	 0  4  magic "BRD1"
//	 4  1  op
//	 5  1  flags
//	 6  2  status (0 in requests)
//	 8  8  id: chosen by the requester, returned as it is
//	16  4  payload length in bytes (after the checksums)
//	20  4  session handle: stands for volume and generation on this connection
//	24  8  interval (requests; a peer's name the volume here); incarnation of the
//	       device (replies)
//	32  4  placement group (requests); microseconds from the request's header to
//	       this reply (replies of servers)
//	36  4  epoch of that group as the sender knows it (requests); of these
//	       microseconds those in the store (replies of servers)
//	40  8  chunk index within the volume
//	48  4  offset in the chunk, bytes (requests); activity-log pressure, 0-1000 (replies)
//	52  4  length of the range, bytes
//	56  2  number of block checksums (8 bytes each) that follow the header: 0, or
//	       one for each 4 KiB block of the payload, a partial last one included
//	58  2  reserved, 0
//	60  4  checksum: low half of xxhash64 of bytes 0-59
type Header struct {
	Op       Op
	Flags    uint8
	Status   Status
	ID       uint64
	Payload  uint32
	Session  uint32
	Interval uint64 // in replies: the incarnation
	PG       uint32 // in replies of servers: their time for it, µs
	Epoch    uint32 // in replies of servers: of it, that in the store, µs
	Chunk    uint64
	Offset   uint32 // in replies: the pressure
	Length   uint32
	Sums     uint16
}

// Encode writes the header to b[:HeaderSize].
func (h *Header) Encode(b []byte) {
	_ = b[HeaderSize-1]
	le := binary.LittleEndian
	le.PutUint32(b, Magic)
	b[4], b[5] = byte(h.Op), h.Flags
	le.PutUint16(b[6:], uint16(h.Status))
	le.PutUint64(b[8:], h.ID)
	le.PutUint32(b[16:], h.Payload)
	le.PutUint32(b[20:], h.Session)
	le.PutUint64(b[24:], h.Interval)
	le.PutUint32(b[32:], h.PG)
	le.PutUint32(b[36:], h.Epoch)
	le.PutUint64(b[40:], h.Chunk)
	le.PutUint32(b[48:], h.Offset)
	le.PutUint32(b[52:], h.Length)
	le.PutUint16(b[56:], h.Sums)
	le.PutUint16(b[58:], 0)
	le.PutUint32(b[60:], uint32(xxhash.Sum64(b[:60])))
}

// Decode reads and validates a header from b[:HeaderSize]. The error is ErrMagic,
// ErrHeader, ErrTooLong, ErrReserved or ErrSums.
func (h *Header) Decode(b []byte) error {
	_ = b[HeaderSize-1]
	le := binary.LittleEndian
	if le.Uint32(b) != Magic {
		return ErrMagic
	}
	if le.Uint32(b[60:]) != uint32(xxhash.Sum64(b[:60])) {
		return ErrHeader
	}
	h.Op, h.Flags = Op(b[4]), b[5]
	h.Status = Status(le.Uint16(b[6:]))
	h.ID = le.Uint64(b[8:])
	h.Payload = le.Uint32(b[16:])
	h.Session = le.Uint32(b[20:])
	h.Interval = le.Uint64(b[24:])
	h.PG = le.Uint32(b[32:])
	h.Epoch = le.Uint32(b[36:])
	h.Chunk = le.Uint64(b[40:])
	h.Offset = le.Uint32(b[48:])
	h.Length = le.Uint32(b[52:])
	h.Sums = le.Uint16(b[56:])
	if h.Payload > MaxPayload || h.Sums > MaxSums {
		return ErrTooLong
	}
	if h.Op == OpInvalid || h.Op >= opSentinel || h.Flags&^flagsKnown != 0 ||
		h.Status >= statusSentinel || le.Uint16(b[58:]) != 0 {
		return ErrReserved
	}
	if h.Flags&FlagReply == 0 && h.Status != StatusOK {
		return ErrReserved
	}
	if h.Sums != 0 && int(h.Sums) != Blocks(int(h.Payload)) {
		return ErrSums
	}
	if h.Op == OpPing && h.Payload != 0 {
		return ErrReserved
	}
	return nil
}
