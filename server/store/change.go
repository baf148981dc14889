// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// recordCost bounds the log bytes that n changed blocks of a chunk take: a
// record may be split once.
func recordCost(n int) int { return 2*chunkRecord + 8*n }

// stepChange carries a write, or a write of zeroes, on:
//
//  1. log space is reserved, so that a later flush cannot lack it (rule 18);
//  2. the region is in the durable activity log (rule 2), its page is in memory
//     and, after a crash, its blocks were compared with their checksums;
//  3. the data goes to the device; no metadata is written;
//  4. tag, bitmap and checksums change in memory; ack.
func (c *Core) stepChange(r *Request) {
	if r.stage == stageStart {
		r.stage = stageSpace
	}
	if r.stage == stageSpace && !c.admitChange(r) {
		return
	}
	if r.stage == stageReady && c.ready(r) && c.proven(r) && c.unmended(r) {
		r.stage = stageIO
		c.cache.at(r.page).flying.or(r.span())
		data := r.Data
		if r.Op == OpZero {
			data = c.zeroes[:r.Length]
		}
		r.io.Kind, r.io.Meta, r.io.owner, r.io.req = IOWrite, false, ownRequest, r
		r.io.Off = c.lay.dataAt(r.slot) + int64(r.Offset)
		r.io.Data, r.io.Len = data, int64(r.Length)
		c.startIO(&r.io)
	}
}

// admission is the outcome of an attempt to admit a change.
type admission uint8

const (
	admitted admission = iota
	mustWait
	answered
)

// admitChange does step 1 for a write or trim. It reports false when the
// request waits or was answered.
func (c *Core) admitChange(r *Request) bool {
	if c.spaceQ.head != nil && c.waiting != r {
		c.spaceQ.push(r)
		return false
	}
	switch c.tryAdmit(r) {
	case mustWait:
		if c.waiting == r {
			c.spaceQ.pushFront(r)
		} else {
			c.spaceQ.push(r)
		}
		return false
	case answered:
		return false
	}
	r.stage = stageReady
	return true
}

func (c *Core) tryAdmit(r *Request) admission {
	cost := recordCost(int(r.Length >> blockShift))
	if !c.roomFor(cost) || c.unfoldable() >= c.unfoldedLimit() {
		return mustWait
	}
	key := r.key()
	slot, stored := c.slots.find(&key)
	if r.page != 0 && (!stored || c.cache.at(r.page).slot != slot) {
		c.unpin(r.page) // a trim whose chunk went away while it waited
		r.page = 0
	}
	if !stored && r.Op == OpStamp {
		return c.stampAbsent(r)
	}
	if !stored && r.Op != OpWrite && !r.NoHole {
		c.finishTrim(r)
		return answered
	}
	e := uint32(0)
	if stored {
		e = c.slots.info[slot].al
	}
	if e == 0 {
		e = c.al.find(&key)
	}
	if e == 0 && !c.hasEntry() {
		// The client's drained flush frees slots; it must not wait for this request,
		// and knows from the answer that no earlier try of it was applied either: that
		// one's entry would still be here.
		return c.refuse(r, transport.StatusLogFull)
	}
	if !stored {
		isReserved := !r.IsCopy && c.slots.used+c.reserve >= c.lay.slots
		if !isReserved {
			slot, stored = c.allocate(&key)
			r.Fresh = stored && !r.IsCopy
		}
		if !stored {
			if c.slots.freeing > 0 || !isReserved && c.slots.used < c.lay.slots {
				return mustWait
			}
			return c.refuse(r, transport.StatusNoSpace)
		}
	}
	if r.page == 0 {
		if r.page = c.pageOf(slot); r.page == 0 {
			return mustWait
		}
		c.pin(r.page)
	}
	if e == 0 {
		e = c.al.add(&key)
		c.al.queueAdd(e)
		c.stats.ALAdds++
	}
	c.enter(r, slot, e, cost)
	return admitted
}

func (c *Core) refuse(r *Request, st transport.Status) admission {
	if r.page != 0 {
		c.unpin(r.page)
	}
	c.reply(r, st)
	return answered
}

// enter counts an admitted change; endChange is its opposite.
func (c *Core) enter(r *Request, slot, e uint32, cost int) {
	ent := &c.al.ent[e]
	ent.slot = slot + 1
	ent.inflight++
	c.al.touch(e)
	c.slots.info[slot].al = e
	c.cache.at(r.page).writes++
	r.slot, r.al, r.cost = slot, e, uint32(cost)
	c.reserved += cost
	c.writing++
	c.idle = false
}

