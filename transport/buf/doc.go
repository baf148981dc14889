// SPDX-License-Identifier: Apache-2.0

// Package buf is the pool of reference-counted, 4 KiB-aligned buffers in which
// payload travels from a socket to a disk, or back, without being copied.
//
//	         Get                      Retain (one per replica)
//	pool ----------> 1 reference ----------------------------> n references
//	  ^                   |                                        |
//	  +-------------------+------------- Release, n times <--------+
//
// Ownership: Get hands out a buffer with one reference. A function that keeps a
// buffer past its return says so in its name (Enqueue, Submit) and the caller
// Retains once for it; each holder Releases exactly once. Bytes are immutable
// from the end of the receive until the last Release.
//
// The pool never grows after NewPool: its size is the sum of named consumers,
// and Get returns nil when a class is exhausted. The caller then stops reading
// from its socket until a Release (see Pool.Wait).
//
// A pool may be shared by any goroutines; nothing in it blocks, and it has no
// goroutine of its own. Get, Retain and Release do not allocate.
package buf
