// SPDX-License-Identifier: Apache-2.0

package core

import (
	"braid/cluster"
	"braid/cluster/rules"
	"braid/stripe/layout"
	"braid/transport"
	"braid/transport/bio"
)

// phase is how far a request has come.
type phase uint8

const (
	phaseLock   phase = iota // waits for its range
	phaseEdges               // reads the blocks that it covers in part
	phaseMerged              // edges are merged; a write may be held back here
	phaseMain                // the operation itself
)

// leg is a part of a request that has one frame op. Bounds are whole blocks.
type leg struct {
	op     transport.Op
	off    uint64 // in the volume, bytes
	length uint64
}

// request is one slot. Its range [first, end) is rounded to whole blocks; where
// the front end's range covers the first or last block in part (headCut,
// tailCut), that block lives in bounce: in its first half the head, in its
// second the tail. A request within a single block counts as headCut.
type request struct {
	r                *bio.Request // nil: the slot is free
	op               bio.Op
	phase            phase
	locked           bool
	issued           bool // all pieces of the phase have been made
	walking          bool // it is in the middle of a leg
	headCut, tailCut bool
	headHole         bool // the edge block holds no data
	tailHole         bool
	legCount, legAt  uint8
	legs             [3]leg
	first, end       uint64
	it               layout.Pieces
	open             int32 // pieces that are not done
	pins             int32 // frames that may still touch the request's bytes
	ordinal          int32 // pieces made in this phase
	roomless         int32 // pieces that have found no room
	err              error
	views            [][]byte // backing of the pieces' views
	sumStore         []byte   // backing of the pieces' checksums
	bounce           []byte
}

func (q *request) fail(err error) {
	if q.err == nil {
		q.err = err
	}
}

func (q *request) writes() bool {
	return q.op == bio.Write || q.op == bio.Trim || q.op == bio.WriteZeroes
}

const blockMask = cluster.BlockSize - 1

// start puts r into a slot and asks for its range.
func (c *Core) start(r *bio.Request) {
	slot := c.freeReqs[len(c.freeReqs)-1]
	c.freeReqs = c.freeReqs[:len(c.freeReqs)-1]
	c.active++
	r.Dev.Slot = slot
	q := &c.reqs[slot]
	q.r, q.op, q.phase, q.err = r, r.Op, phaseLock, nil
	q.open, q.pins, q.roomless, q.locked, q.issued = 0, 0, 0, true, false
	r.Trace.Granted = 0
	q.setRange()
	// Rule 7: nothing is sent before every earlier overlapping request is complete
	// everywhere.
	blocks := (q.end - q.first) / cluster.BlockSize
	if c.cfg.Off.Has(rules.Overlap) || c.locks.Lock(slot, q.first/cluster.BlockSize, blocks, q.writes()) {
		c.proceed(slot)
	}
}

func (q *request) setRange() {
	off, end := q.r.Off, q.r.Off+q.r.Len
	q.headCut, q.tailCut, q.headHole, q.tailHole = false, false, false, false
	q.first, q.end = off&^blockMask, (end+blockMask)&^blockMask
	if q.op == bio.BlockStatus {
		q.end = min(q.end, q.first+maxStatusLength)
		return
	}
	q.headCut, q.tailCut = off != q.first, end != q.end
	if q.end-q.first == cluster.BlockSize && q.tailCut {
		q.headCut, q.tailCut = true, false
	}
}

// proceed starts the next phase of a request whose range is granted.
func (c *Core) proceed(slot int32) {
	q := &c.reqs[slot]
	if q.phase == phaseLock {
		q.r.Trace.Granted = c.now
	}
	if q.phase == phaseLock && q.writes() && (q.headCut || q.tailCut) {
		q.begin(phaseEdges)
		c.edgeLegs(q, transport.OpRead)
		c.issue(slot)
		return
	}
	if q.writes() && c.mustHold() {
		q.phase = phaseMerged
		c.held = append(c.held, slot)
		return
	}
	q.begin(phaseMain)
	switch q.op {
	case bio.Read:
		q.addLeg(transport.OpRead, q.first, q.end)
	case bio.BlockStatus:
		q.addLeg(transport.OpStatus, q.first, q.end)
	case bio.Write:
		q.addLeg(transport.OpWrite, q.first, q.end)
	case bio.Trim, bio.WriteZeroes:
		// What is trimmed reads as zeroes, to the byte, as in a file.
		first, end := q.inner()
		if q.op == bio.Trim {
			q.addLeg(transport.OpTrim, first, end)
		} else {
			q.addLeg(transport.OpZero, first, end)
		}
		c.edgeLegs(q, transport.OpWrite)
	}
	c.issue(slot)
}

func (q *request) begin(p phase) {
	q.phase, q.legCount, q.legAt = p, 0, 0
	q.issued, q.walking, q.ordinal = false, false, 0
	q.views, q.sumStore = q.views[:0], q.sumStore[:0]
}

