// SPDX-License-Identifier: Apache-2.0

// Package kernel attaches a port of package nbd to the kernel's own NBD driver,
// which makes it a block device /dev/nbdN.
//
//	file system, database, …                this process
//	        |                                   port (one loop)
//	   /dev/nbdN  --- socketpair per queue ---  nbd.Conn, nbd.Conn, …
//	        ^                                       | Closed
//	        |  generic netlink: CONNECT,            v
//	        +-- RECONFIGURE, DISCONNECT ----  keeper goroutine
//
// The sockets speak the transmission phase only; the size and the flags travel
// by netlink. Where the kernel lacks the netlink family, ioctls are used; then a
// dropped socket cannot be replaced.
//
// The kernel drops a socket when a reply takes longer than Timeout. One goroutine
// per device, the keeper, hands it a new socket within a second; the kernel sends
// what was unanswered again. The old request runs on and its reply is dropped,
// which is harmless: requests of one range take effect in the order in which they
// came. The kernel silently ignores a new socket while all old ones live, so an
// end of stream on the new one means "not taken", and the keeper tries again.
// DeadTimeout is how long the device waits without any socket before its requests
// fail: the time in which a new process may take over.
//
// Calls into the driver can block for as long as requests do. They run on
// goroutines of their own with a limit, never on a loop.
package kernel
