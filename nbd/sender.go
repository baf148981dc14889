// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// sender is the sending side of a connection: a queue of pieces that are ready,
// and one batch of them that is being sent.
type sender struct {
	conn       *Conn
	op         loop.Op
	head, tail *piece // ready, linked by link
	sent       *piece // pieces whose buffers the batch refers to
	bytes      []byte // headers and copied payload of the batch
	used       int
	iov        []unix.Iovec
	iovNext    int // first vector not sent
	joinable   bool
	progress   int64
}

func (s *sender) init(c *Conn) {
	s.conn = c
	s.bytes = make([]byte, txSize)
	s.iov = make([]unix.Iovec, 0, txVectors)
	s.op.Done = c
	s.op.FD = c.fd
	s.op.Kind = loop.Sendmsg
	s.op.Flags = unix.MSG_NOSIGNAL
}

// pending reports whether something is still to be sent.
func (s *sender) pending() bool { return s.head != nil || s.op.Active() }

// enqueue adds the reply that p carries. It is sent at the end of this turn.
func (s *sender) enqueue(p *piece) {
	p.link = nil
	if s.tail == nil {
		s.head = p
	} else {
		s.tail.link = p
	}
	s.tail = p
	s.conn.schedule()
}

// flush builds a batch of what is ready and sends it.
func (s *sender) flush() {
	if s.op.Active() || s.head == nil {
		return
	}
	s.used, s.iovNext, s.iov, s.joinable = 0, 0, s.iov[:0], false
	for s.head != nil {
		p := s.head
		next := p.link
		if !s.emit(p) {
			break
		}
		// Freed or not, p is not used again before this turn ends.
		s.conn.port.meter.replied(&p.Request, s.conn.port.loop.Now())
		s.head = next
	}
	if s.head == nil {
		s.tail = nil
	}
	s.progress = s.conn.port.loop.Now()
	s.op.Iov = s.iov
	s.conn.port.loop.Submit(&s.op)
}

// done goes on with a batch that was sent in part, or ends it.
func (s *sender) done(res int) {
	c := s.conn
	if c.closing {
		return
	}
	if res == -int(unix.EINTR) || res == -int(unix.EAGAIN) {
		res = 0
	} else if res <= 0 {
		c.fail(fmt.Errorf("nbd: send to the client: %w", unix.Errno(-res)))
		return
	}
	if res > 0 {
		s.progress = c.port.loop.Now()
	}
	for s.iovNext < len(s.iov) {
		v := &s.iov[s.iovNext]
		if uint64(res) < v.Len {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), res))
			v.SetLen(int(v.Len) - res)
			s.op.Iov = s.iov[s.iovNext:]
			c.port.loop.Submit(&s.op)
			return
		}
		res -= int(v.Len)
		s.iovNext++
	}
	s.endBatch()
	c.schedule() // more may be ready, or the connection waits for its end
}

// endBatch frees what the batch referred to.
func (s *sender) endBatch() {
	for p := s.sent; p != nil; {
		next := p.link
		s.finish(p)
		p = next
	}
	s.sent = nil
	s.iov = s.iov[:0]
}

// drop frees all replies that cannot be sent any more. No batch is active.
func (s *sender) drop() {
	for p := s.head; p != nil; {
		next := p.link
		s.finish(p)
		p = next
	}
	s.head, s.tail = nil, nil
	s.endBatch()
}

// finish frees a piece whose reply is sent, and its request with the last one.
func (s *sender) finish(p *piece) {
	c, r := s.conn, p.req
	if r.whole {
		c.freeWhole(r)
	} else {
		c.freeThe(p)
	}
	if r.all && r.out == 0 && c.cur != r {
		c.freeRequest(r)
	}
}

// emit appends p's reply to the batch; false when it has no room.
func (s *sender) emit(p *piece) bool {
	r := p.req
	switch {
	case p.reply == replySimple:
		return s.emitSimple(p, r)
	case p.reply == replyStatus && r.err == nil:
		return s.emitStatus(p, r)
	case p.reply == replyChunk && p.Err == nil:
		return s.emitData(p, uint64(len(p.Data)), r.all && r.unsent == 1)
	case p.reply == replyChunk:
		return s.emitError(p, p.Err, chunkErrorOffset, r.all && r.unsent == 1)
	case r.err != nil:
		return s.emitError(p, r.err, chunkError, true)
	case r.length == 0:
		b := s.room(structuredHeaderSize)
		if b == nil {
			return false
		}
		putChunk(b, chunkFlagDone, chunkNone, r.cookie, 0)
		s.finish(p)
		return true
	}
	return s.emitData(p, uint64(r.length), true)
}

func (s *sender) emitSimple(p *piece, r *request) bool {
	length := uint64(0)
	if r.cmd == cmdRead && r.err == nil {
		length = uint64(r.length)
	}
	if !s.fits(simpleReplySize, length, r) {
		return false
	}
	putSimple(s.room(simpleReplySize), errno(r.err), r.cookie)
	s.payload(p, length)
	return true
}

