// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

type commitStage uint8

const (
	commitIdle commitStage = iota
	commitWriting
	commitFlushing
)

// commitState is the one commit that may be under way.
//
// A commit makes durable, under one device flush, everything that was acked
// when it was built, new entries of the activity log, generations, and the pages
// of a fold whose writes are complete:
//
//  1. build: records of all dirty chunks as they are now. Data that they speak
//     of has completed; data still in flight is not in them.
//  2. write the log pages; wait.
//  3. flush the device; wait. Everything complete before this point is covered.
//  4. ack flushes, FUA and fences; let data of newly logged regions go.
//
// The next commit is built only after step 4. So a group in the log proves that
// the flush of the group before it has returned, and recovery has to doubt the
// last group only.
type commitState struct {
	stage      commitStage
	group      uint64
	pages      int
	left       int // log writes under way
	coversFold bool
	needsProof bool // its acks wait for the next group
	logIO      [2]IO
	flushIO    IO
	w          groupWriter
	tail       uint64
	flushers   reqQueue
	fences     reqQueue
	drops      reqQueue
	vols       []*volume
	gens       []cluster.Generation // as noted, by vols
	dropped    []*volume
	adds       []uint32
	freed      []uint32 // pages
	err        error
}

func (cs *commitState) init(groupMax, alEntries int) {
	cs.w.buf = alignedBytes(groupMax * pageSize)
	cs.adds = make([]uint32, 0, alEntries)
	for i := range cs.logIO {
		cs.logIO[i] = IO{Kind: IOWrite, Meta: true, owner: ownLog}
	}
	cs.flushIO = IO{Kind: IOFlush, Meta: true, owner: ownFlush}
}

// commitWanted reports whether something waits for a commit.
func (c *Core) commitWanted() bool {
	switch {
	case c.flushQ.head != nil, len(c.al.pending) > 0, len(c.log.noted) > 0,
		len(c.log.dropped) > 0, c.dirtyCost > c.log.softDirty(), c.fold.stage == foldWritten,
		c.fold.wantsCommit, c.log.wantsProof, c.wantsTail():
		return true
	case c.dirty.head != 0 && (c.spaceQ.head != nil || c.drops.isStuck || c.stop.stage == stopCommit):
		return true
	}
	return len(c.al.removed) > 0 && (c.idle || c.stop.stage == stopCommit)
}

// pumpCommit starts a commit if one is wanted and none is under way.
func (c *Core) pumpCommit() bool {
	if c.flushQ.head != nil && c.dirty.head == 0 {
		// Everything acked is in the commit under way, or durable already.
		switch {
		case c.log.isOpen && c.commit.stage == commitIdle:
			c.log.unacked.join(&c.flushQ)
			return true
		case c.commit.stage != commitIdle:
			c.commit.flushers.join(&c.flushQ)
			return false
		}
		q := c.flushQ
		c.flushQ = reqQueue{}
		for r := q.pop(); r != nil; r = q.pop() {
			c.finishFlush(r)
		}
		return true
	}
	if c.commit.stage != commitIdle || !c.commitWanted() {
		return false
	}
	if c.isRingLow() && c.tailBound() <= c.log.tail && c.fold.stage != foldWritten &&
		!c.fold.wantsCommit {
		return false // the fold under way frees space first
	}
	if c.al.excess() > 0 {
		c.retire(c.al.slots/8 + 1)
	}
	c.buildCommit()
	return true
}

func (c *Core) buildCommit() {
	cs := &c.commit
	cs.stage, cs.group = commitWriting, c.log.next
	cs.flushers, cs.tail, cs.err, cs.needsProof = reqQueue{}, c.log.tail, nil, false
	cs.adds, cs.freed = cs.adds[:0], cs.freed[:0]
	cs.vols, cs.gens, cs.dropped = cs.vols[:0], cs.gens[:0], cs.dropped[:0]
	cs.w.reset(min(c.log.groupMax, c.ringFree()-1))
	skip := c.cfg.Off.Has(rules.FlushMetadata) && c.flushQ.head != nil
	if c.logOrders() {
		c.logRegions()
		if !skip {
			c.logChunks()
		}
	}
	if c.dirty.head == 0 || skip {
		cs.flushers.join(&c.flushQ)
	}
	c.advanceTail()
	c.fold.wantsCommit = false
	if c.log.wantsProof && cs.w.pages == 0 {
		cs.w.room(doubtRecord) // an empty page is proof enough
	}
	if c.fold.stage == foldIdle && c.foldNeeded() {
		c.selectFold(true)
	}
	cs.pages = cs.w.pages
	c.writeGroup()
}

