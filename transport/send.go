// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// Sender is told when a message has left.
type Sender interface {
	// MsgSent is called once for each Send, on the loop: with nil when the kernel
	// has taken all of m's bytes, or with the error that the connection was closed
	// with. The message may be sent again from here.
	MsgSent(m *Msg, err error)
}

// Msg is one frame to be sent. It is embedded by value in the caller's own
// request structure and reused. It and its bytes must stay untouched from Send
// to MsgSent.
type Msg struct {
	Header  Header   // Payload and Sums are filled in by Send
	Sums    []byte   // 8 bytes for each block of the payload, or none
	Payload [][]byte // at most MaxViews pieces, MaxPayload bytes
	Sent    Sender   // may be nil

	next   *Msg
	end    int // offset of its last byte within the batch being sent
	queued bool
}

// Queued reports whether the message is between Send and MsgSent.
func (m *Msg) Queued() bool { return m.queued }

type msgQueue struct {
	head, tail *Msg
}

func (q *msgQueue) push(m *Msg) {
	m.next = nil
	if q.tail == nil {
		q.head = m
	} else {
		q.tail.next = m
	}
	q.tail = m
}

func (q *msgQueue) pop() *Msg {
	m := q.head
	q.head = m.next
	if q.head == nil {
		q.tail = nil
	}
	m.next = nil
	return m
}

// outbound is the sending half of a connection: a queue, and one batch at a time
// in the kernel. Headers, checksums and small payloads of a batch are copied
// into buf; iov strings them together with the large payloads.
type outbound struct {
	op     loop.Op
	queue  msgQueue
	flight msgQueue // the messages of the batch
	buf    []byte
	iov    []unix.Iovec // what is left of the batch
	total  int          // bytes of the batch
	done   int          // of these, taken by the kernel
	copied int          // bytes of payload that lie in buf
}

func (out *outbound) init(c *Conn) {
	out.buf = make([]byte, 0, sendBufSize)
	out.iov = make([]unix.Iovec, 0, 16)
	out.op.FD = c.fd
	// With WAITALL a ring sends all of a batch in one operation.
	out.op.Flags = unix.MSG_NOSIGNAL | unix.MSG_WAITALL
	out.op.Done = (*sendSide)(c)
}

func (out *outbound) forget() {
	clear(out.iov[:cap(out.iov)])
	out.buf, out.op.Buf, out.op.Iov = nil, nil, nil
}

// Send queues m. It leaves at the end of this turn, together with all others
// that were queued by then, or when the batch before it has left. After Close,
// MsgSent comes with the error.
func (c *Conn) Send(m *Msg) {
	if m.queued {
		panic("transport: message sent while it is queued")
	}
	n := 0
	for _, v := range m.Payload {
		n += len(v)
	}
	if n > MaxPayload || len(m.Payload) > MaxViews ||
		len(m.Sums) != 0 && len(m.Sums) != 8*Blocks(n) {
		panic(fmt.Sprintf("transport: message with %d bytes in %d views and %d bytes of checksums",
			n, len(m.Payload), len(m.Sums)))
	}
	m.Header.Payload = uint32(n)
	m.Header.Sums = uint16(len(m.Sums) / 8)
	m.queued = true
	c.out.queue.push(m)
	if !c.out.op.Active() || c.state == closed {
		c.runLater()
	}
}

// flush puts the next batch together and sends it.
func (c *Conn) flush() {
	out := &c.out
	if out.op.Active() || out.queue.head == nil {
		return
	}
	out.gather()
	c.counters.copied.Add(uint64(out.copied))
	c.push()
}

