// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/transport"
)

// stepRead carries a read or a bitmap query on. Absent blocks are filled with
// zeroes; what the device holds there never shows.
func (c *Core) stepRead(r *Request) {
	p, slot, ok := c.readable(r)
	if !ok {
		return
	}
	if r.Op == OpBitmap {
		p.bits.put(r.Data)
		c.unpin(r.page)
		c.reply(r, transport.StatusOK)
		return
	}
	if r.Op == OpSums && p.bits.empty() {
		c.fillTable(r, p, slot, nil, 0)
		c.unpin(r.page)
		c.reply(r, transport.StatusOK)
		return
	}
	c.readBlocks(r, p, slot)
}

// readable returns the page of the request's chunk, pinned and ready, and its
// slot. It reports false when the request waits or was answered: nothing is
// stored, or the chunk's metadata cannot be had.
func (c *Core) readable(r *Request) (*page, uint32, bool) {
	key := r.key()
	slot, ok := c.slots.find(&key)
	if ok && r.page != 0 && c.cache.at(r.page).slot != slot { // freed and stored anew meanwhile
		c.unpin(r.page)
		r.page = 0
	}
	if !ok {
		c.endHole(r)
		return nil, 0, false
	}
	if r.page == 0 {
		if r.page = c.pageOf(slot); r.page == 0 {
			c.awaitCache(r)
			return nil, 0, false
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
		return nil, 0, false
	default:
		c.wantLoad(r.page)
		c.cache.wait[r.page].push(r)
		return nil, 0, false
	}
	if e := c.slots.info[slot].al; e != 0 && c.al.ent[e].marks&MarkVerify != 0 {
		c.wantVerify(e)
		c.al.wait[e].push(r)
		return nil, 0, false
	}
	return p, slot, true
}

// readBlocks hands out the stored checksums and reads from the first present
// block to the last one in a single I/O.
func (c *Core) readBlocks(r *Request, p *page, slot uint32) {
	if r.Op == OpSums {
		r.Offset, r.Length = 0, cluster.ChunkSize
	}
	m := p.bits.and(r.span())
	if m.empty() {
		c.unpin(r.page)
		r.page = 0
		c.endHole(r)
		return
	}
	first := r.Offset >> blockShift
	isLost := false
	for i := range r.Length >> blockShift {
		if r.Op == OpSums || r.Raw {
			break // made of the bytes that are read
		}
		s := c.zeroSum
		if m.has(first + i) {
			s = p.sums[first+i]
			isLost = isLost || s == unknownSum
		}
		binary.LittleEndian.PutUint64(r.Sums[8*i:], s)
	}
	if isLost { // nobody could verify them
		c.stats.Rot++
		c.unpin(r.page)
		c.reply(r, transport.StatusRot)
		return
	}
	a, b := m.first()-first, m.last()-first+1
	r.slot, r.stage = slot, stageIO
	r.io.Kind, r.io.Meta, r.io.owner, r.io.req = IORead, false, ownRequest, r
	r.io.Off = c.lay.dataAt(slot) + int64(first+a)<<blockShift
	r.io.Data = r.Data[a<<blockShift : b<<blockShift]
	r.io.Len = int64(len(r.io.Data))
	// The bitmap may change before the read returns, the answer may not.
	r.present = m
	c.startIO(&r.io)
}

func (c *Core) readDone(r *Request, err error) {
	if c.failed != nil {
		c.reply(r, transport.StatusIO)
		return
	}
	p := c.cache.at(r.page)
	c.unpin(r.page)
	if err != nil {
		c.stats.Errors++
		c.reply(r, transport.StatusIO)
		return
	}
	if r.Op == OpSums && c.isDoubted(c.slots.info[r.slot].al) { // a write has failed meanwhile
		r.page, r.stage = 0, stageStart
		c.stepRead(r)
		return
	}
	if r.Op == OpSums {
		c.fillTable(r, p, r.slot, r.io.Data, r.present.first())
		c.reply(r, transport.StatusOK)
		return
	}
	first := r.Offset >> blockShift
	st := transport.StatusOK
	for i := range r.Length >> blockShift {
		b := r.Data[i<<blockShift : (i+1)<<blockShift]
		if !r.present.has(first + i) {
			clear(b)
		} else if c.cfg.VerifyReads && !r.Raw && xxhash.Sum64(b) != binary.LittleEndian.Uint64(r.Sums[8*i:]) {
			// Not torn: a region that a crash left uncertain was verified before its
			// first read. It is rot, to be repaired from another copy (rule 22).
			c.stats.Rot++
			st = transport.StatusRot
		}
	}
	if r.Raw {
		sumRaw(r)
	}
	c.stats.Reads++
	c.reply(r, st)
}

func (c *Core) endHole(r *Request) {
	if r.page != 0 {
		c.unpin(r.page)
	}
	r.Hole = true
	if r.Op == OpSums {
		key := r.key()
		*r.Table = transport.SumTable{}
		c.fillRegion(r.Table, c.al.find(&key))
	}
	c.stats.Holes++
	c.reply(r, transport.StatusOK)
}

// pageOf returns the page of a slot, in the cache or to be loaded, or 0 when
// the cache has no room.
func (c *Core) pageOf(slot uint32) uint32 {
	i := c.slots.info[slot].page
	if i != 0 {
		return i
	}
	return c.newPage(slot)
}

// awaitCache queues a request until a page of the cache can be evicted.
func (c *Core) awaitCache(r *Request) {
	if c.waiting == r {
		c.cacheQ.pushFront(r)
	} else {
		c.cacheQ.push(r)
	}
}
