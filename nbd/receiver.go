// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// phase is what the next received byte belongs to.
type phase uint8

const (
	phaseHeader  phase = iota
	phaseIssue         // nothing: the current request needs a piece or a buffer first
	phasePayload       // the payload of rx.target
	phaseDrain         // the payload of a refused write
)

// receiver is the receiving side of a connection: one receive at a time, into
// the buffer, or into a piece and what follows it into the buffer.
type receiver struct {
	conn   *Conn
	op     loop.Op
	iov    [2]unix.Iovec
	bytes  []byte
	r, w   int // bytes[r:w] is received and not parsed
	phase  phase
	target *piece // of phasePayload
	got    int    // bytes of target.Data that are there
	direct bool   // op receives into target

	drainLeft int
	progress  int64 // loop time of the last bytes
}

func (x *receiver) init(c *Conn) {
	x.conn = c
	x.bytes = make([]byte, rxSize)
	x.op.Done = c
	x.op.FD = c.fd
	x.progress = c.port.loop.Now()
}

// receive starts a receive unless one is running.
func (x *receiver) receive() {
	if x.op.Active() {
		return
	}
	if x.r == x.w {
		x.r, x.w = 0, 0
	} else if x.r > 0 {
		// Less than a header, or than a small payload, is left: cheap to move.
		x.w = copy(x.bytes, x.bytes[x.r:x.w])
		x.r = 0
	}
	x.direct = false
	if x.phase == phasePayload {
		if rest := x.target.Data[x.got:]; len(rest) >= copyLimit {
			x.receiveDirect(rest)
			return
		}
	}
	x.op.Kind = loop.Recv
	x.op.Buf = x.bytes[x.w:]
	x.op.Flags = 0
	x.conn.port.loop.Submit(&x.op)
}

// receiveDirect receives into the piece. Behind the last piece of a request the
// next header is taken along.
func (x *receiver) receiveDirect(rest []byte) {
	x.direct = true
	x.iov[0].Base = unsafe.SliceData(rest)
	x.iov[0].SetLen(len(rest))
	n := 1
	if x.target.req.finishedIssue() {
		x.iov[1].Base = unsafe.SliceData(x.bytes)
		x.iov[1].SetLen(rxLookHead)
		n = 2
	}
	x.op.Kind = loop.Recvmsg
	x.op.Iov = x.iov[:n]
	x.op.Flags = 0
	x.conn.port.loop.Submit(&x.op)
}

// done takes what a receive brought.
func (x *receiver) done(res int) {
	c := x.conn
	switch {
	case c.closing:
		return
	case res == -int(unix.EINTR) || res == -int(unix.EAGAIN):
		x.receive()
		return
	case res <= 0:
		c.fail(ErrDisconnected)
		return
	}
	x.progress = c.port.loop.Now()
	if x.direct {
		n := min(res, len(x.target.Data)-x.got)
		x.got += n
		x.w = res - n
	} else {
		x.w += res
	}
	x.parse()
}

// parse goes through the received bytes until they are used up or the
// connection is paused.
func (x *receiver) parse() {
	c := x.conn
	for !c.closing && !c.paused {
		switch x.phase {
		case phaseHeader:
			if c.ending {
				return
			}
			if x.w-x.r < requestHeaderSize {
				x.receive()
				return
			}
			if c.freeReq == nil || c.freePiece == nil || c.port.orphans >= orphanLimit {
				c.pause()
				return
			}
			var h requestHeader
			if !h.decode(x.bytes[x.r:x.w]) {
				c.fail(errMagic)
				return
			}
			x.r += requestHeaderSize
			c.begin(&h)
		case phaseIssue:
			c.issue()
		case phasePayload:
			n := copy(x.target.Data[x.got:], x.bytes[x.r:x.w])
			x.got += n
			x.r += n
			if x.got < len(x.target.Data) {
				x.receive()
				return
			}
			c.received(x.target)
		case phaseDrain:
			n := min(x.drainLeft, x.w-x.r)
			x.drainLeft -= n
			x.r += n
			if x.drainLeft > 0 {
				x.receive()
				return
			}
			c.answerCurrent()
		}
	}
}

// abandon gives up the piece that was being received. No receive is active.
func (x *receiver) abandon() {
	c := x.conn
	r := c.cur
	c.cur = nil
	if p := x.target; p != nil {
		x.target = nil
		c.freeThe(p)
	}
	if r != nil {
		r.all = true
		c.abandon(r)
	}
}
