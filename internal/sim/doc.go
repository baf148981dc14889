// SPDX-License-Identifier: Apache-2.0

// Package sim runs whole clusters inside one goroutine: the very cores that the
// programs run (the client's stripe/core, the servers' server/store, the
// manager's mdm/state), around them a network, disks and clocks that fail in
// every way the protocol promises to survive, and an oracle that knows what
// every block may hold.
//
//	guests --> clients (stripe/core) --> net --> nodes (server/store) --> disks
//	  |              |                             |
//	  |              +--------> mdm (mdm/state) <--+
//	  v                          ^
//	oracle <--- invariants ------+
//
// # The fault model of the disks
//
// A disk has sectors of 4 KiB, of which each has a durable version and, in a
// volatile cache, an ordered list of newer ones. Reads see the newest. A write
// takes effect at one moment between its start and its end, and lies in the
// cache then. A flush moves to the durable side what was in the cache when the
// flush began; nothing else is promised about order.
//
//   - Power loss: each sector keeps its durable version or any cached one, drawn
//     independently. A write that was under way counts as cached. One sector may
//     be torn (a mixture of two versions at 512 bytes grain) or hold garbage.
//   - Process death: the cache stays; a write that was under way took effect or
//     did not, sector by sector.
//   - Errors: a read, a write or a flush fails. What a failed write left behind
//     is unknown, sector by sector. A failed flush has thrown some cached sectors
//     away, and the next one succeeds, as file systems and disks do.
//   - Stalls: for seconds nothing ends.
//   - Only in tests that expect it to be noticed: a flush that lies, rot (a byte
//     changes, durable and cached), a write that lands elsewhere, the return of an older
//     image of the whole disk.
//
// # The fault model of the network
//
// A connection is two queues that keep their order. It ends with an unknown
// part of each queue delivered and the rest lost; each side learns of it at its
// own time. One direction may be clogged for a while. No message is changed,
// doubled or overtaken on a connection; TCP and the frame checksums see to that.
//
// # Determinism
//
// One heap of events, one random source, one virtual clock, no map iteration
// that leads to an event: the same seed gives the same run, which the hash over
// all events proves. Tests only: nothing else imports this package.
package sim