// gather moves messages from the queue to the batch while they fit.
func (out *outbound) gather() {
	out.buf, out.iov = out.buf[:0], out.iov[:0]
	out.total, out.done, out.copied = 0, 0, 0
	run := 0 // start of the part of buf that is not in iov yet
	for m := out.queue.head; m != nil && out.total < sendBytes; m = out.queue.head {
		small := m.Header.Payload < SmallPayload
		room := HeaderSize + len(m.Sums)
		pieces := 2 // a run before, a run behind
		if small {
			room += int(m.Header.Payload)
		} else {
			pieces += len(m.Payload)
		}
		if room > cap(out.buf)-len(out.buf) || pieces > sendIovs-len(out.iov) {
			break // never the first: limits.go sees to that
		}
		n := len(out.buf)
		out.buf = out.buf[:n+HeaderSize]
		m.Header.Encode(out.buf[n:])
		out.buf = append(out.buf, m.Sums...)
		if small {
			for _, v := range m.Payload {
				out.buf = append(out.buf, v...)
			}
			out.copied += int(m.Header.Payload)
		} else {
			out.iov = appendIovec(out.iov, out.buf[run:])
			run = len(out.buf)
			for _, v := range m.Payload {
				if len(v) > 0 {
					out.iov = appendIovec(out.iov, v)
				}
			}
		}
		out.total += HeaderSize + len(m.Sums) + int(m.Header.Payload)
		m.end = out.total
		out.flight.push(out.queue.pop())
	}
	if run < len(out.buf) {
		out.iov = appendIovec(out.iov, out.buf[run:])
	}
}

// push gives what is left of the batch to the kernel.
func (c *Conn) push() {
	out := &c.out
	if len(out.iov) == 1 {
		out.op.Kind = loop.Send
		out.op.Buf = unsafe.Slice(out.iov[0].Base, int(out.iov[0].Len))
	} else {
		out.op.Kind = loop.Sendmsg
		out.op.Iov = out.iov
	}
	c.loop.Submit(&out.op)
}

type sendSide Conn

// OpDone takes note of what the socket accepted.
func (s *sendSide) OpDone(_ *loop.Op, res int) {
	c := (*Conn)(s)
	if c.state == open {
		c.accepted(res)
	}
	if c.state != open {
		c.finish()
	}
}

func (c *Conn) accepted(res int) {
	out := &c.out
	switch {
	case res == -int(unix.EINTR) || res == -int(unix.EAGAIN):
		c.push()
		return
	case res < 0:
		c.fail("send to", unix.Errno(-res))
		return
	case res == 0: // never for a batch with bytes; sending again would spin
		c.fail("send to", io.ErrNoProgress)
		return
	}
	c.ka.spoke = true
	out.done += res
	frames := uint64(0)
	// A Sender may close the connection or send again; the batch in hand is not
	// touched by either.
	for out.flight.head != nil && out.flight.head.end <= out.done {
		m := out.flight.pop()
		frames++
		m.sent(nil)
	}
	c.counters.sent(frames, uint64(res))
	if c.state != open {
		return
	}
	if out.done < out.total {
		out.skip(res)
		c.push()
	} else if out.queue.head != nil {
		c.runLater() // whatever else this turn sends joins the batch
	}
}

// skip takes n bytes off the front of the batch's pieces.
func (out *outbound) skip(n int) {
	i := 0
	for n > 0 && n >= int(out.iov[i].Len) {
		n -= int(out.iov[i].Len)
		i++
	}
	out.iov = out.iov[:copy(out.iov, out.iov[i:])]
	if n > 0 {
		v := &out.iov[0]
		rest := unsafe.Slice(v.Base, int(v.Len))[n:]
		v.Base = unsafe.SliceData(rest)
		v.SetLen(len(rest))
	}
}

func (m *Msg) sent(err error) {
	m.queued = false
	if m.Sent != nil {
		m.Sent.MsgSent(m, err)
	}
}

// dropAll tells all senders that their messages will not leave. What they send
// in response is told in the next round, not here.
func (c *Conn) dropAll() {
	flight, queue := c.out.flight, c.out.queue
	c.out.flight, c.out.queue = msgQueue{}, msgQueue{}
	for flight.head != nil {
		flight.pop().sent(c.err)
	}
	for queue.head != nil {
		queue.pop().sent(c.err)
	}
}
