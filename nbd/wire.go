// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Numbers of the protocol that go-nbd's protocol package lacks.
const (
	handshakeFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	handshakeNoZeroes      = uint16(1 << 1)

	optExportName      = uint32(1)
	optAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList            = protocol.NEGOTIATION_ID_OPTION_LIST
	optStartTLS        = uint32(5)
	optInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	optGo              = protocol.NEGOTIATION_ID_OPTION_GO
	optStructuredReply = uint32(8)
	optListMetaContext = uint32(9)
	optSetMetaContext  = uint32(10)

	repAck            = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repServer         = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	repInfo           = protocol.NEGOTIATION_TYPE_REPLY_INFO
	repMetaContext    = uint32(4)
	repErrUnsupported = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	repErrPolicy      = uint32(1<<31 | 2)
	repErrInvalid     = uint32(1<<31 | 3)
	repErrTLSRequired = uint32(1<<31 | 5)
	repErrUnknown     = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	repErrShutdown    = uint32(1<<31 | 7)
	repErrTooBig      = uint32(1<<31 | 9)

	infoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	infoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	infoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	infoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags: what an export can do.
const (
	flagHasFlags        = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	flagReadOnly        = uint16(1 << 1)
	flagSendFlush       = uint16(1 << 2)
	flagSendFUA         = uint16(1 << 3)
	flagSendTrim        = uint16(1 << 5)
	flagSendWriteZeroes = uint16(1 << 6)
	flagSendDF          = uint16(1 << 7)
	flagCanMultiConn    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	flagSendCache       = uint16(1 << 10)
	flagSendFastZero    = uint16(1 << 11)
)

// Commands and their flags.
const (
	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)

	cmdFlagFUA      = uint16(1 << 0)
	cmdFlagNoHole   = uint16(1 << 1)
	cmdFlagDF       = uint16(1 << 2)
	cmdFlagReqOne   = uint16(1 << 3)
	cmdFlagFastZero = uint16(1 << 4)
)

// Structured replies.
const (
	magicStructuredReply = uint32(0x668e33ef)

	chunkFlagDone = uint16(1 << 0)

	chunkNone        = uint16(0)
	chunkOffsetData  = uint16(1)
	chunkBlockStatus = uint16(5)
	chunkError       = uint16(1<<15 | 1)
	chunkErrorOffset = uint16(1<<15 | 2)

	stateHole = uint32(1 << 0) // base:allocation
	stateZero = uint32(1 << 1)
)

// contextAllocation is the one meta context there is, and its number.
const (
	contextAllocation   = "base:allocation"
	contextAllocationID = uint32(1)
)

const (
	requestHeaderSize    = 28
	simpleReplySize      = 16
	structuredHeaderSize = 20
)

// requestHeader is the fixed part of a request.
//
// Byte table (big-endian):
//
//	 0  4  magic 0x25609513
//	 4  2  command flags
//	 6  2  command
//	 8  8  cookie, returned as it is
//	16  8  offset, bytes
//	24  4  length, bytes
type requestHeader struct {
	flags  uint16
	cmd    uint16
	cookie uint64
	off    uint64
	length uint32
}

// decode reads a header from b[:requestHeaderSize]; false on a wrong magic.
func (h *requestHeader) decode(b []byte) bool {
	_ = b[requestHeaderSize-1]
	be := binary.BigEndian
	h.flags = be.Uint16(b[4:])
	h.cmd = be.Uint16(b[6:])
	h.cookie = be.Uint64(b[8:])
	h.off = be.Uint64(b[16:])
	h.length = be.Uint32(b[24:])
	return be.Uint32(b) == protocol.TRANSMISSION_MAGIC_REQUEST
}

// encode writes the header to b[:requestHeaderSize].
func (h *requestHeader) encode(b []byte) {
	_ = b[requestHeaderSize-1]
	be := binary.BigEndian
	be.PutUint32(b, protocol.TRANSMISSION_MAGIC_REQUEST)
	be.PutUint16(b[4:], h.flags)
	be.PutUint16(b[6:], h.cmd)
	be.PutUint64(b[8:], h.cookie)
	be.PutUint64(b[16:], h.off)
	be.PutUint32(b[24:], h.length)
}

// putSimple writes a simple reply header:
//
//	0  4  magic 0x67446698
//	4  4  error number
//	8  8  cookie
func putSimple(b []byte, errno uint32, cookie uint64) {
	be := binary.BigEndian
	be.PutUint32(b, protocol.TRANSMISSION_MAGIC_REPLY)
	be.PutUint32(b[4:], errno)
	be.PutUint64(b[8:], cookie)
}

// putChunk writes the header of a structured reply chunk:
//
//	 0  4  magic 0x668e33ef
//	 4  2  flags
//	 6  2  type
//	 8  8  cookie
//	16  4  length of what follows
func putChunk(b []byte, flags, kind uint16, cookie uint64, length uint32) {
	be := binary.BigEndian
	be.PutUint32(b, magicStructuredReply)
	be.PutUint16(b[4:], flags)
	be.PutUint16(b[6:], kind)
	be.PutUint64(b[8:], cookie)
	be.PutUint32(b[16:], length)
}
