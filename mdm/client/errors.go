// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"connectrpc.com/connect"
)

// What a call can fail with; test with errors.Is.
var (
	ErrUnreachable = errors.New("no metadata manager can be reached")
	ErrNotFound    = errors.New("no such object")
	ErrExists      = errors.New("it exists already")
	ErrRefused     = errors.New("refused in the present state")
	ErrInvalid     = errors.New("invalid request")
)

// OpError is the error of every call: what was tried, and what mdm said or why
// it could not be asked.
type OpError struct {
	Op    string   // e.g. "attach volume db"
	Addrs []string // the members that were asked, where none could answer
	Kind  error    // one of the sentinels above, or nil
	Err   error

	// Repeated: the call was sent before, and what became of that is not known.
	Repeated bool
}

func (e *OpError) Error() string {
	if len(e.Addrs) == 0 {
		said := text(e.Err)
		if strings.HasPrefix(said, e.Op) {
			return said // mdm's messages say what was tried themselves
		}
		return fmt.Sprintf("%s: %s", e.Op, said)
	}
	doubt := ""
	if e.Repeated {
		doubt = "; a connection broke before the answer, so it may have been done"
	}
	return fmt.Sprintf("%s: no metadata manager answers at %s: %s%s; is it running (mdm serve), and "+
		"is the address right (--mdm or $BRAID_MDM)?", e.Op, strings.Join(e.Addrs, ", "), text(e.Err), doubt)
}

func (e *OpError) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}

// text leaves out the code that Connect puts before a message: mdm's messages
// stand on their own.
func text(err error) string {
	var c *connect.Error
	if errors.As(err, &c) && c.Message() != "" {
		return c.Message()
	}
	return err.Error()
}

// kindOf maps what mdm answered to a sentinel.
func kindOf(err error) error {
	switch connect.CodeOf(err) {
	case connect.CodeNotFound:
		return ErrNotFound
	case connect.CodeAlreadyExists:
		return ErrExists
	case connect.CodeFailedPrecondition:
		return ErrRefused
	case connect.CodeInvalidArgument:
		return ErrInvalid
	}
	return nil
}

// answered reports whether mdm itself spoke, so that trying again cannot help.
func answered(err error) bool {
	if !connect.IsWireError(err) {
		return false
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeAborted:
		return false
	}
	return true
}

// unsent reports whether the request certainly changed nothing: it was refused
// before it was looked at, or it never left.
func unsent(err error) bool {
	if connect.IsWireError(err) {
		return connect.CodeOf(err) == connect.CodeUnavailable
	}
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
