// SPDX-License-Identifier: Apache-2.0

package core

import (
	"braid/cluster"
	"braid/stripe/layout"
	"braid/transport"
	"braid/transport/bio"
)

// piece is the part of a request that lies in one chunk. A write's piece has a
// copy for each device that must apply it; a read's has one, or two when hedged.
type piece struct {
	live     bool
	parked   bool // its chunk is not open to it yet: it has no copies
	req      int32
	op       transport.Op
	flags    uint8
	chunk    uint64
	off      uint32
	length   uint32
	group    int32
	interval uint64 // of a write
	version  uint64 // of the map under which it was fanned out
	views    [][]byte
	sums     []byte
	open     uint8 // copies that are not done
	err      error

	// Reads.
	receiver int32            // frame whose payload is on its way into views
	tried    [MaxCopies]int32 // devices that failed
	tries    uint8
	rounds   uint8
	rotten   bool // some reply did not match its checksums
	directed bool // of the resolver: this device and no other
	dev      int32

	// Writes.
	undo     bool  // no room on some copy: trim the others (rule 17)
	reacks   uint8 // rule 18: copies that must ack once more before the old interval is drained
	room     roomState
	full     int32 // the device that had no room last
	roomless int64 // since when the piece has not found room; 0: it has not been in want
}

func (p *piece) isWrite() bool {
	switch p.op {
	case transport.OpWrite, transport.OpTrim, transport.OpZero, transport.OpStamp:
		return true
	}
	return false
}

// copyKind is the state of a copy.
type copyKind uint8

const (
	copyNone     copyKind = iota
	copyQueued            // in its device's queue
	copyInFlight          // has a frame
	copyDelayed           // is sent again at `at`
	copyOrphan            // a read that finds no reachable replica
	copyHeld              // a read that has its data and waits for confirmations (rule 15)
	copyDone
	copyLoose // in no list: in the middle of a change
)

// copyState is one device's share of a piece, or one device's part of a flush.
type copyState struct {
	kind       copyKind
	tries      uint8
	reack      bool // see piece.reacks
	lost       bool // the outcome of an earlier frame is unknown: it may have been applied
	unwanted   bool // its reply does not count any more
	roomless   bool // it had no room, so nothing was applied
	why        transport.Status
	dev        int32
	frame      int32
	epoch      uint32 // of the newest frame
	prev, next int32
	at         int64 // copyDelayed: when it is due
	since      int64 // when it first had to wait; 0: it did not
}

// copyList is a doubly linked list of copies.
type copyList struct {
	head, tail int32
	n          int
}

var emptyList = copyList{head: none, tail: none}

func (c *Core) push(l *copyList, ref int32) {
	cp := &c.copies[ref]
	cp.prev, cp.next = l.tail, none
	if l.tail == none {
		l.head = ref
	} else {
		c.copies[l.tail].next = ref
	}
	l.tail = ref
	l.n++
}

func (c *Core) unlink(l *copyList, ref int32) {
	cp := &c.copies[ref]
	if cp.prev == none {
		l.head = cp.next
	} else {
		c.copies[cp.prev].next = cp.next
	}
	if cp.next == none {
		l.tail = cp.prev
	} else {
		c.copies[cp.next].prev = cp.prev
	}
	l.n--
}

// pieceOf is the piece of a copy, or nil for a device's flush.
func (c *Core) pieceOf(ref int32) *piece {
	if ref >= c.flushBase {
		return nil
	}
	return &c.pieces[ref/MaxCopies]
}

// makePiece takes a free piece, describes its memory and fans it out.
func (c *Core) makePiece(slot int32, op transport.Op, at layout.Piece) {
	q := &c.reqs[slot]
	pi := c.freePieces[len(c.freePieces)-1]
	c.freePieces = c.freePieces[:len(c.freePieces)-1]
	c.pieceHigh = max(c.pieceHigh, int(pi)+1)
	p := &c.pieces[pi]
	*p = piece{live: true, req: slot, op: op, chunk: at.Chunk, off: at.Off, length: at.Length,
		group: c.groupOf(at.Chunk), receiver: none}
	q.open++
	switch op {
	case transport.OpStatus:
		n := int(q.ordinal) * bitmapSize
		first := len(q.views)
		q.views = append(q.views, q.bounce[n:n+bitmapSize])
		p.views = q.views[first:]
	case transport.OpRead, transport.OpWrite:
		first := len(q.views)
		vs := c.layout.Views(at)
		for v, ok := vs.Next(); ok; v, ok = vs.Next() {
			q.memory(v.Off, v.Length)
		}
		p.views = q.views[first:]
	}
	q.ordinal++
	if p.isWrite() {
		c.finishWrite(q, p)
	}
	if c.gate.closed > 0 && c.isGated(p) {
		c.park(p)
		return
	}
	c.launch(pi)
}

