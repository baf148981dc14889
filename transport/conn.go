// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"time"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// Handler is what a connection talks to. All calls are on the connection's loop.
type Handler interface {
	// Incoming is called for every frame but pings, also for those without a
	// payload, once header and checksums are complete. It returns where the payload
	// goes: views whose lengths add up to h.Payload (at most MaxViews). They are the
	// handler's, and stay valid until Frame or Closed. ok=false means that there is
	// no memory now: the connection reads nothing until Resume, and then calls
	// Incoming again for the same frame.
	Incoming(c *Conn, h *Header) (dst [][]byte, ok bool)
	// Frame is called when the frame is complete. sums (8*h.Sums bytes) and h are
	// valid only during the call.
	Frame(c *Conn, h *Header, sums []byte)
	// Closed is called once, last. Nothing of the connection's use of memory
	// remains: views given by Incoming without a Frame are free again, and every
	// Msg sent before has had its MsgSent.
	Closed(c *Conn, err error)
}

// Opener may be implemented by a Handler that wants to know its connection
// before the first frame.
type Opener interface {
	Opened(c *Conn)
}

// Config is what a new connection is told. The zero value is fine.
type Config struct {
	// KeepAlive and Silence replace the defaults of limits.go where not 0. Silence
	// is rounded up to a multiple of KeepAlive.
	KeepAlive, Silence time.Duration
	// Counters are added to; nil gives the connection its own.
	Counters *Counters
	Remote   Hello
	Reply    HelloReply
	Addr     string // of the peer, for error texts
}

// Conn is one established connection, owned by one loop.
type Conn struct {
	// Remote is the Hello that opened the connection: the peer's where it was
	// accepted, this side's own where it was dialed. Reply is the answer to it.
	Remote Hello
	Reply  HelloReply
	// Addr is the peer's address, for error texts.
	Addr string

	loop     *loop.Loop
	fd       int
	handler  Handler
	counters *Counters

	state state
	err   error // why it was closed
	// deferred: RunDeferred is queued in the loop for this turn.
	deferred bool

	in  inbound
	out outbound
	ka  keepAlive
}

type state uint8

const (
	open    state = iota
	closing       // operations in the kernel run out
	closed        // Handler.Closed was called
)

// NewConn makes a connection of a connected stream socket, on the thread of l,
// and owns fd from then on. It calls h.Opened if there is such a method.
func NewConn(l *loop.Loop, fd int, h Handler, cfg Config) *Conn {
	c := &Conn{
		Remote: cfg.Remote, Reply: cfg.Reply, Addr: cfg.Addr,
		loop: l, fd: fd, handler: h, counters: cfg.Counters,
	}
	if c.counters == nil {
		c.counters = new(Counters)
	}
	c.counters.opened.Add(1)
	c.in.init(c)
	c.out.init(c)
	c.ka.init(c, cfg.KeepAlive, cfg.Silence)
	c.in.ready = true
	c.runLater()
	if o, ok := h.(Opener); ok {
		o.Opened(c)
	}
	return c
}

// Loop is the loop that owns the connection.
func (c *Conn) Loop() *loop.Loop { return c.loop }

// Counters may be read from any goroutine.
func (c *Conn) Counters() *Counters { return c.counters }

// Close ends the connection with the error that MsgSent and Closed will get; nil
// is ErrClosed. Messages not yet in the kernel are dropped. Only the first call
// counts.
func (c *Conn) Close(err error) {
	if c.state != open {
		return
	}
	if err == nil {
		err = ErrClosed
	}
	c.state, c.err = closing, err
	c.loop.Disarm(&c.ka.timer)
	// Pending operations end by the shutdown. Cancel is for one that is still in
	// the loop's own queue. Neither calls back from here.
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	if c.in.op.Active() {
		c.loop.Cancel(&c.in.op)
	}
	if c.out.op.Active() {
		c.loop.Cancel(&c.out.op)
	}
	// The caller may be the handler, in the middle of a frame: the rest happens
	// when its stack has unwound.
	c.runLater()
}

// Resume continues after Incoming returned ok=false, at the end of this turn.
func (c *Conn) Resume() {
	if !c.in.paused {
		return
	}
	c.in.paused = false
	c.in.ready = true
	c.ka.heard = true // nothing could be heard meanwhile
	c.runLater()
}

func (c *Conn) runLater() {
	if !c.deferred {
		c.deferred = true
		c.loop.Defer((*deferredConn)(c))
	}
}

// deferredConn keeps the loop's callbacks out of Conn's methods; so do
// recvSide and sendSide.
type deferredConn Conn

func (d *deferredConn) RunDeferred() {
	c := (*Conn)(d)
	if c.in.ready && c.state == open {
		c.in.ready = false
		c.parse() // what it sends is flushed below
		c.receive()
		c.counters.framesIn.Add(c.in.frames)
		c.in.frames = 0
	}
	c.deferred = false
	if c.state != open {
		c.finish()
		return
	}
	if c.in.ready {
		c.runLater() // resumed by a handler that then had no memory after all
	}
	c.flush()
}

// fail ends the connection for a socket error.
func (c *Conn) fail(op string, err error) {
	c.Close(&OpError{Op: op, Addr: c.Addr, Err: err})
}

// finish does the last steps of closing once no operation is in the kernel.
func (c *Conn) finish() {
	if c.in.op.Active() || c.out.op.Active() {
		return
	}
	if c.state == closed {
		c.dropAll() // sent after the end
		return
	}
	c.state = closed
	_ = unix.Close(c.fd) // both directions are shut down: nothing is left to fail
	c.fd = -1
	c.in.forget()
	c.dropAll()
	c.out.forget()
	c.counters.closed[reasonOf(c.err)].Add(1)
	c.handler.Closed(c, c.err)
}