// logOrders writes what must precede all else: doubts, generations, removals.
func (c *Core) logOrders() bool {
	cs, w := &c.commit, &c.commit.w
	for _, seq := range c.doubted {
		b := w.room(doubtRecord)
		if b == nil {
			return false
		}
		putDoubt(b, seq)
		w.take(doubtRecord)
	}
	c.doubted = c.doubted[:0]
	for len(c.log.noted) > 0 {
		v := c.log.noted[0]
		if !w.short(recFence, 0, chunkKey{volume: uint64(v.id), chunk: uint64(v.gen)}) {
			return false
		}
		v.isNoted = false
		v.logSeq = cs.group
		cs.vols, cs.gens = append(cs.vols, v), append(cs.gens, v.gen)
		c.log.noted = c.log.noted[:copy(c.log.noted, c.log.noted[1:])]
	}
	cs.fences.join(&c.log.fences)
	for len(c.log.dropped) > 0 {
		v := c.log.dropped[0]
		if !w.short(recDrop, 0, chunkKey{volume: uint64(v.id), chunk: uint64(v.gen)}) {
			return false
		}
		cs.dropped = append(cs.dropped, v)
		c.log.dropped = c.log.dropped[:copy(c.log.dropped, c.log.dropped[1:])]
	}
	cs.drops.join(&c.log.drops)
	n := 0
	for ; n < len(c.al.removed); n++ {
		if !w.short(recALRemove, 0, c.al.removed[n].key) {
			break
		}
	}
	c.al.removed = c.al.removed[:copy(c.al.removed, c.al.removed[n:])]
	return len(c.al.removed) == 0 // no add may precede an older removal of its region
}

// logRegions writes the add records that wait (rule 2).
func (c *Core) logRegions() {
	t, cs := &c.al, &c.commit
	n := 0
	for ; n < len(t.pending); n++ {
		e := t.pending[n]
		if !c.logRegion(e) {
			break
		}
		t.ent[e].isQueued = false
		cs.adds = append(cs.adds, e)
	}
	t.pending = t.pending[:copy(t.pending, t.pending[n:])]
}

func (c *Core) logRegion(e uint32) bool {
	ent := &c.al.ent[e]
	marks := ent.marks
	if ent.slot != 0 && !c.isDurable(ent.slot-1) {
		// Marks go only after what made them unnecessary: both in one group would let
		// a group in doubt take the mark and lose the data.
		marks |= ent.logMarks
	}
	if !c.commit.w.short(recALAdd, uint8(marks), ent.key) {
		return false
	}
	ent.logMarks = marks
	c.al.logged(e, c.commit.group)
	return true
}

// logChunks writes the records of dirty chunks, oldest first (rule 3).
func (c *Core) logChunks() {
	cs := &c.commit
	for c.dirty.head != 0 {
		i := c.dirty.head
		p := c.cache.at(i)
		in := &c.slots.info[p.slot]
		r := record{slot: p.slot, key: in.key, gen: in.gen, interval: in.interval, bits: p.bits}
		if p.isFresh {
			r.flags |= chunkFresh
		}
		if in.state == stateUsed {
			r.mask = p.dirty.and(p.bits)
		} else {
			r.flags |= chunkFreed
		}
		if !cs.w.chunk(&r, &p.sums) {
			return
		}
		if r.flags&chunkFreed != 0 {
			cs.freed = append(cs.freed, i)
		}
		c.dirty.head = p.next
		if c.dirty.head == 0 {
			c.dirty.tail = 0
		}
		c.dirty.count--
		c.dirtyCost -= int(p.cost)
		p.cost, p.next, p.isDirty, p.isFresh = 0, 0, false, false
		p.dirty = bitmap{}
		young := p.bits
		young.without(p.logged)
		p.logged = p.bits
		over := young.and(p.flying)
		cs.needsProof = cs.needsProof || !over.empty()
		if p.lastSeq >= c.log.durable {
			// The record before this one is proven only when this group is durable: what
			// was young in it stays so until then.
			young.or(p.young.and(p.bits))
		}
		p.young = young
		p.lastSeq = cs.group
		if p.firstSeq == 0 {
			p.firstSeq = cs.group
			c.cache.push(c.cache.log, i)
			c.cache.unfolded++
		}
	}
}

// advanceTail puts a new tail into the commit if that is worth it, and logs
// again what lives on but lies before it.
func (c *Core) advanceTail() {
	cs := &c.commit
	bound := min(c.tailBound(), cs.group)
	ring := uint64(c.lay.ringPages)
	worth := uint64(c.log.used()) > ring/4 && bound >= c.log.tail+ring/16
	if bound <= c.log.tail || !worth && !c.wantsTail() {
		return
	}
	for e := c.al.oldest(); e != 0 && c.al.ent[e].logSeq < bound; e = c.al.oldest() {
		seq := c.al.ent[e].logSeq
		if !c.logRegion(e) {
			bound = seq
			break
		}
		cs.adds = append(cs.adds, e)
		c.stats.ALRelogs++
	}
	for _, v := range c.vols {
		if v.logSeq == 0 || v.logSeq >= bound || v.dropped {
			continue
		}
		if !cs.w.short(recFence, 0, chunkKey{volume: uint64(v.id), chunk: uint64(v.durable)}) {
			bound = min(bound, v.logSeq)
			continue
		}
		v.logSeq = cs.group
	}
	if bound > c.log.tail {
		cs.tail = bound
		if cs.w.pages == 0 {
			cs.w.room(doubtRecord) // an empty page carries it
		}
	}
}

