// SPDX-License-Identifier: Apache-2.0

// Package gate decides what one device serves: which sessions there are, what
// the map lets the device do for each placement group, which requests may go to
// the store, and which writes a resync target skips.
//
//	Open, Fence, Close       Learn(map)              Admit(request)
//	        |                    |                         |
//	  +-----v-------+   +--------v---------+   +-----------v-----------+
//	  | sessions    |   | view: epoch, role|   | session? generation?  |
//	  | generations |   | adopted version  |-->| group, epoch, role?   |--> store
//	  +-------------+   +--------+---------+   | target: clean there?  |
//	                             |             +-----------------------+
//	                    Target: dirty chunks <--- package resync
//
// It is pure: method calls in, answers out. The caller is the device's loop, or
// the simulator. Its obligations, in order:
//
//   - OpenBegin, then OpFence at the store, then OpenEnd with its outcome (rule
//     14: stop admitting, drain, persist, reply).
//   - Every Admit that returns StatusOK is followed by exactly one Done, when the
//     store has replied; a Ticket with Skip set does not go to the store.
//   - After Learn, OpenEnd and Done, before the next request is submitted: where
//     Demoted, the store's activity-log entries of groups without role replica
//     are marked so that no flush retires them; then, for the volumes of Raised,
//     those entries' chunks are marked dirty on each target (rule 27).
//
// Nothing on the way of a data request allocates, but skipping on a target may.
package gate
