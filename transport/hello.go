// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
)

// The protocol versions that this build speaks.
const (
	VersionMin = 1
	VersionMax = 1
)

// Sizes of the handshake, in bytes. They never change: a version that cannot be
// spoken must still be readable.
const (
	HelloSize      = 96
	HelloReplySize = 192
	// MaxHelloText is how much of HelloReply.Text travels.
	MaxHelloText = HelloReplySize - 36
)

const (
	helloMagic = 0x48445242 // "BRDH"
	replyMagic = 0x52445242 // "BRDR"
)

// Role is what the dialing side is.
type Role uint8

// Client is a data client, Peer another data server (resync).
const (
	RoleInvalid Role = iota
	Client
	Peer
	roleSentinel
)

func (r Role) String() string {
	switch r {
	case Client:
		return "client"
	case Peer:
		return "peer"
	}
	return "invalid"
}

// Hello opens a connection: who wants which device of which cluster.
//
// Byte table (little-endian):
//
//	 0  4  magic "BRDH"
//	 4  2  lowest version spoken
//	 6  2  highest version spoken
//	 8  8  features wished for, a bit each
//	16 16  cluster
//	32 16  device
//	48 16  client (or server, for role peer)
//	64  1  role: 1 client, 2 peer
//	65  1  flags, the acceptor's to judge
//	66 26  reserved, 0
//	92  4  checksum: low half of xxhash64 of bytes 0-91
type Hello struct {
	VersionMin, VersionMax uint16 // 0: those of this build
	Features               uint64
	Cluster                [16]byte
	Device                 [16]byte
	Client                 [16]byte
	Role                   Role
	Flags                  uint8
}

// Encode writes h to b[:HelloSize].
func (h *Hello) Encode(b []byte) {
	b = b[:HelloSize]
	clear(b)
	le := binary.LittleEndian
	le.PutUint32(b, helloMagic)
	le.PutUint16(b[4:], h.VersionMin)
	le.PutUint16(b[6:], h.VersionMax)
	le.PutUint64(b[8:], h.Features)
	copy(b[16:], h.Cluster[:])
	copy(b[32:], h.Device[:])
	copy(b[48:], h.Client[:])
	b[64], b[65] = byte(h.Role), h.Flags
	le.PutUint32(b[92:], uint32(xxhash.Sum64(b[:92])))
}

// Decode reads and validates a Hello from b[:HelloSize]. Where only the version
// is foreign it returns ErrVersion, which deserves an answer; reserved bytes are
// not looked at then.
func (h *Hello) Decode(b []byte) error {
	b = b[:HelloSize]
	le := binary.LittleEndian
	if le.Uint32(b) != helloMagic {
		return ErrMagic
	}
	if le.Uint32(b[92:]) != uint32(xxhash.Sum64(b[:92])) {
		return ErrHeader
	}
	h.VersionMin, h.VersionMax = le.Uint16(b[4:]), le.Uint16(b[6:])
	h.Features = le.Uint64(b[8:])
	copy(h.Cluster[:], b[16:])
	copy(h.Device[:], b[32:])
	copy(h.Client[:], b[48:])
	h.Role, h.Flags = Role(b[64]), b[65]
	if h.VersionMin > VersionMax || h.VersionMax < VersionMin || h.VersionMin > h.VersionMax {
		return fmt.Errorf("%w: the peer speaks %d to %d, this side %d to %d",
			ErrVersion, h.VersionMin, h.VersionMax, VersionMin, VersionMax)
	}
	if h.Role == RoleInvalid || h.Role >= roleSentinel || !zero(b[66:92]) {
		return ErrReserved
	}
	return nil
}

// HelloStatus is the answer to a Hello.
type HelloStatus uint16

// The answers.
const (
	HelloOK           HelloStatus = iota
	HelloWrongCluster             // the server belongs to another cluster
	HelloWrongDevice              // no such device here
	HelloVersion                  // no version in common
	HelloStarting                 // try again soon
	HelloRefused                  // any other reason; the text says which
	helloSentinel
)

// Err is the sentinel error of the status, nil for HelloOK.
func (s HelloStatus) Err() error {
	switch s {
	case HelloOK:
		return nil
	case HelloWrongCluster:
		return ErrWrongCluster
	case HelloWrongDevice:
		return ErrWrongDevice
	case HelloVersion:
		return ErrVersion
	case HelloStarting:
		return ErrStarting
	}
	return ErrRefused
}

func (s HelloStatus) String() string {
	if err := s.Err(); err != nil {
		return err.Error()
	}
	return "ok"
}

// HelloReply answers a Hello.
//
// Byte table (little-endian):
//
//	  0   4  magic "BRDR"
//	  4   2  status
//	  6   2  version chosen (0 when refused)
//	  8   8  features granted
//	 16   8  incarnation of the device
//	 24   2  length of the text in bytes
//	 26   6  reserved, 0
//	 32 156  text, UTF-8, padded with 0
//	188   4  checksum: low half of xxhash64 of bytes 0-187
type HelloReply struct {
	Status      HelloStatus
	Version     uint16
	Features    uint64
	Incarnation uint64
	Text        string // for a person: why it was refused, what to do
}

// Encode writes r to b[:HelloReplySize]. A text that is too long is cut.
func (r *HelloReply) Encode(b []byte) {
	b = b[:HelloReplySize]
	clear(b)
	le := binary.LittleEndian
	le.PutUint32(b, replyMagic)
	le.PutUint16(b[4:], uint16(r.Status))
	le.PutUint16(b[6:], r.Version)
	le.PutUint64(b[8:], r.Features)
	le.PutUint64(b[16:], r.Incarnation)
	text := []byte(r.Text)
	if len(text) > MaxHelloText {
		text = text[:MaxHelloText]
		for len(text) > 0 && !utf8.Valid(text) {
			text = text[:len(text)-1]
		}
	}
	le.PutUint16(b[24:], uint16(len(text)))
	copy(b[32:], text)
	le.PutUint32(b[188:], uint32(xxhash.Sum64(b[:188])))
}

// Decode reads and validates a reply from b[:HelloReplySize]. Bytes of the text
// that are not printable text are replaced: it will be shown to a person.
func (r *HelloReply) Decode(b []byte) error {
	b = b[:HelloReplySize]
	le := binary.LittleEndian
	if le.Uint32(b) != replyMagic {
		return ErrMagic
	}
	if le.Uint32(b[188:]) != uint32(xxhash.Sum64(b[:188])) {
		return ErrHeader
	}
	n := int(le.Uint16(b[24:]))
	if n > MaxHelloText {
		return ErrTooLong
	}
	r.Status, r.Version = HelloStatus(le.Uint16(b[4:])), le.Uint16(b[6:])
	if !zero(b[26:32]) || !zero(b[32+n:188]) {
		return ErrReserved
	}
	if r.Status >= helloSentinel { // of a newer version; the text explains it
		r.Status = HelloRefused
	}
	r.Features = le.Uint64(b[8:])
	r.Incarnation = le.Uint64(b[16:])
	r.Text = string(bytes.Map(printable, b[32:32+n]))
	return nil
}

// printable keeps a hostile server's text from steering a terminal.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == utf8.RuneError {
		return '?'
	}
	return r
}
