// SPDX-License-Identifier: Apache-2.0

// Package daemon is the process that serves all volumes attached on a host, and
// how the sdc command talks to it.
//
//	sdc attach, detach, list, why, stop
//	        | HTTP and JSON over RUN/sdc.sock (for root only)
//	        v
//	Daemon: attachments --- Volume (stripe) on a loop --- nbd.Port --- nbd/kernel.Device
//
// RUN is /run/braid, or $BRAID_RUN. RUN/sdc.lock is locked by the daemon as long as
// it lives, so that there is one; RUN/sdc.log is its log when attach started it.
//
// Goroutines: one per call of the control socket, the keeper of each kernel
// device, one per resize that is under way; loops are threads of their own. The
// daemon ends by itself after its last detach if attach started it. SIGTERM
// detaches what is not in use; while something is, the daemon goes on.
//
// Export is the smaller brother for `sdc serve`: one volume, no kernel.
package daemon
