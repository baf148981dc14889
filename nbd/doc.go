// SPDX-License-Identifier: Apache-2.0

// Package nbd speaks the Network Block Device protocol on behalf of a block
// device: to any NBD client over a socket, and to the kernel (package
// nbd/kernel).
//
//	net.Listener          goroutine per handshake          the device's loop
//	------------          -----------------------          ------------------------------
//	Serve: accept  --->   negotiate: options, STARTTLS --> Port.Connect(fd): Conn
//	                      (blocking, bounded, 30 s)          recv -> parse -> Device.Submit
//	                                                         RequestDone -> queue -> one send
//
// Transmission runs on the loop of the device, without a goroutine per
// connection or request and without an allocation per request. A TLS session is
// bridged by two goroutines to a socketpair whose other end the loop gets.
//
// Requests. A connection has a fixed table of requests and of pieces; a piece is
// what the device sees (package bio). Payload below 16 KiB is copied out of the
// receive buffer, so that one system call takes many requests; larger payload is
// received straight into the piece's aligned buffer. Replies that become ready
// in one turn leave in one send: small ones copied together, large payload by
// vector.
//
// Buffers. A piece of a read or write holds one buffer of the Arena from its
// admission to its reply, respectively its completion. A connection that finds
// none waits in the arena's queue, first come first served, and does not read
// from its socket meanwhile. Nobody holds one buffer and waits for the next
// except where the one held will be released without the next: pieces of a write
// and of a structured read end independently, and a read that must be answered
// in one go takes all its buffers at once or none.
//
// Errors. Whatever a client sends costs at most its own connection. The one
// table that maps errors to NBD error numbers is in errno.go.
//
// Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
// Names of the wire come from go-nbd's protocol package; what it lacks is in
// wire.go.
package nbd