// finishWrite fills in what only writes have.
func (c *Core) finishWrite(q *request, p *piece) {
	if q.r.Flags&bio.FUA != 0 {
		p.flags |= transport.FlagFUA
	}
	if q.r.Flags&bio.NoHole != 0 && p.op == transport.OpZero {
		p.flags |= transport.FlagNoHole
	}
	if p.op == transport.OpWrite {
		c.sumPiece(q, p)
	}
}

// launch sends a piece on its way. A write belongs to the interval of this
// moment: one that is parked holds no flush up.
func (c *Core) launch(pi int32) {
	p := &c.pieces[pi]
	if !p.isWrite() {
		c.addRead(pi)
		return
	}
	p.interval = c.interval
	c.flush.fresh++
	c.fanOut(pi)
}

// sumPiece computes the block checksums: once, here, for all replicas (rule 22).
func (c *Core) sumPiece(q *request, p *piece) {
	first := len(q.sumStore)
	q.sumStore = q.sumStore[:first+sumsOf(p.length)]
	p.sums = q.sumStore[first:]
	rest := p.sums
	for _, v := range p.views {
		n := len(v) / cluster.BlockSize * 8
		transport.BlockSums(rest[:n], v)
		rest = rest[n:]
	}
}

// fanOut gives a write's piece a copy for each device that must apply it.
func (c *Core) fanOut(pi int32) {
	p := &c.pieces[pi]
	p.version = c.version
	g := &c.groups[p.group]
	for _, d := range g.writeSet() {
		c.enqueue(c.addCopy(pi, d))
	}
}

func (c *Core) addCopy(pi, dev int32) int32 {
	for ref := pi * MaxCopies; ref < (pi+1)*MaxCopies; ref++ {
		if cp := &c.copies[ref]; cp.kind == copyNone {
			*cp = copyState{kind: copyLoose, dev: dev, frame: none, prev: none, next: none}
			c.pieces[pi].open++
			return ref
		}
	}
	panic("core: a piece has more copies than a group has devices")
}

// removeCopy takes a copy out of its piece, wherever it is. A frame that is in
// flight for it goes on without it.
func (c *Core) removeCopy(ref int32) {
	cp := &c.copies[ref]
	p := c.pieceOf(ref)
	if p != nil {
		p.unhold(cp)
	}
	c.leaveList(ref)
	if cp.kind == copyInFlight {
		c.frames[cp.frame].copy = none
		if p != nil && p.receiver == cp.frame {
			p.receiver = none
		}
	}
	if p != nil {
		if cp.kind != copyDone {
			p.open--
		}
		if cp.reack {
			p.reacks--
		}
	}
	cp.kind = copyNone
}

func (c *Core) leaveList(ref int32) {
	cp := &c.copies[ref]
	switch cp.kind {
	case copyQueued:
		c.unlink(&c.devs[cp.dev].queue, ref)
	case copyDelayed:
		c.unlink(&c.delayed, ref)
	case copyOrphan:
		c.unlink(&c.orphans, ref)
	case copyHeld:
		c.unlink(&c.reads.held, ref)
	default:
		return
	}
	cp.kind = copyLoose
}

// freePiece ends a piece. All its copies are done or removed.
func (c *Core) freePiece(pi int32) {
	p := &c.pieces[pi]
	slot := p.req
	for ref := pi * MaxCopies; ref < (pi+1)*MaxCopies; ref++ {
		c.copies[ref].kind = copyNone
	}
	if p.roomless != 0 {
		c.endRoom(p)
	}
	if p.parked {
		c.gate.parked--
	}
	c.gate.freed = c.gate.freed || c.gate.drains > 0 && p.isWrite()
	p.live, p.parked, p.req = false, false, none
	p.views, p.sums = nil, nil
	if pi >= c.jobPieces {
		c.jobFree = append(c.jobFree, pi)
	} else {
		c.freePieces = append(c.freePieces, pi)
	}
	q := &c.reqs[slot]
	q.open--
	c.finishIfIdle(slot)
}

