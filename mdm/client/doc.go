// SPDX-License-Identifier: Apache-2.0

// Package client is how sds, sdc and scli talk to the metadata manager.
//
//	call --> leader, if known --Unavailable, "braid-leader: ADDR"--> that address
//	     \-> each address in turn, with back-off, until Patience is over
//
// A Client may be used from any goroutine. A call that could not reach any
// member is tried again until its patience or its context ends, also when the
// answer was lost: calls that make something carry an identity, so that mdm
// recognises the repetition. An answer of mdm, good or bad, is never retried.
//
// WatchMap blocks its caller and calls back on the caller's goroutine; it
// survives restarts of members and changes of the leader. The package starts no
// goroutine of its own apart from those of net/http's connections, which Close
// ends.
package client
