// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// inbound is the receiving half of a connection.
//
//	receive --> [kernel] --> received --> parse: atHeader -> atSums -> atIncoming -> atPayload
//	   ^                                    |  Incoming says no: paused until Resume    |
//	   +------------------------------------+-------------------------------------------+
type inbound struct {
	op   loop.Op
	buf  []byte
	r, w int // buf[r:w] is received and not yet parsed
	// window is how much the next receive into buf asks for; see limits.go.
	window int
	// direct: the receive in the kernel goes to the views, with the start of buf
	// behind them.
	direct bool
	paused bool // until Resume
	ready  bool // parse and receive at the end of the turn

	stage stage
	hdr   Header
	sums  [sumsSize]byte
	// The payload's views are the handler's; next and off say where the next byte
	// goes, left how many are missing.
	views [][]byte
	next  int
	off   int
	left  int
	iov   []unix.Iovec

	frames uint64 // completed since the counters were last told
	copied int    // bytes of payload since then, from buf to the views
}

type stage uint8

const (
	atHeader stage = iota
	atSums
	atIncoming
	atPayload
)

func (in *inbound) init(c *Conn) {
	in.buf = make([]byte, recvBufSize)
	in.window = windowSmall
	in.iov = make([]unix.Iovec, 0, 8)
	in.op.FD = c.fd
	in.op.Done = (*recvSide)(c)
}

// forget drops references to memory that is not the connection's.
func (in *inbound) forget() {
	in.views = nil
	clear(in.iov[:cap(in.iov)])
	in.buf, in.op.Buf, in.op.Iov = nil, nil, nil
}

// receive asks the kernel for more, unless that is pointless or running.
func (c *Conn) receive() {
	in := &c.in
	if c.state != open || in.paused || in.ready || in.op.Active() {
		return
	}
	in.aim()
	c.loop.Submit(&in.op)
}

// aim points the operation at where the next bytes belong.
func (in *inbound) aim() {
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
	in.direct = in.stage == atPayload && in.hdr.Payload >= SmallPayload
	if in.direct {
		in.aimAtViews()
		return
	}
	// What is unparsed is at most a header and its checksums: cheap to move.
	if in.r > 0 && len(in.buf)-in.w < in.window {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	in.op.Kind = loop.Recv
	in.op.Buf = in.buf[in.w:min(in.w+in.window, len(in.buf))]
}

// aimAtViews points it at what is missing of the payload, and behind it at the
// empty buffer, so that the next header needs no system call of its own.
func (in *inbound) aimAtViews() {
	in.iov = in.iov[:0]
	off := in.off
	for _, v := range in.views[in.next:] {
		if v = v[off:]; len(v) > 0 {
			in.iov = appendIovec(in.iov, v)
		}
		off = 0
	}
	in.iov = appendIovec(in.iov, in.buf[:windowLarge])
	in.op.Kind = loop.Recvmsg
	in.op.Iov = in.iov
}

func appendIovec(iov []unix.Iovec, b []byte) []unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return append(iov, v)
}

type recvSide Conn

// OpDone takes what the socket delivered.
func (s *recvSide) OpDone(_ *loop.Op, res int) {
	c := (*Conn)(s)
	if c.state == open {
		c.received(res)
		c.receive()
	}
	if c.state != open {
		c.finish()
	}
}

func (c *Conn) received(res int) {
	in := &c.in
	switch {
	case res == -int(unix.EINTR) || res == -int(unix.EAGAIN):
		return
	case res < 0:
		c.fail("receive from", unix.Errno(-res))
		return
	case res == 0:
		if in.stage != atHeader || in.w > in.r {
			c.fail("receive from", ErrTruncated)
		} else {
			c.fail("receive from", ErrPeerClosed)
		}
		return
	}
	c.ka.heard = true
	if in.direct {
		n := min(res, in.left)
		in.advance(n)
		in.w = res - n
	} else {
		in.w += res
		if res == len(in.op.Buf) {
			in.window = min(2*in.window, len(in.buf))
		}
	}
	c.parse()
	c.counters.received(in.frames, uint64(res))
	c.counters.copied.Add(uint64(in.copied))
	in.frames, in.copied = 0, 0
}

// parse handles everything that is in the buffer. Each call to the handler may
// have closed the connection.
func (c *Conn) parse() {
	in := &c.in
	for c.state == open {
		switch in.stage {
		case atHeader:
			if in.w-in.r < HeaderSize {
				return
			}
			if err := in.hdr.Decode(in.buf[in.r:in.w]); err != nil {
				c.fail("receive from", err)
				return
			}
			in.r += HeaderSize
			in.stage = atSums
		case atSums:
			n := 8 * int(in.hdr.Sums)
			if in.w-in.r < n {
				return
			}
			copy(in.sums[:n], in.buf[in.r:in.w])
			in.r += n
			in.stage = atIncoming
			if in.hdr.Op == OpPing {
				c.pinged()
				c.arrived()
			}
		case atIncoming:
			if !c.incoming() {
				return
			}
		case atPayload:
			in.takeBuffered()
			if in.left > 0 {
				return
			}
			in.views = nil
			c.arrived()
			c.handler.Frame(c, &in.hdr, in.sums[:8*int(in.hdr.Sums)])
		}
	}
}

// arrived makes the next bytes a new frame's.
func (c *Conn) arrived() {
	c.in.stage = atHeader
	c.in.frames++
}

// incoming asks the handler for memory. It reports whether parsing goes on.
func (c *Conn) incoming() bool {
	in := &c.in
	in.paused = true // so that a Resume from inside Incoming is not lost
	views, ok := c.handler.Incoming(c, &in.hdr)
	if c.state != open {
		return false
	}
	if !ok {
		c.counters.pauses.Add(1)
		return false
	}
	in.paused, in.ready = false, false
	in.left = int(in.hdr.Payload)
	in.next, in.off = 0, 0
	in.views = nil
	if in.left > 0 {
		in.views = views
		total := 0
		for _, v := range views {
			total += len(v)
		}
		if total != in.left || len(views) > MaxViews {
			panic(fmt.Sprintf("transport: Incoming gave %d bytes in %d views for a payload of %d",
				total, len(views), in.left))
		}
	}
	if in.hdr.Payload >= SmallPayload {
		in.window = windowLarge
	} else {
		in.window = max(in.window, windowSmall)
	}
	in.stage = atPayload
	return true
}

// takeBuffered moves what the buffer has of the payload to the views.
func (in *inbound) takeBuffered() {
	for in.left > 0 && in.r < in.w {
		n := copy(in.views[in.next][in.off:], in.buf[in.r:in.w])
		in.r += n
		in.copied += n
		in.advance(n)
	}
}

// advance counts n bytes as having arrived in the views.
func (in *inbound) advance(n int) {
	in.left -= n
	in.off += n
	for in.next < len(in.views) && in.off >= len(in.views[in.next]) {
		in.off -= len(in.views[in.next])
		in.next++
	}
}