// emitData is a chunk with length bytes of data from p's offset on: p's own, or
// those of all pieces of a whole read.
func (s *sender) emitData(p *piece, length uint64, done bool) bool {
	r := p.req
	const head = structuredHeaderSize + 8
	if !s.fits(head, length, r) {
		return false
	}
	b := s.room(head)
	putChunk(b, doneFlag(done), chunkOffsetData, r.cookie, uint32(8+length))
	binary.BigEndian.PutUint64(b[structuredHeaderSize:], p.Off)
	r.unsent--
	s.payload(p, length)
	return true
}

// emitError is an error chunk: number, text, and the offset where it names one.
func (s *sender) emitError(p *piece, err error, kind uint16, done bool) bool {
	r := p.req
	text := err.Error()
	if len(text) > 256 {
		text = text[:256]
	}
	n := 4 + 2 + len(text)
	if kind == chunkErrorOffset {
		n += 8
	}
	b := s.room(structuredHeaderSize + n)
	if b == nil {
		return false
	}
	r.unsent--
	be := binary.BigEndian
	putChunk(b, doneFlag(done), kind, r.cookie, uint32(n))
	b = b[structuredHeaderSize:]
	be.PutUint32(b, errno(err))
	be.PutUint16(b[4:], uint16(len(text)))
	copy(b[6:], text)
	if kind == chunkErrorOffset {
		be.PutUint64(b[6+len(text):], p.Off)
	}
	s.finish(p)
	return true
}

// emitStatus is the block status chunk: context, then pairs of length and state.
func (s *sender) emitStatus(p *piece, r *request) bool {
	limit := maxExtents
	if r.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	count := mergeExtents(r, limit, nil)
	n := 4 + 8*count
	b := s.room(structuredHeaderSize + n)
	if b == nil {
		return false
	}
	putChunk(b, chunkFlagDone, chunkBlockStatus, r.cookie, uint32(n))
	binary.BigEndian.PutUint32(b[structuredHeaderSize:], contextAllocationID)
	mergeExtents(r, limit, b[structuredHeaderSize+4:])
	s.finish(p)
	return true
}

// mergeExtents joins the extents of all pieces, in order, up to the first gap,
// and writes at most limit of them to b (if not nil). It returns their number.
func mergeExtents(r *request, limit int, b []byte) int {
	count := 0
	var run uint64
	var hole bool
	put := func() {
		if b != nil && run > 0 {
			state := uint32(0)
			if hole {
				state = stateHole | stateZero
			}
			binary.BigEndian.PutUint32(b[8*count:], uint32(run))
			binary.BigEndian.PutUint32(b[8*count+4:], state)
		}
		if run > 0 {
			count++
		}
		run = 0
	}
	for p := r.first; p != nil; p = p.sibling {
		covered := uint64(0)
		for _, e := range p.Extents {
			if run > 0 && e.Hole != hole {
				put()
				if count == limit {
					return count
				}
			}
			hole = e.Hole
			run += e.Length
			covered += e.Length
		}
		if covered < p.Len {
			break
		}
	}
	put()
	return count
}

func doneFlag(done bool) uint16 {
	if done {
		return chunkFlagDone
	}
	return 0
}

// fits reports whether a header and its payload find room in the batch: a short
// payload in the bytes, a long one in the vectors.
func (s *sender) fits(head int, length uint64, r *request) bool {
	if length < copyLimit {
		return s.used+head+int(length) <= len(s.bytes) && len(s.iov) < cap(s.iov)
	}
	vectors := 2
	if r.whole {
		vectors += r.out
	}
	return s.used+head <= len(s.bytes) && len(s.iov)+vectors <= cap(s.iov)
}

// room returns n bytes of the batch, or nil. Adjacent bytes share a vector.
func (s *sender) room(n int) []byte {
	if s.used+n > len(s.bytes) || !s.joinable && len(s.iov) == cap(s.iov) {
		return nil
	}
	b := s.bytes[s.used : s.used+n]
	s.used += n
	if s.joinable {
		v := &s.iov[len(s.iov)-1]
		v.SetLen(int(v.Len) + n)
		return b
	}
	s.vector(b)
	s.joinable = true
	return b
}

func (s *sender) vector(b []byte) {
	s.iov = append(s.iov, unix.Iovec{Base: unsafe.SliceData(b)})
	s.iov[len(s.iov)-1].SetLen(len(b))
	s.joinable = false
}

// payload appends length bytes of data: copied and the piece freed, or by
// reference and the piece kept until the batch is sent.
func (s *sender) payload(p *piece, length uint64) {
	if length < copyLimit {
		if length > 0 {
			dst := s.room(int(length))
			if p.req.whole {
				for q := p; q != nil; q = q.sibling {
					dst = dst[copy(dst, q.Data):]
				}
			} else {
				copy(dst, p.Data)
			}
		}
		s.finish(p)
		return
	}
	if p.req.whole {
		for q := p; q != nil; q = q.sibling {
			s.vector(q.Data)
		}
	} else {
		s.vector(p.Data)
	}
	p.link = s.sent
	s.sent = p
}