// SetReserve keeps a share of the device's chunks for copies (Request.IsCopy): users'
// writes find no room beyond it.
func (c *Core) SetReserve(percent uint32) {
	c.reserve = uint32(uint64(c.lay.slots) * uint64(min(percent, 100)) / 100)
	c.retry = true
}

// ScarcityMost is that of a device on which clients' writes find no room.
const ScarcityMost = 1000

// Scarcity says how much of the last sixteenth of what clients' writes may take is
// used, in thousandths; 0 before that.
func (c *Core) Scarcity() uint32 {
	usable := c.lay.slots - min(c.reserve, c.lay.slots)
	last := usable / 16
	free := usable - min(c.slots.used, usable)
	if free >= last {
		return 0
	}
	return ScarcityMost * (last - free) / last
}

// allocate gives a chunk a slot and an empty page. Nothing of it is durable
// until a commit logs it: after a crash the slot is free again.
func (c *Core) allocate(key *chunkKey) (uint32, bool) {
	if len(c.cache.free) == 0 && c.cache.made >= c.cache.limit &&
		c.cache.at(c.cache.clean).chain.next == c.cache.clean {
		return 0, false // no page: wait
	}
	slot, ok := c.slots.take()
	if !ok {
		return 0, false
	}
	in := &c.slots.info[slot]
	i := in.page
	if i == 0 {
		i = c.newPage(slot)
		p := c.cache.at(i)
		p.folded, p.isFolded = header{pageSeq: in.pageSeq}, true
	}
	// A page that is still there holds the previous chunk's unfolded removal;
	// its place in the log order and the folded header stay.
	p := c.cache.at(i)
	p.bits, p.dirty, p.logged, p.young = bitmap{}, bitmap{}, bitmap{}, bitmap{}
	p.state, p.isFresh, p.freed, p.hold = pageReady, true, false, false
	in.key, in.state = *key, stateUsed
	in.gen, in.interval, in.blocks, in.al = 0, 0, 0, 0
	if !c.slots.insert(slot) {
		panic("store: a chunk was allocated twice")
	}
	return slot, true
}

// ready does step 2. It queues the request where something is missing.
func (c *Core) ready(r *Request) bool {
	ent := &c.al.ent[r.al]
	// Rule 2. An entry whose marks are being added again is durable already.
	if ent.state == alPending && !c.cfg.Off.Has(rules.LogFirst) {
		c.al.wait[r.al].push(r)
		return false
	}
	p := c.cache.at(r.page)
	if p.state != pageReady {
		if p.state == pageBroken && r.overwrites() {
			c.restart(r.page)
		} else {
			return c.awaitPage(r, p)
		}
	}
	if ent.marks&MarkVerify != 0 {
		c.wantVerify(r.al)
		c.al.wait[r.al].push(r)
		return false
	}
	return true
}

// proven reports whether the data of a write may go to the device. Recovery
// cannot know of the last group in the log whether its flush returned. Where
// that group was the first to call a block present, a mismatch must mean that
// the data never came, so the block stays absent and nothing stale shows. Such
// a block is therefore not overwritten before a later group proves the flush.
// (Blocks that were present before need no proof: any version of them may
// show. A hot block pays once in its life, and only if no commit comes by.)
func (c *Core) proven(r *Request) bool {
	p := c.cache.at(r.page)
	p.hold = p.hold && (p.isDirty || p.lastSeq >= c.log.durable)
	m := p.young.and(r.span())
	if !p.hold && (m.empty() || p.lastSeq < c.log.durable) {
		return true
	}
	c.log.wantsProof = true
	c.log.unproven.push(r)
	return false
}

// awaitPage queues a request for a page that is not ready, or ends it when the
// page cannot be had.
func (c *Core) awaitPage(r *Request, p *page) bool {
	if p.state == pageBroken {
		c.endChange(r, p.fault)
		return false
	}
	c.wantLoad(r.page)
	c.cache.wait[r.page].push(r)
	return false
}

// overwrites reports whether the request replaces the whole chunk, whose
// unreadable metadata then does not matter any more.
func (r *Request) overwrites() bool { return r.Length == cluster.ChunkSize }

// restart gives a chunk with unreadable metadata an empty page: all of it is about
// to be written.
func (c *Core) restart(i uint32) {
	p := c.cache.at(i)
	c.keepFolded(p)
	p.bits, p.dirty, p.logged, p.young = bitmap{}, bitmap{}, bitmap{}, bitmap{}
	p.state, p.isFresh, p.fault = pageReady, true, 0
	in := &c.slots.info[p.slot]
	in.pageSeq = max(in.pageSeq, p.topSeq)
}