func (q *request) addLeg(op transport.Op, first, end uint64) {
	if first < end {
		q.legs[q.legCount] = leg{op: op, off: first, length: end - first}
		q.legCount++
	}
}

// inner is the range without the blocks that are covered in part.
func (q *request) inner() (first, end uint64) {
	first, end = q.first, q.end
	if q.headCut {
		first += cluster.BlockSize
	}
	if q.tailCut {
		end -= cluster.BlockSize
	}
	return first, end
}

// edgeLegs reads or writes the edge blocks. One that holds no data is not
// written: to zero a part of it changes nothing.
func (c *Core) edgeLegs(q *request, op transport.Op) {
	if q.headCut && !q.headHole {
		q.addLeg(op, q.first, q.first+cluster.BlockSize)
	}
	if q.tailCut && !q.tailHole {
		q.addLeg(op, q.end-cluster.BlockSize, q.end)
	}
}

// issue makes the pieces of the phase, as far as there are free ones.
func (c *Core) issue(slot int32) {
	q := &c.reqs[slot]
	for q.legAt < q.legCount {
		l := &q.legs[q.legAt]
		if !q.walking {
			q.it = c.layout.Pieces(l.off, l.length)
			q.walking = true
		}
		if len(c.freePieces) == 0 {
			c.starving = append(c.starving, slot)
			return
		}
		p, ok := q.it.Next()
		if !ok {
			q.walking = false
			q.legAt++
			continue
		}
		c.makePiece(slot, l.op, p)
		if c.lost != nil {
			return
		}
	}
	q.issued = true
	c.finishIfIdle(slot)
}

// finishIfIdle ends the phase when nothing of it is left: no piece, and no
// frame that could still read or write the request's bytes (rule 22).
func (c *Core) finishIfIdle(slot int32) {
	q := &c.reqs[slot]
	if !q.issued || q.open > 0 || q.pins > 0 {
		return
	}
	if slot >= c.jobBase {
		c.jobIdle(slot - c.jobBase)
		return
	}
	if q.phase == phaseEdges && q.err == nil {
		q.merge()
		q.phase, q.issued = phaseMerged, false
		c.granted = append(c.granted, slot)
		return
	}
	c.finish(slot)
}

func (c *Core) finish(slot int32) {
	q := &c.reqs[slot]
	r := q.r
	if q.err == nil {
		switch q.op {
		case bio.Read:
			q.copyEdges()
			c.stats.ReadBytes += r.Len
		case bio.Write:
			c.stats.WriteBytes += r.Len
		case bio.BlockStatus:
			c.fillExtents(q)
		}
	}
	err := q.err
	q.r, q.err, q.issued = nil, nil, false
	clear(q.views)
	if !c.cfg.Off.Has(rules.Overlap) {
		c.granted = c.locks.Unlock(slot, c.granted)
	}
	c.freeReqs = append(c.freeReqs, slot)
	c.active--
	c.completeNow(r, err)
}

// memory appends the runs of memory that hold the volume's range
// [off, off+length), which lies within the request's and is made of whole blocks.
func (q *request) memory(off uint64, length uint32) {
	n := uint64(length)
	if q.headCut && off == q.first {
		q.views = append(q.views, q.bounce[:cluster.BlockSize])
		off += cluster.BlockSize
		n -= cluster.BlockSize
	}
	tail := n > 0 && q.tailCut && off+n == q.end
	if tail {
		n -= cluster.BlockSize
	}
	if n > 0 {
		at := off - q.r.Off
		q.views = append(q.views, q.r.Data[at:at+n:at+n])
	}
	if tail {
		q.views = append(q.views, q.bounce[cluster.BlockSize:])
	}
}

// edges calls out the part of each edge block that the front end's range
// covers, with its place in the range.
func (q *request) edges(do func(q *request, block []byte, at uint64)) {
	off, end := q.r.Off, q.r.Off+q.r.Len
	if q.headCut {
		stop := min(end, q.first+cluster.BlockSize)
		do(q, q.bounce[off-q.first:stop-q.first], 0)
	}
	if q.tailCut {
		start := q.end - cluster.BlockSize
		do(q, q.bounce[cluster.BlockSize:cluster.BlockSize+end-start], start-off)
	}
}

// merge puts the front end's bytes over what the edge blocks hold.
func (q *request) merge() {
	if q.op == bio.Write {
		q.edges(writeEdge)
	} else {
		q.edges(zeroEdge)
	}
}

// copyEdges hands the edge blocks of a read to the front end.
func (q *request) copyEdges() { q.edges(readEdge) }

func zeroEdge(_ *request, block []byte, _ uint64)   { clear(block) }
func writeEdge(q *request, block []byte, at uint64) { copy(block, q.r.Data[at:]) }
func readEdge(q *request, block []byte, at uint64)  { copy(q.r.Data[at:], block) }
