// SPDX-License-Identifier: Apache-2.0

package store

import (
	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/transport"
)

func volumeOf(e *alEntry) cluster.VolumeID { return cluster.VolumeID(e.key.volume) }

// doubt is what the last group of the log says of a chunk. The device flush of
// that group may not have returned, so its data may be missing where its record
// is not: it counts only block by block, where the data matches.
type doubt struct {
	seq           uint64 // the group
	bits, mask    bitmap
	sums          [blocks]uint64
	gen, interval uint64
}

func (d *doubt) add(r *record) {
	d.bits, d.gen, d.interval = r.bits, r.gen, r.interval
	d.mask.or(r.mask)
	eachSum(r, func(i uint32, sum uint64) { d.sums[i] = sum })
}

// verifyState compares the blocks of one chunk after another with their
// checksums after a crash, on first use (rule 22). Only regions of the activity
// log come here; a mismatch anywhere else is rot.
type verifyState struct {
	queue  []uint32 // entries of the activity log
	entry  uint32   // under way, 0: none
	page   uint32
	stage  verifyStage
	io     IO
	buf    []byte
	first  uint32
	cursor uint32 // of verifyNext; a start and a failed write add the mark
}

type verifyStage uint8

const (
	verifyIdle verifyStage = iota
	verifyLoad
	verifyReading
)

func (c *Core) isDoubted(e uint32) bool { return e != 0 && c.al.ent[e].marks&MarkVerify != 0 }

func (c *Core) wantVerify(e uint32) {
	v := &c.verify
	if e == 0 || e == v.entry {
		return
	}
	for _, x := range v.queue {
		if x == e {
			return
		}
	}
	v.queue = append(v.queue, e)
}

func (c *Core) pumpVerify() {
	v := &c.verify
	for {
		if v.stage == verifyIdle {
			if len(v.queue) == 0 {
				return
			}
			e := v.queue[0]
			ent := &c.al.ent[e]
			if ent.slot == 0 || ent.marks&MarkVerify == 0 {
				v.queue = v.queue[:copy(v.queue, v.queue[1:])]
				c.verified(e)
				continue
			}
			i := c.pageOf(ent.slot - 1)
			if i == 0 || !c.isQuiet(i) {
				return // tried again when something moves
			}
			v.queue = v.queue[:copy(v.queue, v.queue[1:])]
			v.entry, v.page, v.stage = e, i, verifyLoad
			c.pin(i)
		}
		if v.stage != verifyLoad {
			return
		}
		p := c.cache.at(v.page)
		switch p.state {
		case pageReady:
			c.readVerify(p)
		case pageBroken:
			c.endVerify(p.fault) // not verified: the next use tries again
		default:
			c.wantLoad(v.page)
			c.pumpLoads()
			return
		}
	}
}

// isQuiet reports that no data of a page's chunk is being written. New writes
// wait for the verification.
func (c *Core) isQuiet(i uint32) bool {
	return c.cache.at(i).flying.empty() && c.mend.page != i
}

func (c *Core) readVerify(p *page) {
	v := &c.verify
	m := p.bits
	if d := c.doubts[c.al.ent[v.entry].key]; d != nil {
		m.or(d.bits)
	}
	v.stage = verifyReading
	if m.empty() {
		c.compare()
		return
	}
	if v.buf == nil {
		v.buf = alignedBytes(cluster.ChunkSize)
	}
	v.first = m.first()
	n := m.last() + 1 - v.first
	v.io = IO{Kind: IORead, owner: ownVerify, Len: int64(n) << blockShift, Shell: v.io.Shell,
		Off: c.lay.dataAt(p.slot) + int64(v.first)<<blockShift, Data: v.buf[:n<<blockShift]}
	c.startIO(&v.io)
}

func (c *Core) verifyRead(err error) {
	if c.failed != nil {
		return
	}
	if err != nil {
		c.stats.Errors++
		c.endVerify(transport.StatusIO)
		return
	}
	c.compare()
}

// compare decides for each block, from what is on the disk now and durable
// (Open has flushed the device). Deciding again after another crash gives the
// same: nothing is overwritten before the outcome is in the log.
//
//   - absent before and after the doubted record: absent;
//   - the doubted record trimmed it: absent;
//   - it wrote it, and the data matches: present;
//   - it wrote it, the data does not match, nothing was there before: absent;
//   - otherwise the block was flushed once: its checksum matches, or a later
//     write has come through, whole or in part. The block is noted as torn. The
//     resolver prefers a copy that matches and has the block written from there,
//     or else stamps the chunk, which adopts what is here. A device that resolves
//     by itself adopts at once.
func (c *Core) compare() {
	v := &c.verify
	ent := &c.al.ent[v.entry]
	p := c.cache.at(v.page)
	d := c.doubts[ent.key]
	cand := p.bits
	if d != nil {
		cand.or(d.bits)
	}
	var torn tornBlocks
	changed := d != nil
	c.keepFolded(p)
	for i := range uint32(blocks) {
		if !cand.has(i) {
			continue
		}
		o := (i - v.first) << blockShift
		sum := xxhash.Sum64(v.buf[o : o+cluster.BlockSize])
		had := p.bits.has(i)
		switch {
		case d != nil && !d.bits.has(i):
			p.bits.clear(i)
			p.dirty.set(i)
		case d != nil && d.mask.has(i) && sum == d.sums[i]:
			p.bits.set(i)
			p.sums[i] = sum
			p.dirty.set(i)
		case had && (sum == p.sums[i] || p.sums[i] == unknownSum):
		case had:
			torn.bits.set(i)
			torn.sums = append(torn.sums, sum)
		}
	}
	p.regain()
	if !torn.bits.empty() {
		c.stats.Torn += uint64(torn.bits.count())
		c.torn[ent.key] = &torn
		if c.cfg.LocalResolve {
			c.adopt(ent.key, p)
			changed = true
		}
	}
	c.settleVerify(ent, p, d, changed)
	c.endVerify(transport.StatusOK)
}

