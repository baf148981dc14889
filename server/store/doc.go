// SPDX-License-Identifier: Apache-2.0

// Package store is the crash-safe chunk store of one device, as a pure state
// machine: requests and I/O completions go in by method call, I/O and replies
// come out as effects. It starts no goroutine, reads no clock, opens nothing.
//
//	            Submit(req)                        IODone(io, err)
//	                |                                   |
//	+---------------v-----------------------------------v---------------+
//	| admission -> activity log -> data I/O -> metadata in memory -> ack  |
//	|                  |                              |                  |
//	|                  +----------> commit <----------+                  |
//	|             log pages, one device flush, ack of flush and FUA       |
//	|                               |                                    |
//	|                  fold: pages, header pages -> tail advances         |
//	+---------------|-----------------------------------------------------+
//	                v
//	            Effects(): I/O to start, replies to send
//
// The caller's obligations, in order:
//
//   - One owner: all methods of a Core are called from one thread.
//   - After each batch of Submit and IODone calls, call Effects and carry out
//     each effect in order. Commits start there, so that a batch shares one.
//   - A data IO must be complete before IODone is called, and every IO gets
//     exactly one IODone.
//   - Call Idle now and then when nothing else is going on; it retires.
//   - A Request and its Data and Sums stay untouched from Submit to EffectReply.
//
// What is durable when is stated in docs/on-disk-format.md together with the
// layout; the rules cited by number are those of docs/replication.md.
package store
