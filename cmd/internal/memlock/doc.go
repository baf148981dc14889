// SPDX-License-Identifier: Apache-2.0

// Package memlock keeps a daemon that serves block I/O out of the way of memory
// reclaim. A file system mounted on a Braid volume is written back by the kernel
// when memory is short; if the daemon that carries those writes then waits for
// memory itself, neither goes on. Three measures, each of which needs privilege
// and none of which is needed for correctness on a machine that only serves
// other machines:
//
//   - PR_SET_IO_FLUSHER (prctl(2)): allocations of this thread in the kernel must
//     not start I/O of their own, and its writes are throttled by its own device
//     only. The attribute belongs to a *thread*, and a Go program has several
//     before main runs. The kernel keeps it over fork and execve and hands it to
//     each new thread of a thread that has it. So Reexec sets it on one thread
//     and replaces the process image from that same thread: after execve it is
//     the only thread, and the new runtime starts all others from it.
//   - mlockall(2), on fault: pages stay once touched. Prefault touches those
//     that a request will need.
//   - oom_score_adj: killing the daemon frees little and stops every writer.
//
// The package starts no goroutine and holds no state.
package memlock
