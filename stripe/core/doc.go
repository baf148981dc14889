// SPDX-License-Identifier: Apache-2.0

// Package core is the volume client as a pure state machine: requests of a
// front end and replies of devices go in as method calls, frames to send and
// finished requests come out as effects. It knows no network, clock, goroutine
// or log; time is an argument. One owner calls it; nothing in it is locked.
//
//	Submit --> slot --> range lock --> pieces (one per chunk) --> copies (one per
//	           |                        |                         replica or, for
//	           |                        |                         a read, one)
//	 Complete <+-- all pieces done <----+-- all copies acked <--- frames on links
//
// Life of a copy:
//
//	     no replica is reachable (reads)
//	  +---------- orphan <-----------+
//	  v                              |
//	queued --send--> in flight --reply--> done
//	  ^                 |    \--retry later--> delayed
//	  +-- link lost ----+                         |
//	  +-------------------------------------------+
//
// The caller's obligations, in this order, after every input:
//  1. Take Effects and carry them out in their order.
//  2. For Send: keep the frame's sums and payload untouched until Sent.
//  3. For CloseLink: close the connection; call LinkClosed when the transport
//     has let go of every byte that it was given. Until then the core keeps the
//     requests concerned open, so no buffer is reused under a receive or a send.
//  4. Arm one timer for Deadline and call Tick when it is due.
//
// Rules of the replication protocol are named where they are enforced. What
// belongs to the attach of a volume with suspect regions (rules 4, 6, 8, 14, 26,
// 27) and to resync (11, 12, 13, 23, 25) has its places: see resolved and
// writeSet.
package core
