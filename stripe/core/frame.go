// SPDX-License-Identifier: Apache-2.0

package core

import (
	"braid/cluster"
	"braid/transport"
)

// Frame is one request frame. The caller of the core reads Header, Sums and
// Payload from the Send effect until Sent.
//
// Its id, which the reply brings back, is its place in the table in the low
// half, and a count of uses in the high half: a late reply to an earlier use is
// recognised and thrown away.
type Frame struct {
	Header  transport.Header
	Sums    []byte
	Payload [][]byte

	uses      uint32
	used      bool
	sent      bool  // the transport has let go of it
	ended     bool  // answered, or its link is closed
	pinned    bool  // its payload is the request's bytes, which must stay until sent
	receiving bool  // its reply is on its way into the request's bytes
	copy      int32 // who it is for; none: nobody any more
	req       int32 // whose bytes pinned and receiving are about
	dev       int32
	link      int32
	at        int64  // when it was given to the link
	list      []byte // where the reply's list lies
}

// Frame returns the frame of a Send effect.
func (c *Core) Frame(f int32) *Frame { return &c.frames[f] }

// enqueue sends a copy as soon as its device can take it.
func (c *Core) enqueue(ref int32) {
	cp := &c.copies[ref]
	d := &c.devs[cp.dev]
	cp.kind = copyQueued
	c.push(&d.queue, ref)
	c.pump(cp.dev)
	if cp.kind == copyQueued {
		c.waits(cp)
	}
}

// pump sends what is queued for a device.
func (c *Core) pump(dev int32) {
	d := &c.devs[dev]
	for d.queue.head != none {
		l := c.pickLink(d)
		if l == none {
			return
		}
		if len(c.freeFrames) == 0 {
			c.hungry = true
			return
		}
		ref := d.queue.head
		c.unlink(&d.queue, ref)
		c.send(ref, l)
	}
}

// pickLink takes a device's open links in turn.
func (c *Core) pickLink(d *device) int32 {
	if !d.reachable() {
		return none
	}
	d.turn++
	return d.open[d.turn%uint32(len(d.open))]
}

func (c *Core) send(ref, l int32) {
	fi := c.freeFrames[len(c.freeFrames)-1]
	c.freeFrames = c.freeFrames[:len(c.freeFrames)-1]
	c.frameHigh = max(c.frameHigh, int(fi)+1)
	f := &c.frames[fi]
	cp := &c.copies[ref]
	f.uses++
	f.used, f.sent, f.ended, f.pinned, f.receiving = true, false, false, false, false
	f.copy, f.req, f.dev, f.link, f.at = ref, none, cp.dev, l, c.now
	f.Sums, f.Payload = nil, nil
	f.Header = transport.Header{ID: uint64(f.uses)<<32 | uint64(fi), Session: c.links[l].session}
	switch p := c.pieceOf(ref); {
	case p != nil:
		c.describe(f, p)
	case c.kindOf(ref) == listCopy:
		f.Header.Op, f.Header.Chunk = transport.OpALList, c.devs[cp.dev].cursor
	case c.kindOf(ref) == confirmCopy:
		f.Header.Op = transport.OpConfirm
	default:
		// The version says in which groups the device has to count as in sync for
		// this flush to let regions leave its activity log: those under which it was
		// drained. A newer one promises no more, and a device that is always a map
		// behind would never take it.
		f.Header.Op, f.Header.Interval = transport.OpFlush, c.flush.interval
		f.Header.Chunk = c.flush.version
	}
	if cp.tries > 0 {
		c.stats.Retries++
	}
	if cp.tries < 200 {
		cp.tries++
	}
	cp.kind, cp.frame, cp.epoch = copyInFlight, fi, f.Header.Epoch
	c.devs[cp.dev].inFlight++
	c.stats.Frames[f.Header.Op&31]++
	c.emit(Effect{Kind: Send, Frame: fi, Link: l})
}

func (c *Core) describe(f *Frame, p *piece) {
	h := &f.Header
	g := &c.groups[p.group]
	h.Op, h.Flags = p.op, p.flags
	h.PG, h.Epoch = uint32(g.id), g.epoch
	h.Chunk, h.Offset, h.Length = p.chunk, p.off, p.length
	f.req = p.req
	if r := c.reqs[p.req].r; r != nil && r.Trace.Sent == 0 {
		r.Trace.Sent = c.now
	}
	switch {
	case p.undo:
		h.Op, h.Flags, h.Interval = transport.OpTrim, 0, p.interval
	case p.op == transport.OpWrite:
		h.Interval, h.Payload, h.Sums = p.interval, p.length, uint16(p.length/cluster.BlockSize)
		f.Sums, f.Payload = p.sums, p.views
		f.pinned = true
		c.reqs[p.req].pins++
	case p.op == transport.OpStamp:
		h.Interval, h.Offset, h.Length = p.interval, 0, 0
	case p.isWrite():
		h.Interval = p.interval
	case p.op == transport.OpRead:
		c.readsOut++
		c.wantCheck()
		if c.now > g.askAt {
			c.askConfirm(g, f.dev)
		}
	case p.op == transport.OpSums, p.op == transport.OpStatus:
		h.Offset, h.Length = 0, 0
	}
}

// Sent says that the transport has let go of a frame's bytes: it is sent, or its
// connection has failed.
func (c *Core) Sent(now int64, fi int32) {
	c.now = now
	f := &c.frames[fi]
	f.sent = true
	if f.pinned {
		f.pinned = false
		c.unpin(f.req)
	}
	if f.ended {
		c.freeFrame(fi)
	}
	c.run()
}

func (c *Core) unpin(slot int32) {
	q := &c.reqs[slot]
	q.pins--
	if q.pins == 0 && (q.r != nil || slot >= c.jobBase) {
		c.finishIfIdle(slot)
	}
}

// endFrame is called once a frame's reply has come or cannot come any more.
func (c *Core) endFrame(fi int32) {
	f := &c.frames[fi]
	f.ended = true
	c.devs[f.dev].inFlight--
	if f.Header.Op == transport.OpRead {
		c.readsOut--
	}
	if f.sent {
		c.freeFrame(fi)
	}
}

// endReceive lets go of the request's bytes after a reply's payload.
func (c *Core) endReceive(f *Frame, fi int32) {
	if !f.receiving {
		return
	}
	f.receiving = false
	if f.copy != none {
		if p := c.pieceOf(f.copy); p != nil && p.receiver == fi {
			p.receiver = none
		}
	}
	c.unpin(f.req)
}

func (c *Core) freeFrame(fi int32) {
	f := &c.frames[fi]
	f.used = false
	f.Sums, f.Payload, f.list = nil, nil, nil
	c.freeFrames = append(c.freeFrames, fi)
}

// lookup finds the frame that a reply on a link belongs to, or none.
func (c *Core) lookup(l int32, id uint64) int32 {
	fi := uint64(uint32(id))
	if fi >= uint64(len(c.frames)) {
		return none
	}
	f := &c.frames[fi]
	if !f.used || f.ended || f.uses != uint32(id>>32) || f.link != l {
		return none
	}
	return int32(fi)
}

// Frames is the size of the frame table: Send effects count from 0 below it.
func (c *Core) Frames() int { return len(c.frames) }
