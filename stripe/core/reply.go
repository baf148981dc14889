// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"strconv"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
	"braid/transport/bio"
)

// Incoming says where a reply's payload goes. wanted = false: nowhere, the
// caller receives and forgets it (a late reply, an error's text, the slower of
// two reads). An error means that the peer talks nonsense: close the link.
func (c *Core) Incoming(l int32, h *transport.Header) (dst [][]byte, wanted bool, err error) {
	if h.Flags&transport.FlagReply == 0 {
		if h.Payload == 0 && (h.Op == transport.OpLock || h.Op == transport.OpUnlock) {
			return nil, false, nil // see Request
		}
		return nil, false, fmt.Errorf("%w: a request, op %d", errReply, h.Op)
	}
	fi := c.lookup(l, h.ID)
	if fi == none || h.Payload == 0 || h.Status != transport.StatusOK ||
		c.links[l].state != linkOpen || c.frames[fi].copy == none {
		return nil, false, nil
	}
	f := &c.frames[fi]
	p := c.pieceOf(f.copy)
	switch {
	case h.Op != f.Header.Op || h.Flags&transport.FlagHole != 0:
	case h.Op == transport.OpALList && h.Sums == 0:
		f.list = make([]byte, h.Payload) // not more than MaxPayload
		return [][]byte{f.list}, true, nil
	case p == nil:
	case h.Op == transport.OpRead && h.Payload == p.length && int(h.Sums)*8 == sumsOf(p.length),
		h.Op == transport.OpCopy && h.Payload == p.length && int(h.Sums)*8 == sumsOf(p.length),
		h.Op == transport.OpSums && h.Payload == transport.SumTableSize && h.Sums == 0,
		h.Op == transport.OpStatus && h.Payload == bitmapSize:
		if p.receiver != none {
			return nil, false, nil
		}
		p.receiver = fi
		f.receiving = true
		c.reqs[f.req].pins++
		return p.views, true, nil
	}
	return nil, false, fmt.Errorf("%w: op %d with %d bytes and %d checksums", errReply,
		h.Op, h.Payload, h.Sums)
}

// Reply takes a complete reply. sums are its block checksums; text is what an
// error says, if anything. Both are looked at during the call only.
func (c *Core) Reply(now int64, l int32, h *transport.Header, sums, text []byte) {
	c.now = now
	fi := c.lookup(l, h.ID)
	if fi == none || c.links[l].state != linkOpen {
		return
	}
	f := &c.frames[fi]
	dev := f.dev
	if cluster.Incarnation(h.Interval) != c.links[l].inc {
		// Rule 5: an incarnation is bound to a connection. All that is in flight ends
		// with the links and is judged when a new one comes up.
		c.closeLinks(dev, "the device changed its incarnation")
		return
	}
	if h.Op != f.Header.Op {
		c.closeLink(l, errReply.Error())
		return
	}
	received := f.receiving
	c.endReceive(f, fi)
	if h.Status == transport.StatusOK {
		if h.Op == transport.OpRead {
			c.readTook(c.now - f.at)
		}
		// It may complete held reads, this frame's own among them where it is the
		// slower one of two: then nobody waits for the reply any more.
		c.confirm(dev, f.at)
		if f.list != nil {
			text, f.list = f.list, nil
		}
	}
	ref, op := f.copy, f.Header.Op
	f.copy = none
	c.endFrame(fi)
	c.measure(ref, f, h)
	if h.Status == transport.StatusFenced {
		c.lose(c.fencedError(serverText(&c.devs[dev], text)))
		return
	}
	c.pressed(h.Offset)
	if ref != none {
		c.deliver(ref, l, op, h, received, sums, text)
	}
	c.run()
}

func serverText(d *device, text []byte) string {
	if len(text) > 0 {
		return string(text)
	}
	return "server " + d.server + " says so"
}

func (c *Core) deliver(ref, l int32, op transport.Op, h *transport.Header, received bool, sums, text []byte) {
	cp := &c.copies[ref]
	cp.kind, cp.frame = copyLoose, none
	p := c.pieceOf(ref)
	if h.Status == transport.StatusNoSession {
		c.closeLink(l, "the server does not know the session")
		c.again(ref)
		return
	}
	switch {
	case p == nil && c.kindOf(ref) == listCopy:
		c.listReply(ref, l, h, text)
	case p == nil && c.kindOf(ref) == confirmCopy:
		cp.kind = copyNone // a good answer has been noted
	case p == nil:
		c.flushReply(ref, h, text)
	case p.directed:
		c.directedReply(ref, h, received, sums, text)
	case p.isWrite():
		c.writeReply(ref, op, h, text)
	default:
		c.readReply(ref, l, h, received, sums)
	}
}