// dropPiece gives a piece up without a result.
func (c *Core) dropPiece(pi int32) {
	for ref := pi * MaxCopies; ref < (pi+1)*MaxCopies; ref++ {
		if c.copies[ref].kind != copyNone {
			c.removeCopy(ref)
		}
	}
	c.freePiece(pi)
}

// writeDone ends a write's piece: every device that must has applied it.
func (c *Core) writeDone(pi int32) {
	p := &c.pieces[pi]
	if p.room == roomAsks && !p.undo && c.hasRoom(pi) {
		return
	}
	for ref := pi * MaxCopies; ref < (pi+1)*MaxCopies; ref++ {
		if cp := &c.copies[ref]; cp.kind == copyDone && !cp.roomless {
			if pi >= c.jobPieces {
				c.devs[cp.dev].resolved.add(p.interval)
			} else {
				c.devs[cp.dev].unflushed.add(p.interval)
				c.groups[p.group].lastWrite = max(c.groups[p.group].lastWrite, p.interval)
			}
		}
	}
	if p.err != nil {
		c.reqs[p.req].fail(p.err)
	}
	c.flush.bytes += uint64(p.length)
	c.wantFlushTimer()
	interval := p.interval
	if p.reacks > 0 {
		panic("core: a write is done whose older copies are not")
	}
	if p.undo && p.err == nil {
		c.noRoom(pi)
	} else {
		c.freePiece(pi)
	}
	c.drained(interval)
}

// readDone ends a read's piece.
func (c *Core) readDone(pi int32, err error) {
	if err != nil {
		c.reqs[c.pieces[pi].req].fail(err)
	}
	c.dropPiece(pi)
}

// addRead adds a copy that looks for a replica to read from.
func (c *Core) addRead(pi int32) { c.route(c.addCopy(pi, none)) }

// route sends a read's copy, which is in no list, to the best replica.
func (c *Core) route(ref int32) {
	pi := ref / MaxCopies
	p := &c.pieces[pi]
	if p.directed {
		c.copies[ref].dev = p.dev
		c.enqueue(ref)
		return
	}
	dev, left := c.chooseReplica(pi, ref)
	if dev == none && !left && p.rotten && p.rounds == 0 {
		// The bytes may have been spoilt on the way: believe it the second time.
		p.rounds, p.tries = 1, 0
		dev, left = c.chooseReplica(pi, ref)
	}
	switch {
	case dev != none:
		c.copies[ref].dev = dev
		c.enqueue(ref)
	case left:
		cp := &c.copies[ref]
		cp.kind, cp.dev = copyOrphan, none
		c.waits(cp)
		c.push(&c.orphans, ref)
	case p.open > 1: // the other copy is still under way
		c.removeCopy(ref)
	default:
		c.readDone(pi, bio.ErrIO)
	}
}

// chooseReplica picks an in-sync, reachable replica (rule 10: no other serves
// reads) that has not failed this piece: a local one, else the least busy. left
// reports whether any replica may still answer.
func (c *Core) chooseReplica(pi, ref int32) (best int32, left bool) {
	p := &c.pieces[pi]
	g := &c.groups[p.group]
	best = none
	if g.n == 0 {
		return none, true
	}
	bestLoad := int32(0)
	start := int32(p.chunk % uint64(g.n)) // equal loads: spread by chunk
	for i := range int32(g.n) {
		d := g.members[(start+i)%int32(g.n)]
		if p.failedOn(d) {
			continue
		}
		left = true
		if !c.devs[d].reachable() || c.usedBy(pi, ref, d) {
			continue
		}
		load := c.devs[d].inFlight
		if c.devs[d].local {
			load -= localBonus
		}
		if best == none || load < bestLoad {
			best, bestLoad = d, load
		}
	}
	return best, left
}

func (p *piece) failedOn(dev int32) bool {
	for _, d := range p.tried[:p.tries] {
		if d == dev {
			return true
		}
	}
	return false
}

// usedBy reports whether another copy of the piece is with the device.
func (c *Core) usedBy(pi, except, dev int32) bool {
	for ref := pi * MaxCopies; ref < (pi+1)*MaxCopies; ref++ {
		cp := &c.copies[ref]
		if ref != except && cp.kind != copyNone && cp.dev == dev {
			return true
		}
	}
	return false
}

// waits notes since when a copy has not been able to go on.
func (c *Core) waits(cp *copyState) {
	if cp.since == 0 {
		cp.since = max(c.now, 1)
	}
}
