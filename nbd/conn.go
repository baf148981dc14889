// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"fmt"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// ConnOptions are what the handshake found out. The kernel's sockets have the
// zero value, apart from ReadOnly.
type ConnOptions struct {
	Structured bool // structured replies were negotiated
	Allocation bool // base:allocation was negotiated
	ReadOnly   bool // refuse writes even if the device takes them
	// Closed, if set, is told on the loop when the socket has been closed.
	// Requests may still be at the device then; their replies are dropped.
	Closed func(c *Conn, err error)
}

// Conn is one connection in the transmission phase. It is owned by its loop.
type Conn struct {
	port *Port
	o    ConnOptions
	fd   int

	rx receiver
	tx sender

	requests  [requestCount]request
	pieces    [pieceCount]piece
	freeReq   *request
	freePiece *piece
	busy      int // requests not answered
	atDevice  int // pieces not completed
	held      int // bytes of buffers

	// cur is the request that is being received or admitted. A connection whose
	// current request cannot go on is paused, and does not read meanwhile.
	cur    *request
	paused bool
	queued bool // in the arena's queue

	deferred bool // RunDeferred is due
	draining bool // refuse new requests, end when none is left
	ending   bool // the client said goodbye: receive nothing more
	closing  bool // the socket is shut down, ops are ending
	closed   bool // the socket is closed
	err      error

	prev, next *Conn
}

// Connect takes over fd, a connected stream socket in the transmission phase,
// and serves it until it ends. The connection closes fd.
func (p *Port) Connect(fd int, o ConnOptions) *Conn {
	c := &Conn{port: p, o: o, fd: fd}
	c.rx.init(c)
	c.tx.init(c)
	for i := len(c.requests) - 1; i >= 0; i-- {
		c.requests[i].link = c.freeReq
		c.freeReq = &c.requests[i]
	}
	for i := len(c.pieces) - 1; i >= 0; i-- {
		p := &c.pieces[i]
		p.conn, p.Done = c, p
		p.link = c.freePiece
		c.freePiece = p
	}
	p.link(c)
	p.stats.Connects++
	c.rx.receive()
	return c
}

// Err is why the connection ended.
func (c *Conn) Err() error { return c.err }

// Port is the port that the connection belongs to.
func (c *Conn) Port() *Port { return c.port }

// Busy is the number of requests that are not answered.
func (c *Conn) Busy() int { return c.busy }

// Close ends the connection at once, as Port.Abort does.
func (c *Conn) Close() { c.fail(ErrClosed) }

// drain refuses new requests and ends the connection when none is left.
func (c *Conn) drain() {
	c.draining = true
	c.maybeEnd()
}

// maybeEnd ends a connection that has nothing left to answer and was asked to
// end, by the client or by the server.
func (c *Conn) maybeEnd() {
	if (c.ending || c.draining) && c.busy == 0 && c.cur == nil && !c.tx.pending() && !c.closing {
		err := ErrClosed
		if c.ending {
			err = ErrDisconnected
		}
		c.fail(err)
	}
}

// fail shuts the socket down. The steps of the end are: pending socket ops end,
// the socket is closed (Closed is called), the device completes what it has,
// the connection is forgotten.
func (c *Conn) fail(err error) {
	if c.closing {
		return
	}
	c.closing = true
	c.err = err
	if err != ErrDisconnected && err != ErrClosed {
		c.port.stats.Broken++
	}
	c.port.arena.leave(c)
	for i := range c.pieces {
		c.pieces[i].Gone = true // of those at the device; each use begins with false
	}
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	c.schedule()
}

// settle goes on with the end of a closing connection.
func (c *Conn) settle() {
	if !c.closed {
		if c.rx.op.Active() || c.tx.op.Active() {
			return
		}
		c.tx.drop()
		c.rx.abandon()
		c.closed = true
		_ = unix.Close(c.fd)
		c.fd = -1
		c.rx.bytes, c.tx.bytes = nil, nil // requests at the device keep the rest alive
		c.port.orphaned(c.busy)
		if c.o.Closed != nil {
			c.o.Closed(c, c.err)
		}
	}
	if c.atDevice == 0 && c.linked() {
		if c.busy != 0 || c.held != 0 {
			panic(fmt.Sprintf("nbd: connection ends with %d requests and %d bytes", c.busy, c.held))
		}
		c.port.unlink(c)
	}
}

func (c *Conn) linked() bool { return c.prev != nil || c.next != nil || c.port.conns == c }

// schedule makes RunDeferred run at the end of this turn.
func (c *Conn) schedule() {
	if !c.deferred {
		c.deferred = true
		c.port.loop.Defer(c)
	}
}

// pause stops the parse until something is there that is lacking. Nothing is
// received meanwhile, so the end of the client has to be looked for.
func (c *Conn) pause() {
	c.paused = true
	if w := &c.port.hangups; !w.Armed() {
		c.port.loop.Arm(w, hangupInterval)
	}
}

// hungUp reports whether the client has closed its end, unread bytes or not.
func (c *Conn) hungUp() bool {
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// kick lets a paused connection try again.
func (c *Conn) kick() {
	if c.paused && !c.closing {
		c.schedule()
	}
}

// RunDeferred runs once at the end of a turn in which something became possible:
// going on with the parse, sending, ending.
func (c *Conn) RunDeferred() {
	c.deferred = false
	if !c.closing && c.paused {
		c.paused = false
		c.rx.parse()
	}
	if !c.closing {
		c.tx.flush()
	}
	if !c.closing {
		c.maybeEnd()
	}
	if c.closing {
		c.settle()
	}
}

// OpDone is the completion of the receive or the send.
func (c *Conn) OpDone(op *loop.Op, res int) {
	if op == &c.rx.op {
		c.port.stats.Receives++
		c.rx.done(res)
	} else {
		c.port.stats.Sends++
		c.tx.done(res)
	}
	if c.closing {
		c.schedule()
	}
}