// again sends a copy anew, wherever it may go.
func (c *Core) again(ref int32) {
	if p := c.pieceOf(ref); p == nil || p.isWrite() {
		c.enqueue(ref)
	} else {
		c.reroute(ref)
	}
}

// retryLater sends a copy again after a pause that grows.
func (c *Core) retryLater(ref int32, why transport.Status) {
	cp := &c.copies[ref]
	cp.kind, cp.why = copyDelayed, why
	cp.at = c.now + min(retryFirst<<min(cp.tries, 8), retryMost)
	c.waits(cp)
	c.push(&c.delayed, ref)
	c.want(cp.at)
}

func (c *Core) writeReply(ref int32, op transport.Op, h *transport.Header, text []byte) {
	cp := &c.copies[ref]
	pi := ref / MaxCopies
	p := &c.pieces[pi]
	switch h.Status {
	case transport.StatusOK:
		if p.undo && op != transport.OpTrim || c.groups[p.group].isForgotten(cp) {
			c.enqueue(ref)
		} else {
			c.acked(ref)
		}
	case transport.StatusNoSpace:
		if pi >= c.jobPieces { // there is nothing to give back: wait for room
			c.retryLater(ref, h.Status)
		} else {
			c.noSpace(ref)
		}
	case transport.StatusStaleEpoch, transport.StatusRefused:
		c.emit(Effect{Kind: NeedMap})
		c.retryLater(ref, h.Status)
	case transport.StatusLogFull:
		// A region that is in the log is never refused, and only a drained flush that
		// covers the write takes it out: so no earlier frame of this copy was applied,
		// and its fate is known. A flush makes room.
		cp.lost = false
		c.unreack(ref)
		c.retryLater(ref, h.Status)
		c.pressed(pressureMost)
	case transport.StatusRetry, transport.StatusBadSum:
		c.retryLater(ref, h.Status)
	default:
		cp.lost = true
		c.writeFailed(ref, h.Status, text)
	}
	if p.live && p.interval < c.interval {
		c.reissue(pi)
	}
}

// acked counts a copy as applied. When it was the last one the write is done.
func (c *Core) acked(ref int32) {
	cp := &c.copies[ref]
	pi := ref / MaxCopies
	p := &c.pieces[pi]
	cp.kind, cp.lost = copyDone, false
	p.open--
	c.unreack(ref)
	if p.open == 0 {
		c.writeDone(pi)
	}
}

// unreack: the flush that waits for the piece's older copies need not wait for
// this one any more.
func (c *Core) unreack(ref int32) {
	cp := &c.copies[ref]
	p := c.pieceOf(ref)
	if !cp.reack {
		return
	}
	cp.reack = false
	if p.reacks--; p.reacks == 0 {
		c.caughtUp()
	}
}

// noSpace handles a device that has no room for the chunk. The others may have
// it, and copies must not differ at completion (rule 17). As the chunk does not
// exist on that device, the range read as zeroes everywhere before this write:
// so it is trimmed where it was written, and only then the request waits or fails.
func (c *Core) noSpace(ref int32) {
	pi := ref / MaxCopies
	p := &c.pieces[pi]
	switch {
	case c.cfg.FailFull:
		p.err = bio.ErrNoSpace
	case c.space.closed != nil:
		p.err = c.space.closed
	default:
		p.full = c.copies[ref].dev
	}
	if c.cfg.Off.Has(rules.NoSplit) {
		p.err = bio.ErrNoSpace
		c.acked(ref)
		return
	}
	p.undo = true
	for other := pi * MaxCopies; other < (pi+1)*MaxCopies; other++ {
		if c.copies[other].kind == copyDone {
			p.open++
			c.enqueue(other)
		}
	}
	c.copies[ref].roomless = true
	c.acked(ref)
}