// writeGroup seals the pages and writes them, in two pieces at the ring's end.
func (c *Core) writeGroup() {
	cs := &c.commit
	h := logPage{tail: cs.tail, group: cs.group, count: uint32(cs.pages), start: uint32(c.sb.starts)}
	for i := range cs.pages {
		h.seq, h.used = cs.group+uint64(i), cs.w.used[i]
		h.seal(cs.w.buf[i*pageSize:(i+1)*pageSize], c.salt)
	}
	c.log.next += uint64(cs.pages)
	c.log.tail = cs.tail
	c.stats.LogPages += uint64(cs.pages)
	if cs.pages == 0 {
		c.flushCommit()
		return
	}
	head := min(cs.pages, int(uint64(c.lay.ringPages)-cs.group%uint64(c.lay.ringPages)))
	cs.left = 1
	if head < cs.pages {
		cs.left = 2
		io := &cs.logIO[1]
		io.Off, io.Data = c.lay.ringAt(cs.group+uint64(head)), cs.w.buf[head*pageSize:cs.pages*pageSize]
		io.Len = int64(len(io.Data))
		c.startIO(io)
	}
	io := &cs.logIO[0]
	io.Off, io.Data = c.lay.ringAt(cs.group), cs.w.buf[:head*pageSize]
	io.Len = int64(len(io.Data))
	c.startIO(io)
}

func (c *Core) flushCommit() {
	cs := &c.commit
	cs.stage = commitFlushing
	cs.coversFold = c.fold.stage == foldWritten
	c.stats.DeviceFlushes++
	c.startIO(&cs.flushIO)
}

func (c *Core) commitIODone(io *IO, err error) {
	if c.failed != nil {
		return
	}
	cs := &c.commit
	if io.owner == ownFlush {
		if err != nil {
			// Rule 19: what the device kept is unknown and asking again would lie.
			c.fail(fmt.Errorf("flush of the device failed: %w", err))
			return
		}
		c.committed()
		return
	}
	if err != nil {
		cs.err = err
	}
	cs.left--
	switch {
	case cs.left > 0:
	case cs.err != nil:
		c.fail(fmt.Errorf("write of %d log pages at %d failed: %w", cs.pages, cs.logIO[0].Off, cs.err))
	default:
		c.flushCommit()
	}
}

// committed is step 4 of a commit.
func (c *Core) committed() {
	cs := &c.commit
	cs.stage = commitIdle
	c.stats.Commits++
	c.log.durableTail = cs.tail
	if c.log.passing > 0 && cs.tail >= c.log.passTo {
		c.stats.MetaMended += c.log.passing
		c.log.passing = 0
	}
	for k, v := range cs.vols {
		v.durable = max(v.durable, cs.gens[k])
	}
	for _, e := range cs.adds {
		c.al.ent[e].state = alDurable
		c.al.ent[e].durMarks = c.al.ent[e].logMarks
	}
	for _, i := range cs.freed {
		p := c.cache.at(i)
		in := &c.slots.info[p.slot]
		if in.state != stateFreeing {
			continue
		}
		if in.al != 0 {
			c.al.ent[in.al].freeing--
			in.al = 0
		}
		p.freed = true
		c.settle(i)
	}
	if cs.coversFold {
		c.foldDone()
	} else if c.fold.stage == foldWaits {
		c.writeFold()
	}
	c.prove()
	c.replyCommitted()
	for _, e := range cs.adds {
		q := c.al.wait[e]
		c.al.wait[e] = reqQueue{}
		for r := q.pop(); r != nil; r = q.pop() {
			c.step(r)
		}
	}
	c.retry = true
}

// prove ends the waiting for a group that proves the one before it.
func (c *Core) prove() {
	cs := &c.commit
	if cs.pages == 0 {
		return
	}
	c.log.durable = cs.group
	c.log.wantsProof, c.log.isOpen = false, false
	acks, writes := c.log.unacked, c.log.unproven
	c.log.unacked, c.log.unproven = reqQueue{}, reqQueue{}
	for r := acks.pop(); r != nil; r = acks.pop() {
		c.finishFlush(r)
	}
	for r := writes.pop(); r != nil; r = writes.pop() {
		c.step(r)
	}
	if cs.needsProof {
		// A block that this group was the first to call present is being overwritten
		// right now: until the group is proven, a crash could take that for data that
		// never came.
		c.log.wantsProof, c.log.isOpen = true, true
		c.log.unacked.join(&cs.flushers)
	}
}

func (c *Core) replyCommitted() {
	cs := &c.commit
	for r := cs.flushers.pop(); r != nil; r = cs.flushers.pop() {
		c.finishFlush(r)
	}
	for r := cs.fences.pop(); r != nil; r = cs.fences.pop() {
		c.fenceReply(c.volumes[r.Volume], r)
	}
	for _, v := range cs.dropped {
		c.forget(v)
	}
	for r := cs.drops.pop(); r != nil; r = cs.drops.pop() {
		c.reply(r, transport.StatusOK)
	}
}
