// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// stepStamp gives a chunk another tag and clears the marks of its region (rule
// 4). The entry itself goes only later, when that is durable.
func (c *Core) stepStamp(r *Request) {
	if r.stage == stageStart {
		r.stage = stageSpace
	}
	if r.stage == stageSpace && !c.admitChange(r) || !c.ready(r) {
		return
	}
	p := c.cache.at(r.page)
	c.keepFolded(p)
	if !c.cfg.Off.Has(rules.Stamp) {
		in := &c.slots.info[r.slot]
		in.gen, in.interval = uint64(r.Tag.Gen), r.Tag.Interval // may go back: that is the point
	}
	c.adopt(r.key(), p)
	c.slots.info[r.slot].blocks = uint16(p.bits.count()) // a lost page has another count than the header
	c.stampEntry(r, r.al)
	c.markDirty(r.page)
	c.endChange(r, transport.StatusOK)
}

// stampAbsent stamps a chunk that is not stored: there is no tag to change and
// nothing to compare.
func (c *Core) stampAbsent(r *Request) admission {
	key := r.key()
	if e := c.al.find(&key); e != 0 {
		c.stampEntry(r, e)
	}
	c.reply(r, transport.StatusOK)
	return answered
}

func (c *Core) stampEntry(r *Request, e uint32) {
	ent := &c.al.ent[e]
	ent.gen, ent.interval = uint64(r.Tag.Gen), r.Tag.Interval
	ent.unlog = r.Unlog
	c.al.mark(e, 0)
	delete(c.torn, ent.key)
}

// stepMark answers OpMark: like the first write to a cold region, without the write.
func (c *Core) stepMark(r *Request) {
	key := r.key()
	if r.stage == stageStart {
		e := c.al.find(&key)
		if e == 0 {
			if !c.hasEntry() {
				c.reply(r, transport.StatusRetry)
				return
			}
			e = c.al.add(&key)
			c.stats.ALAdds++
			if slot, ok := c.slots.find(&key); ok {
				c.linkRegion(e, slot)
			}
		}
		ent := &c.al.ent[e]
		c.al.mark(e, ent.marks|r.Marks)
		ent.unlog = false
		ent.inflight++
		c.al.touch(e)
		r.al, r.stage = e, stageSpace
	}
	ent, status := &c.al.ent[r.al], transport.StatusOK
	switch {
	case r.Marks&^ent.marks != 0:
		status = transport.StatusRetry // taken away meanwhile, by a stamp or since the chunk goes
	case ent.state != alDurable || r.Marks&^ent.durMarks != 0:
		c.al.queueAdd(r.al)
		c.al.wait[r.al].push(r)
		return
	}
	ent.inflight--
	c.reply(r, status)
}

// linkRegion joins an entry and the chunk that it speaks of.
func (c *Core) linkRegion(e, slot uint32) {
	in, ent := &c.slots.info[slot], &c.al.ent[e]
	in.al = e
	ent.slot, ent.gen, ent.interval = slot+1, in.gen, in.interval
}

// fillTable answers OpSums from the bytes of blocks first and following.
func (c *Core) fillTable(r *Request, p *page, slot uint32, b []byte, first uint32) {
	t := r.Table
	*t = transport.SumTable{Stored: true}
	in := &c.slots.info[slot]
	t.Gen, t.Interval = in.gen, in.interval
	torn := c.torn[in.key]
	for i := range uint32(blocks) {
		if !p.bits.has(i) {
			continue
		}
		o := (i - first) << blockShift
		t.Sums[i] = xxhash.Sum64(b[o : o+cluster.BlockSize])
		t.Present.Set(int(i))
		switch {
		case torn != nil && torn.bits.has(i):
			t.Torn.Set(int(i))
		case t.Sums[i] != p.sums[i]:
			t.Rot.Set(int(i))
		}
	}
	c.fillRegion(t, in.al)
}

func (c *Core) fillRegion(t *transport.SumTable, e uint32) {
	if e != 0 {
		t.Logged, t.Marks = true, uint8(c.al.ent[e].marks)
	}
}

// sumRaw gives a raw read the checksums of the bytes that it carries.
func sumRaw(r *Request) {
	for i := range r.Length >> blockShift {
		b := r.Data[i<<blockShift : (i+1)<<blockShift]
		binary.LittleEndian.PutUint64(r.Sums[8*i:], xxhash.Sum64(b))
	}
}
