// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"braid/transport/bio"
	"braid/transport/buf"
)

// request is one NBD request from its header to its reply.
type request struct {
	link   *request
	busy   bool
	cmd    uint16
	flags  uint16
	cookie uint64
	off    uint64
	length uint32
	start  int64 // loop time
	err    error // the first one

	issued uint64 // bytes of the range that pieces were made for
	all    bool   // no more pieces will come
	out    int    // pieces that are not free again
	unsent int    // pieces that are not in a batch yet
	left   int    // pieces that are not completed

	// whole requests are answered in one go: their pieces wait, in order, until
	// the last one has completed.
	whole       bool
	first, last *piece
}

// piece is a part of a request as the device sees it. The first of the last
// piece of a request to end carries the reply.
type piece struct {
	bio.Request
	conn    *Conn
	req     *request
	link    *piece // free list or send queue
	sibling *piece // next piece of a whole request
	reply   replyKind
}

// replyKind says what is sent for a piece.
type replyKind uint8

const (
	replySimple replyKind = iota // simple header, with the data of a whole read
	replyChunk                   // a data or error chunk of a structured read
	replyWhole                   // all data in one chunk, or an error chunk
	replyStatus                  // block status, or an error chunk
)

// check validates a request against the protocol and the device.
func (c *Conn) check(h *requestHeader) error {
	dev := c.port.dev
	allowed := cmdFlagFUA
	switch h.cmd {
	case cmdRead:
		if c.o.Structured {
			allowed |= cmdFlagDF
		}
	case cmdWrite, cmdFlush, cmdTrim, cmdCache:
	case cmdWriteZeroes:
		allowed |= cmdFlagNoHole | cmdFlagFastZero
	case cmdBlockStatus:
		allowed |= cmdFlagReqOne
	default:
		return errBadCmd
	}
	if h.flags&^allowed != 0 {
		return errBadFlags
	}
	if c.draining {
		return bio.ErrShutdown
	}
	changes := h.cmd == cmdWrite || h.cmd == cmdTrim || h.cmd == cmdWriteZeroes
	if changes && (c.o.ReadOnly || dev.ReadOnly()) {
		return bio.ErrReadOnly
	}
	if h.cmd == cmdFlush {
		if h.off != 0 || h.length != 0 {
			return bio.ErrInvalid
		}
		return nil
	}
	if size := dev.Size(); h.off > size || uint64(h.length) > size-h.off {
		if h.cmd == cmdWrite || h.cmd == cmdWriteZeroes {
			return errWriteEnd
		}
		return errBeyondEnd
	}
	return c.checkLength(h)
}

func (c *Conn) checkLength(h *requestHeader) error {
	switch h.cmd {
	case cmdRead, cmdWrite:
		if h.length > MaxPayload {
			if h.flags&cmdFlagDF != 0 {
				return errFragment
			}
			return errTooLong
		}
	case cmdBlockStatus:
		if !c.o.Allocation {
			return errNoContext
		}
		if h.length == 0 {
			return bio.ErrInvalid
		}
	}
	return nil
}

// begin starts the request of h. There is a free request and a free piece.
func (c *Conn) begin(h *requestHeader) {
	if h.cmd == cmdDisc {
		c.ending = true
		c.schedule()
		return
	}
	err := c.check(h)
	if h.cmd == cmdWrite && err != nil && h.length > maxWriteDrain {
		c.fail(errPayload)
		return
	}
	r := c.freeReq
	c.freeReq = r.link
	*r = request{busy: true, cmd: h.cmd, flags: h.flags, cookie: h.cookie, off: h.off,
		length: h.length, start: c.port.loop.Now(), err: err}
	r.whole = h.cmd == cmdBlockStatus ||
		h.cmd == cmdRead && (!c.o.Structured || h.flags&cmdFlagDF != 0)
	c.busy++
	c.port.stats.count(r)
	c.cur = r
	switch {
	case err == nil:
		c.rx.phase = phaseIssue
	case h.cmd == cmdWrite:
		c.rx.phase, c.rx.drainLeft = phaseDrain, int(h.length)
	default:
		c.answerCurrent()
	}
}

// answerCurrent answers the current request without the device.
func (c *Conn) answerCurrent() {
	r := c.cur
	c.cur = nil
	c.rx.phase = phaseHeader
	r.all = true
	p := c.takePiece(r)
	switch {
	case !c.o.Structured:
	case r.cmd == cmdBlockStatus:
		p.reply = replyStatus
	case r.cmd == cmdRead:
		p.reply = replyWhole
	}
	if r.whole {
		r.first, r.last = p, p
	}
	c.tx.enqueue(p)
}

