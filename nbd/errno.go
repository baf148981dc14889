// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"errors"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"braid/transport/bio"
)

// Error numbers of the protocol. They are numbers of their own that happen to
// equal Linux's.
const (
	errnoNone     = uint32(0)
	errnoPerm     = protocol.TRANSMISSION_ERROR_EPERM
	errnoIO       = uint32(5)
	errnoNoMem    = uint32(12)
	errnoInval    = protocol.TRANSMISSION_ERROR_EINVAL
	errnoNoSpace  = uint32(28)
	errnoOverflow = uint32(75)
	errnoNotSup   = uint32(95)
	errnoShutdown = uint32(108)
)

// Errors that this package itself answers requests with.
var (
	errBeyondEnd = errors.New("beyond the end of the device")
	errBadFlags  = errors.New("flag not valid for this command")
	errBadCmd    = errors.New("unknown command")
	errTooLong   = errors.New("longer than the announced maximum")
	errFragment  = errors.New("cannot be answered in one chunk")
	errNoContext = errors.New("no meta context negotiated")
	errWriteEnd  = errors.New("write beyond the end of the device")
)

// errnoTable maps errors to error numbers, first match wins. What is not in it
// is an I/O error. The texts go to clients that negotiated structured replies.
func errnoTable() []errnoEntry {
	return []errnoEntry{
		{bio.ErrInvalid, errnoInval},
		{bio.ErrNoSpace, errnoNoSpace},
		{bio.ErrReadOnly, errnoPerm},
		{bio.ErrShutdown, errnoShutdown},
		{bio.ErrNotSupported, errnoNotSup},
		{bio.ErrIO, errnoIO},
		{errBeyondEnd, errnoInval},
		{errWriteEnd, errnoNoSpace},
		{errBadFlags, errnoInval},
		{errBadCmd, errnoInval},
		{errTooLong, errnoInval},
		{errFragment, errnoOverflow},
		{errNoContext, errnoInval},
	}
}

type errnoEntry struct {
	err   error
	errno uint32
}

// errno returns the protocol's number for err. Errors are rare: it may be slow.
func errno(err error) uint32 {
	if err == nil {
		return errnoNone
	}
	for _, e := range errnoTable() {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return errnoIO
}
