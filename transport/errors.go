// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"io"
)

// Errors of the decoders. Each means that the connection must be closed.
var (
	ErrMagic    = errors.New("wrong magic: the peer does not speak this protocol")
	ErrHeader   = errors.New("header checksum mismatch")
	ErrTooLong  = errors.New("length beyond the limit")
	ErrReserved = errors.New("unknown op, flag or status, or reserved bits set")
	ErrSums     = errors.New("number of block checksums does not fit the payload")
	ErrPayload  = errors.New("malformed payload")
)

// Ends of a connection.
var (
	ErrClosed     = errors.New("closed by this side")
	ErrPeerClosed = errors.New("closed by the peer")
	ErrTruncated  = errors.New("closed by the peer in the middle of a frame")
	ErrHung       = errors.New("the peer is connected but silent")
)

// Answers to a Hello, besides success.
var (
	ErrVersion      = errors.New("no protocol version in common")
	ErrWrongCluster = errors.New("the server belongs to another cluster")
	ErrWrongDevice  = errors.New("the server does not have this device")
	ErrStarting     = errors.New("the server is still starting")
	ErrRefused      = errors.New("refused by the server")
)

// OpError says what was tried, with whom, and why it failed.
type OpError struct {
	Op   string // dial, handshake, receive, send
	Addr string // the peer
	Err  error
}

func (e *OpError) Error() string {
	if e.Addr == "" {
		return "transport: " + e.Op + ": " + e.Err.Error()
	}
	return "transport: " + e.Op + " " + e.Addr + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

// Reason classes why connections and handshakes end, for counters.
type Reason uint8

// The reasons.
const (
	ReasonLocal     Reason = iota // Close without an error, or with ErrClosed
	ReasonPeer                    // the peer closed between two frames
	ReasonTruncated               // the peer closed inside a frame
	ReasonSocket                  // the socket failed: reset, timed out
	ReasonHung                    // silent for too long
	ReasonMagic                   // not this protocol
	ReasonHeader                  // header checksum
	ReasonLength                  // length beyond the limit
	ReasonReserved                // unknown op, flag, status, or reserved bits
	ReasonSums                    // count of checksums
	ReasonHandler                 // Close with any other error
	ReasonHello                   // handshake: malformed, timed out or cut off
	ReasonRefused                 // handshake: answered with a refusal
	reasonCount
)

var reasonNames = [reasonCount]string{
	"local", "peer", "truncated", "socket", "hung", "magic", "header", "length",
	"reserved", "sums", "handler", "hello", "refused",
}

func (r Reason) String() string {
	if r < reasonCount {
		return reasonNames[r]
	}
	return "unknown"
}

// Reasons is the number of reasons; they count from 0.
const Reasons = int(reasonCount)

// reasonOf classes the error that a connection was closed with.
func reasonOf(err error) Reason {
	switch {
	case err == nil, errors.Is(err, ErrClosed):
		return ReasonLocal
	case errors.Is(err, ErrPeerClosed), errors.Is(err, io.EOF):
		return ReasonPeer
	case errors.Is(err, ErrTruncated):
		return ReasonTruncated
	case errors.Is(err, ErrHung):
		return ReasonHung
	case errors.Is(err, ErrMagic):
		return ReasonMagic
	case errors.Is(err, ErrHeader):
		return ReasonHeader
	case errors.Is(err, ErrTooLong):
		return ReasonLength
	case errors.Is(err, ErrReserved):
		return ReasonReserved
	case errors.Is(err, ErrSums):
		return ReasonSums
	}
	if oe := (*OpError)(nil); errors.As(err, &oe) {
		return ReasonSocket
	}
	return ReasonHandler
}