// issue goes on with the current request until it is wholly at the device, its
// next piece has to be received, or something is lacking; then it is paused.
func (c *Conn) issue() {
	r := c.cur
	if r.cmd == cmdFlush {
		p := c.takePiece(r)
		p.Op, p.Flags, p.Off, p.Len = bio.Flush, 0, 0, 0
		c.issuedAll(r)
		c.submit(p)
		return
	}
	if r.length == 0 {
		c.answerCurrent()
		return
	}
	if r.cmd == cmdRead && r.whole {
		c.issueWhole(r)
		return
	}
	for !c.closing {
		if r.out >= r.window() || c.freePiece == nil {
			c.pause()
			return
		}
		n := r.nextLength()
		var b *buf.Buf
		if r.cmd == cmdRead || r.cmd == cmdWrite {
			if b = c.takeBuffer(int((r.off+r.issued)%buf.Align + n)); b == nil {
				c.pause()
				return
			}
			c.port.arena.leave(c)
		}
		p := c.takePiece(r)
		c.place(p, n, b)
		if r.cmd == cmdWrite {
			c.rx.target, c.rx.got, c.rx.phase = p, 0, phasePayload
			c.rx.progress = c.port.loop.Now()
			return
		}
		if r.finishedIssue() {
			c.issuedAll(r)
			c.submit(p)
			return
		}
		c.submit(p)
	}
}

// received submits the piece that has all its payload.
func (c *Conn) received(p *piece) {
	r := p.req
	c.rx.target = nil
	if r.finishedIssue() {
		c.issuedAll(r)
	} else {
		c.rx.phase = phaseIssue
	}
	c.submit(p)
}

// issueWhole takes the pieces and buffers of a read that is answered in one go.
// Only the connection at the head of the arena's queue may hold some of them
// while it waits for the rest; so two such reads cannot each hold half of what
// both need.
func (c *Conn) issueWhole(r *request) {
	for !r.finishedIssue() {
		if c.freePiece == nil {
			c.pause()
			return
		}
		n := r.nextLength()
		b := c.takeBuffer(int((r.off+r.issued)%buf.Align + n))
		if b == nil {
			if c.queued && !c.port.arena.first(c) {
				c.freeWhole(r)
				r.issued = 0
			}
			c.pause()
			return
		}
		p := c.takePiece(r)
		c.place(p, n, b)
		r.append(p)
	}
	c.port.arena.leave(c)
	c.issuedAll(r)
	r.left = r.out // all of them, before the first can complete
	for p := r.first; p != nil; {
		next := p.sibling // p may be free again when submit returns
		r.left--
		c.submit(p)
		p = next
	}
}

// issuedAll makes room for the next request.
func (c *Conn) issuedAll(r *request) {
	r.all = true
	c.cur = nil
	c.rx.phase = phaseHeader
}

// window is how many pieces r may have out.
func (r *request) window() int {
	if r.cmd == cmdBlockStatus {
		return statusPieces
	}
	return windowPieces
}

// limit is the multiple of the offset that a piece of r must not cross.
func (r *request) limit() uint64 {
	switch r.cmd {
	case cmdRead, cmdWrite:
		return dataPiece
	case cmdBlockStatus:
		return statusPiece
	}
	return rangePiece
}

// nextLength is the length of the next piece.
func (r *request) nextLength() uint64 {
	at, limit := r.off+r.issued, r.limit()
	return min(limit-at%limit, uint64(r.length)-r.issued)
}

// finishedIssue reports whether pieces were made for all that r will do. A block
// status may answer for the start of its range only.
func (r *request) finishedIssue() bool {
	return r.issued == uint64(r.length) || r.cmd == cmdBlockStatus && r.out == statusPieces
}

func (r *request) append(p *piece) {
	if r.last == nil {
		r.first = p
	} else {
		r.last.sibling = p
	}
	r.last = p
}

// place sets the range of the next piece of its request and its buffer.
func (c *Conn) place(p *piece, n uint64, b *buf.Buf) {
	r := p.req
	p.Off, p.Len = r.off+r.issued, n
	r.issued += n
	if b != nil {
		in := p.Off % buf.Align
		p.Buf, p.Data = b, b.B[in:in+n]
	}
	p.Flags = 0
	switch r.cmd {
	case cmdRead:
		p.Op = bio.Read
	case cmdWrite:
		p.Op = bio.Write
	case cmdTrim:
		p.Op = bio.Trim
	case cmdCache:
		p.Op = bio.Cache
	case cmdWriteZeroes:
		p.Op = bio.WriteZeroes
	case cmdBlockStatus:
		p.Op = bio.BlockStatus
		p.Extents = p.Extents[:0]
		r.append(p)
		return
	}
	if r.cmd != cmdRead && r.cmd != cmdCache && r.flags&cmdFlagFUA != 0 {
		p.Flags |= bio.FUA
	}
	if r.flags&cmdFlagNoHole != 0 {
		p.Flags |= bio.NoHole
	}
	if r.flags&cmdFlagFastZero != 0 {
		p.Flags |= bio.FastZero
	}
}