// writeFailed handles a device that says it could not write. A sole copy may
// fail the request: there is nothing that it could differ from. Otherwise the
// device has to leave the in-sync set before anything completes (rule 17).
func (c *Core) writeFailed(ref int32, s transport.Status, text []byte) {
	cp := &c.copies[ref]
	p := c.pieceOf(ref)
	switch {
	case cp.tries < ioErrorTries:
		c.retryLater(ref, s)
	case c.cfg.Off.Has(rules.NoSplit):
		p.err = bio.ErrIO
		c.acked(ref)
	case c.groups[p.group].n == 1 && c.groups[p.group].has(cp.dev):
		// A target would differ from it, and the resolver has nobody to tell: wait
		// until the attempt has ended, or the device has come to its senses.
		if c.groups[p.group].m > 1 || ref/MaxCopies >= c.jobPieces {
			c.retryLater(ref, s)
			return
		}
		p.err = bio.ErrIO
		c.acked(ref)
	default:
		dev := cp.dev
		c.enqueue(ref)
		c.breakDevice(dev, "it failed a write, status "+strconv.Itoa(int(s))+reason(text))
	}
}

func reason(text []byte) string {
	if len(text) == 0 {
		return ""
	}
	return ": " + string(text)
}

// reissue is for a write that a device refuses for lack of activity-log slots
// (StatusLogFull) while a flush waits for that very write, and only the flush can
// free slots (rule 18). The write moves to the current interval. Copies that may
// have been applied under the old one must be applied again under the new one
// before the flush goes out: else the flush would let a device retire a region
// in which the copies differ.
func (c *Core) reissue(pi int32) {
	p := &c.pieces[pi]
	first, stuck := pi*MaxCopies, false
	for ref := first; ref < first+MaxCopies; ref++ {
		cp := &c.copies[ref]
		if cp.kind == copyInFlight {
			return
		}
		stuck = stuck || cp.kind == copyDelayed && cp.why == transport.StatusLogFull
	}
	if !stuck {
		return
	}
	p.interval = c.interval
	for ref := first; ref < first+MaxCopies; ref++ {
		cp := &c.copies[ref]
		if cp.kind != copyDone && !cp.lost || cp.kind == copyNone {
			continue
		}
		cp.reack = true
		p.reacks++
		if cp.kind == copyDone {
			p.open++
			c.enqueue(ref)
		}
	}
	if p.reacks == 0 {
		c.caughtUp()
	}
}

func (c *Core) readReply(ref, l int32, h *transport.Header, received bool, sums []byte) {
	cp := &c.copies[ref]
	pi := ref / MaxCopies
	p := &c.pieces[pi]
	switch {
	case cp.unwanted:
		c.reroute(ref)
	case h.Status == transport.StatusStaleEpoch || h.Status == transport.StatusRefused:
		c.emit(Effect{Kind: NeedMap})
		c.retryLater(ref, h.Status)
	case h.Status == transport.StatusRetry:
		c.retryLater(ref, h.Status)
	case h.Status != transport.StatusOK:
		c.replicaFailed(ref)
	case h.Flags&transport.FlagHole != 0:
		if p.receiver != none { // the other copy's payload is on its way
			c.removeCopy(ref)
			return
		}
		for _, v := range p.views {
			clear(v)
		}
		c.noteHole(p)
		c.readGood(ref)
	case !received: // it was thrown away because the other copy was receiving
		if p.open > 1 {
			c.removeCopy(ref)
		} else {
			c.reroute(ref)
		}
	case p.op == transport.OpRead && !verify(p.views, sums):
		c.stats.BadSums++
		p.rotten = true
		c.tellRot(l, p)
		c.replicaFailed(ref)
	default:
		c.readGood(ref)
	}
}

// noteHole remembers that an edge block holds no data.
func (c *Core) noteHole(p *piece) {
	q := &c.reqs[p.req]
	if q.phase != phaseEdges {
		return
	}
	if q.headCut && c.layout.Offset(p.chunk, p.off) == q.first {
		q.headHole = true
	} else {
		q.tailHole = true
	}
}

// replicaFailed tries the next replica for a read.
func (c *Core) replicaFailed(ref int32) {
	p := c.pieceOf(ref)
	if int(p.tries) < len(p.tried) {
		p.tried[p.tries] = c.copies[ref].dev
		p.tries++
	}
	c.reroute(ref)
}

// verify checks received blocks against the checksums that came with them.
func verify(views [][]byte, sums []byte) bool {
	for _, v := range views {
		n := len(v) / cluster.BlockSize * 8
		if len(sums) < n || transport.VerifySums(v, sums[:n]) >= 0 {
			return false
		}
		sums = sums[n:]
	}
	return true
}
