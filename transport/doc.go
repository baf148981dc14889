// SPDX-License-Identifier: Apache-2.0

// Package transport carries frames between a data client and a data server, or
// between two servers, over one TCP (or Unix) connection for one device.
//
//	dialing side                                   accepting side
//	Dial: connect, Hello   ---- goroutine ----   Listener: accept, HelloReply
//	        |                                            |
//	        v  the file descriptor goes to the loop      v
//	Conn on its loop  <==== frames, both ways ====>  Conn on its loop
//	  Send(Msg) ... MsgSent                            Handler.Incoming -> memory
//	                                                   Handler.Frame
//
// A frame is a 64-byte Header, then 8 bytes of checksum for each block of the
// payload, then the payload. Replies come in any order; the package knows
// nothing of what the operations mean, except that it answers OpPing itself.
//
// # Threads
//
// A Conn belongs to one loop; all of its methods and all calls to its Handler
// and Senders are on that loop's thread. Handler methods are called from socket
// completions or at the end of a turn, never from inside a Conn method, except
// that NewConn calls Opener.Opened. There is one goroutine for each handshake in
// progress and none for a connection.
//
// # Memory
//
// A Conn has a fixed receive buffer and a fixed send buffer (limits.go) and makes
// no allocation for a frame. Frames with a payload below SmallPayload are copied
// through these buffers, many for each system call. A larger payload is received
// straight into the views that Incoming returned, and sent straight from
// Msg.Payload; except for what lay behind the previous frame in the buffer.
//
// The views returned by Incoming stay the handler's. The Conn writes to them
// until Frame or Closed is called. A Msg, its Sums and Payload belong to the Conn
// from Send until MsgSent, which comes exactly once.
//
// # End
//
// Whatever goes wrong, on the wire or by Close, ends the same way: the socket is
// shut down, operations in the kernel run out, every queued Msg gets MsgSent with
// the error, the descriptor is closed, and Handler.Closed is called, once.
//
// Connections are closed before their loop is. A loop that ends first cancels
// their operations, which ends them too, but a connection that is paused and
// sends nothing has none.
package transport
