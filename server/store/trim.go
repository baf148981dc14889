// SPDX-License-Identifier: Apache-2.0

package store

import (
	"braid/transport"
)

// stepTrim carries a trim on (rule 20): bitmap and tag change in memory, what
// the device returns for the blocks never shows again. Where nothing is
// stored, nothing is written, now or later. Otherwise it is a change like a
// write: the region is logged first, because a copy that missed the trim differs.
func (c *Core) stepTrim(r *Request) {
	if r.stage == stageStart {
		c.stats.Trims++
		r.stage = stageLoad
	}
	if r.stage == stageLoad && !c.lookTrim(r) {
		return
	}
	if r.stage == stageSpace && !c.admitChange(r) {
		return
	}
	if r.stage == stageReady && c.ready(r) {
		c.applyTrim(r)
	}
}

// lookTrim finds out whether the range holds anything.
func (c *Core) lookTrim(r *Request) bool {
	key := r.key()
	if r.page == 0 {
		slot, ok := c.slots.find(&key)
		if !ok {
			c.finishTrim(r)
			return false
		}
		if r.page = c.pageOf(slot); r.page == 0 {
			c.awaitCache(r)
			return false
		}
		c.pin(r.page)
	}
	p := c.cache.at(r.page)
	switch p.state {
	case pageReady:
	case pageBroken:
		st := p.fault
		c.unpin(r.page)
		c.reply(r, st)
		return false
	default:
		c.wantLoad(r.page)
		c.cache.wait[r.page].push(r)
		return false
	}
	slot := p.slot
	in := &c.slots.info[slot]
	if in.state != stateUsed || in.key != key {
		c.unpin(r.page)
		c.finishTrim(r)
		return false
	}
	m := p.bits.and(r.span())
	if m.empty() && !c.isDoubted(in.al) {
		c.unpin(r.page)
		c.finishTrim(r)
		return false
	}
	r.stage = stageSpace
	return true
}

func (c *Core) applyTrim(r *Request) {
	p := c.cache.at(r.page)
	m := p.bits.and(r.span())
	if !m.empty() {
		c.touchChunk(r, p)
		c.untear(r)
		p.bits.without(m)
		p.dirty.or(m)
		p.regain()
		c.slots.info[r.slot].blocks = uint16(p.bits.count())
		c.markDirty(r.page)
	}
	c.endChange(r, transport.StatusOK)
}

// finishTrim ends a trim that had nothing to do. FUA still covers what was
// trimmed before and is not durable yet.
func (c *Core) finishTrim(r *Request) {
	if r.FUA {
		r.stage = stageFlush
		c.flushQ.push(r)
		return
	}
	c.reply(r, transport.StatusOK)
}

// discardSlot gives the data of a slot back to the device, then the slot to the
// next chunk.
func (c *Core) discardSlot(slot uint32) {
	if !c.cfg.Discard {
		c.releaseSlot(slot)
		return
	}
	c.slots.info[slot].state = stateDiscarding
	c.discards.queue = append(c.discards.queue, slot)
	c.pumpDiscards()
}

// discardState bounds the discards that are under way.
type discardState struct {
	io    [maxDiscards]IO
	free  []uint32
	queue []uint32
}

const maxDiscards = 16

func (d *discardState) init() {
	for i := range d.io {
		d.io[i] = IO{Kind: IODiscard, owner: ownDiscard, Len: 1 << chunkShift}
		d.free = append(d.free, uint32(i))
	}
}

func (c *Core) pumpDiscards() {
	d := &c.discards
	for len(d.queue) > 0 && len(d.free) > 0 {
		io := &d.io[d.free[len(d.free)-1]]
		io.index = d.free[len(d.free)-1]
		d.free = d.free[:len(d.free)-1]
		io.slot = d.queue[len(d.queue)-1]
		d.queue = d.queue[:len(d.queue)-1]
		io.Off = c.lay.dataAt(io.slot)
		c.startIO(io)
	}
}

// discardDone goes on whatever the outcome: a device that cannot discard keeps
// the space, and nothing else depends on it.
func (c *Core) discardDone(io *IO) {
	c.discards.free = append(c.discards.free, io.index)
	c.releaseSlot(io.slot)
	c.pumpDiscards()
}

func (c *Core) releaseSlot(slot uint32) {
	c.slots.freeing--
	i := c.slots.info[slot].page
	c.slots.release(slot)
	if i != 0 {
		c.settle(i)
	}
	c.wakeCache()
}
