// SPDX-License-Identifier: Apache-2.0

package bio

import (
	"errors"
	"testing"
)

// Every operation has the name that logs and the NBD specification use, and
// nothing beyond them has one.
func TestOpString(t *testing.T) {
	names := map[Op]string{
		Read: "read", Write: "write", Flush: "flush", Trim: "trim",
		WriteZeroes: "write-zeroes", Cache: "cache", BlockStatus: "block-status",
	}
	for op, name := range names {
		if op.String() != name {
			t.Errorf("operation %d is %q, want %q", op, op, name)
		}
	}
	if s := (BlockStatus + 1).String(); s != "unknown" {
		t.Errorf("an operation that does not exist is %q", s)
	}
}

// Flags are distinct bits, and errors are distinct: the front end tells them
// apart to choose an error number.
func TestFlagsAndErrorsAreDistinct(t *testing.T) {
	var seen Flags
	for _, f := range []Flags{FUA, NoHole, FastZero, ReqOne} {
		if f == 0 || f&(f-1) != 0 || seen&f != 0 {
			t.Errorf("flag %#x is not a bit of its own", f)
		}
		seen |= f
	}
	all := []error{ErrInvalid, ErrNoSpace, ErrIO, ErrShutdown, ErrReadOnly, ErrNotSupported}
	for i, a := range all {
		for j, b := range all {
			if errors.Is(a, b) != (i == j) {
				t.Errorf("%v and %v", a, b)
			}
		}
	}
}