// requestIODone is steps 3 to 4, and the end of a read.
func (c *Core) requestIODone(r *Request, err error) {
	if r.Op == OpRead || r.Op == OpSums {
		c.readDone(r, err)
		return
	}
	if c.failed != nil {
		c.reply(r, transport.StatusIO)
		return
	}
	p := c.cache.at(r.page)
	p.flying.without(r.span())
	if err != nil {
		// What the blocks hold is unknown now. The region stays in the log until it
		// is resolved, and the incarnation changes: the client counts this copy as lost.
		// The blocks are compared with their checksums before they are used again: what
		// does not match is torn, as after a crash, and not rot.
		c.ioErrs++
		c.stats.Errors++
		c.al.mark(r.al, c.al.ent[r.al].marks|MarkPoisoned|MarkVerify)
		c.al.ent[r.al].isFailed = true
		c.verify.cursor = 0
		c.endChange(r, transport.StatusIO)
		return
	}
	first, n := r.Offset>>blockShift, r.Length>>blockShift
	if r.Op == OpZero {
		for i := range n {
			p.sums[first+i] = c.zeroSum
		}
	} else {
		for i := range n {
			p.sums[first+i] = binary.LittleEndian.Uint64(r.Sums[8*i:])
		}
	}
	c.touchChunk(r, p)
	c.untear(r)
	m := span(first, n)
	p.bits.or(m)
	p.dirty.or(m)
	p.regain()
	c.slots.info[r.slot].blocks = uint16(p.bits.count())
	c.markDirty(r.page)
	c.stats.Writes++
	c.endChange(r, transport.StatusOK)
}

// keepFolded remembers what the header table holds before memory departs from it.
func (c *Core) keepFolded(p *page) {
	if !p.isFolded {
		p.folded, p.isFolded = c.headerOf(p.slot), true
	}
}

// headerOf is the header of a slot as memory has it.
func (c *Core) headerOf(slot uint32) header {
	in := &c.slots.info[slot]
	if in.state != stateUsed {
		return header{pageSeq: in.pageSeq}
	}
	return header{key: in.key, gen: in.gen, interval: in.interval, pageSeq: in.pageSeq,
		blocks: in.blocks, state: slotUsed}
}

// touchChunk gives chunk and region the tag of the request. A tag never goes
// back here.
func (c *Core) touchChunk(r *Request, p *page) {
	c.keepFolded(p)
	in, ent := &c.slots.info[r.slot], &c.al.ent[r.al]
	ent.unlog = false
	g, i := uint64(r.Gen), r.Interval
	if g > in.gen || g == in.gen && i > in.interval {
		in.gen, in.interval = g, i
	}
	if g > ent.gen || g == ent.gen && i > ent.interval {
		ent.gen, ent.interval = g, i
	}
}

// markDirty has the next commit log the page.
func (c *Core) markDirty(i uint32) {
	p := c.cache.at(i)
	cost := recordCost(p.dirty.count())
	c.dirtyCost += cost - int(p.cost)
	p.cost = uint32(cost)
	if p.isDirty {
		return
	}
	if p.isLost { // a page that the header does not know may be there
		in := &c.slots.info[p.slot]
		in.pageSeq = max(in.pageSeq, p.topSeq)
	}
	p.isDirty = true
	p.next = 0
	if c.dirty.tail == 0 {
		c.dirty.head = i
	} else {
		c.cache.at(c.dirty.tail).next = i
	}
	c.dirty.tail = i
	c.dirty.count++
}

// endChange undoes admission and replies, or leaves the reply to a commit.
func (c *Core) endChange(r *Request, st transport.Status) {
	c.reserved -= int(r.cost)
	c.writing--
	c.al.ent[r.al].inflight--
	p := c.cache.at(r.page)
	p.writes--
	if p.state == pageReady && p.bits.empty() && p.writes == 0 &&
		c.slots.info[p.slot].state == stateUsed {
		c.freeChunk(r.page)
	}
	c.unpin(r.page)
	c.retry = c.retry || c.spaceQ.head != nil
	if st == transport.StatusOK && r.FUA {
		r.stage = stageFlush
		c.flushQ.push(r)
		return
	}
	c.reply(r, st)
}

// freeChunk takes an empty chunk out of the index. Its slot is free for others
// once that is durable.
func (c *Core) freeChunk(i uint32) {
	p := c.cache.at(i)
	in := &c.slots.info[p.slot]
	c.keepFolded(p)
	c.slots.remove(p.slot)
	if in.al != 0 {
		c.al.ent[in.al].slot = 0
		c.al.ent[in.al].freeing++
	}
	in.state, in.blocks = stateFreeing, 0
	c.slots.freeing++
	p.bits, p.dirty = bitmap{}, bitmap{}
	c.markDirty(i)
}
