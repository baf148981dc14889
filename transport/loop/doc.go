// SPDX-License-Identifier: Apache-2.0

// Package loop is an event loop that owns an io_uring (or, where that is
// forbidden, an epoll set and a pool of worker threads) on its own OS thread,
// and does both sockets and disks with it.
//
//	any goroutine            the loop's thread
//	-------------            --------------------------------------------
//	Post, Call  --queue-->   1 posts    2 timers   3 deferred (sends, batches)
//	            --eventfd->  4 one system call: submit all, wait for one
//	                         5 OpDone for everything that completed; again
//
// Guarantees:
//   - Everything but New, Start, Close, Engine, Post, Call, Done and Stats is for
//     the loop's thread only, and every callback runs there, one at a time.
//   - OpDone is called exactly once for each Submit, never from inside Submit or
//     Cancel.
//   - Ops are started in the order of Submit, but complete in any order. Keep at
//     most one receive and one send active on a stream socket.
//   - No allocation per Submit, Arm, Disarm or Defer once the tables have grown
//     to the load's size. Post and Call allocate; they are for cold paths.
//
// Ownership: an Op, its Buf or Iov, and what these point to belong to the loop
// from Submit to OpDone. The loop keeps a reference to the Op, so that memory
// from the Go heap stays alive; memory from a mapping must stay mapped.
//
// A file descriptor is closed by its owner after the OpDone of its last Op:
// shut the socket down (or Cancel the ops), wait, then close.
package loop