func (c *Conn) submit(p *piece) {
	p.req.left++
	c.atDevice++
	p.Err = nil
	p.Trace.Begin(p.req.start, c.port.loop.Now())
	c.port.dev.Submit(&p.Request)
}

// RequestDone is the device's completion of a piece.
func (p *piece) RequestDone(*bio.Request) {
	c, r := p.conn, p.req
	c.atDevice--
	r.left--
	p.Trace.Done = c.port.loop.Now()
	if p.Err != nil && r.err == nil {
		r.err = p.Err
	}
	complete := r.all && r.left == 0
	c.schedule()
	switch {
	case c.closing:
		c.abandonPiece(p)
	case r.whole:
		if complete {
			c.answerWhole(r)
		}
	case r.cmd == cmdRead:
		p.reply = replyChunk
		c.tx.enqueue(p)
	case complete:
		c.releaseBuffer(p)
		p.reply = replySimple
		c.tx.enqueue(p)
	default:
		c.freeThe(p)
	}
}

func (c *Conn) answerWhole(r *request) {
	p := r.first
	switch {
	case r.cmd == cmdBlockStatus:
		p.reply = replyStatus
	case c.o.Structured:
		p.reply = replyWhole
	default:
		p.reply = replySimple
	}
	c.tx.enqueue(p)
}

// abandonPiece frees a piece of a closing connection, with its request if it
// was the last one at the device.
func (c *Conn) abandonPiece(p *piece) {
	r := p.req
	if !r.whole {
		c.freeThe(p)
	}
	c.abandon(r)
}

// abandon frees a request of a closing connection once the device has none of
// its pieces and no reply of it is queued.
func (c *Conn) abandon(r *request) {
	if r.left > 0 || c.cur == r || !r.busy {
		return
	}
	if r.whole {
		c.freeWhole(r)
	}
	if r.out == 0 {
		c.port.stats.Dropped++
		c.freeRequest(r)
	}
}

func (c *Conn) freeWhole(r *request) {
	for p := r.first; p != nil; {
		next := p.sibling
		c.freeThe(p)
		p = next
	}
	r.first, r.last = nil, nil
}

func (c *Conn) freeRequest(r *request) {
	if r.err != nil {
		c.port.stats.Errors++
	}
	if c.closed {
		c.port.orphaned(-1)
	}
	r.busy = false
	r.link = c.freeReq
	c.freeReq = r
	c.busy--
	c.kick()
}

func (c *Conn) takePiece(r *request) *piece {
	p := c.freePiece
	c.freePiece = p.link
	p.link, p.sibling, p.req, p.reply = nil, nil, r, replySimple
	p.Err, p.Gone, p.Trace.Submitted = nil, false, 0
	r.out++
	r.unsent++
	return p
}

// freeThe gives a piece and its buffer back.
func (c *Conn) freeThe(p *piece) {
	c.releaseBuffer(p)
	p.req.out--
	p.req, p.sibling = nil, nil
	p.link = c.freePiece
	c.freePiece = p
	c.kick()
}

// takeBuffer returns a buffer or nil; then the connection is queued for one, or
// holds so much that one of its own will come back. After success the caller
// leaves the queue when it needs no more.
func (c *Conn) takeBuffer(n int) *buf.Buf {
	a := c.port.arena
	if c.held > 0 && c.held+n > heldLimit || !a.admit(c) {
		return a.spill.get(c.port, n)
	}
	b := a.pool.Get(n)
	if b == nil {
		if b = a.spill.get(c.port, n); b != nil {
			return b
		}
		a.wait(c)
		if b = a.pool.Get(n); b == nil {
			return nil
		}
	}
	c.held += len(b.B)
	return b
}

func (c *Conn) releaseBuffer(p *piece) {
	if p.Buf == nil {
		return
	}
	if !c.port.arena.spill.release(p.Buf) {
		c.held -= len(p.Buf.B)
		c.port.arena.pool.Release(p.Buf)
	}
	p.Buf, p.Data = nil, nil
}

func (s *Counters) count(r *request) {
	switch {
	case r.err != nil: // counted at its end
	case r.cmd == cmdRead:
		s.Reads++
		s.ReadBytes += uint64(r.length)
	case r.cmd == cmdWrite:
		s.Writes++
		s.WriteBytes += uint64(r.length)
	case r.cmd == cmdFlush:
		s.Flushes++
	default:
		s.Others++
	}
}