// tornBlocks are the blocks of a chunk that a crash left unlike their checksums,
// and the checksums of what they hold, ascending by block.
type tornBlocks struct {
	bits bitmap
	sums []uint64
}

// adopt takes what torn blocks hold for their contents (rule 22).
func (c *Core) adopt(key chunkKey, p *page) {
	t := c.torn[key]
	if t == nil {
		return
	}
	n := 0
	for i := range uint32(blocks) {
		if t.bits.has(i) {
			if p.bits.has(i) {
				p.sums[i] = t.sums[n]
				p.dirty.set(i)
			}
			n++
		}
	}
}

// untear forgets torn blocks that were written or trimmed since.
func (c *Core) untear(r *Request) {
	if len(c.torn) == 0 {
		return
	}
	key := r.key()
	t := c.torn[key]
	if t == nil {
		return
	}
	m := r.span()
	kept := t.sums[:0]
	n := 0
	for i := range uint32(blocks) {
		if t.bits.has(i) {
			if !m.has(i) {
				kept = append(kept, t.sums[n])
			}
			n++
		}
	}
	t.sums = kept
	t.bits.without(m)
	if t.bits.empty() {
		delete(c.torn, key)
	}
}

func (c *Core) settleVerify(ent *alEntry, p *page, d *doubt, changed bool) {
	in := &c.slots.info[p.slot]
	if d != nil {
		if d.gen > in.gen || d.gen == in.gen && d.interval > in.interval {
			in.gen, in.interval = d.gen, d.interval
			ent.gen, ent.interval = d.gen, d.interval
		}
		delete(c.doubts, ent.key)
		p.doubted = false
		p.hold = true
	}
	c.stats.Verified++
	in.blocks = uint16(p.bits.count())
	if changed {
		c.markDirty(c.verify.page)
		if p.bits.empty() && p.writes == 0 {
			c.freeChunk(c.verify.page)
		}
	}
}

func (c *Core) endVerify(st transport.Status) {
	v := &c.verify
	e := v.entry
	v.entry, v.stage = 0, verifyIdle
	if st == transport.StatusOK {
		c.verified(e)
	} else {
		q := c.al.wait[e]
		c.al.wait[e] = reqQueue{}
		for r := q.pop(); r != nil; r = q.pop() {
			c.failWaiter(r, st)
		}
	}
	c.unpin(v.page)
}

// verified lets the requests go that waited. Whether the region is also
// resolved is for the client to say, unless this device decides alone.
func (c *Core) verified(e uint32) {
	ent := &c.al.ent[e]
	c.al.mark(e, ent.marks&^c.settled())
	ent.isFailed = false
	if ent.state == alPending {
		return // they wait for that as well
	}
	q := c.al.wait[e]
	c.al.wait[e] = reqQueue{}
	for r := q.pop(); r != nil; r = q.pop() {
		c.step(r)
	}
}

// settled are the marks that go when a region has been verified.
func (c *Core) settled() Marks {
	if c.cfg.LocalResolve {
		return MarkVerify | MarkSuspect
	}
	return MarkVerify
}

// verifyNext has the next region that needs it verified, for a device that is
// idle: regions that nobody touches would otherwise stay in the log for ever.
func (c *Core) verifyNext() bool {
	if c.verify.stage != verifyIdle || len(c.verify.queue) > 0 {
		return true
	}
	for i := c.verify.cursor; i < uint32(len(c.al.ent)); i++ {
		if e := &c.al.ent[i]; e.state != alFree && e.marks&MarkVerify != 0 {
			c.verify.cursor = i + 1 // one that fails is tried again when it is used
			c.wantVerify(i)
			return true
		}
	}
	c.verify.cursor = uint32(len(c.al.ent))
	return false
}

// failWaiter ends a request that waits for something that failed.
func (c *Core) failWaiter(r *Request, st transport.Status) {
	if r.stage == stageReady {
		c.endChange(r, st)
		return
	}
	if r.Op == OpMark {
		c.al.ent[r.al].inflight--
	}
	if r.page != 0 {
		c.unpin(r.page)
	}
	c.reply(r, st)
}
