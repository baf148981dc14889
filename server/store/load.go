// SPDX-License-Identifier: Apache-2.0

package store

import (
	"braid/transport"
)

// loadState reads pages into the cache: both twins at once, a few at a time.
type loadState struct {
	io    []IO // index: page; Data: 8 KiB
	free  []uint32
	queue pageQueue
}

const maxLoads = 64

// unknownSum stands for a checksum that is lost: no block matches it, so the
// block shows as rot and is repaired from another copy.
const unknownSum = 0x6C6F737453756D21

func (l *loadState) init(slots uint32) {
	n := min(maxLoads, int(slots))
	mem := alignedBytes(n * 2 * pageSize)
	l.io = make([]IO, n)
	for i := range l.io {
		l.io[i] = IO{Kind: IORead, Meta: true, owner: ownLoad, Len: 2 * pageSize,
			Data: mem[i*2*pageSize : (i+1)*2*pageSize]}
		l.free = append(l.free, uint32(i))
	}
}

// wantLoad has a page read from the device, unless that is under way.
func (c *Core) wantLoad(i uint32) {
	p := c.cache.at(i)
	if p.loading {
		return
	}
	p.loading = true
	if p.state == pageNone {
		p.state = pageLoading
	}
	c.pin(i)
	p.loadNext = 0
	if c.loads.queue.tail == 0 {
		c.loads.queue.head = i
	} else {
		c.cache.at(c.loads.queue.tail).loadNext = i
	}
	c.loads.queue.tail = i
}

func (c *Core) pumpLoads() {
	l := &c.loads
	for l.queue.head != 0 && len(l.free) > 0 {
		i := l.queue.head
		p := c.cache.at(i)
		l.queue.head = p.loadNext
		if l.queue.head == 0 {
			l.queue.tail = 0
		}
		k := l.free[len(l.free)-1]
		l.free = l.free[:len(l.free)-1]
		io := &l.io[k]
		io.index = k
		io.page = i
		io.Off = c.lay.pageAt(p.slot, 0)
		c.stats.PageReads++
		c.startIO(io)
	}
}

func (c *Core) loadDone(io *IO, err error) {
	c.loads.free = append(c.loads.free, io.index)
	if c.failed != nil {
		return
	}
	i := io.page
	p := c.cache.at(i)
	p.loading = false
	overlay := p.state == pageOverlay
	if p.needsSeq {
		c.learnSeq(p, io.Data, err)
	}
	switch st := c.decodePage(p, io.Data, err); {
	case p.state == pageReady:
	case st == transport.StatusOK:
		p.state, p.fault, p.logged = pageReady, 0, p.bits
	case overlay && !p.needsBits:
		// The bitmap is known from the log; sums that are not show as rot.
		p.state, p.fault, p.logged = pageReady, 0, p.bits
		lost := p.bits
		lost.without(p.have)
		for b := range uint32(blocks) {
			if lost.has(b) {
				p.sums[b] = unknownSum
			}
		}
		c.stats.Rot += uint64(lost.count())
	case overlay || st == transport.StatusRot:
		p.lose()
		c.stats.Rot++
	default:
		p.state, p.fault = pageBroken, st // the next use reads it again
	}
	q := c.cache.wait[i]
	c.cache.wait[i] = reqQueue{}
	for r := q.pop(); r != nil; r = q.pop() {
		c.step(r)
	}
	c.unpin(i)
	c.retry = c.retry || c.spaceQ.head != nil
}

// lose makes of a chunk whose page is gone one whose blocks have all rotted: which
// of them are present is not known either, and what the disk has is nobody's. No
// read is answered from it; whoever mends it (a resync, a resolver, a client that
// writes) does so block by block.
func (p *page) lose() {
	p.state, p.fault, p.needsBits, p.isLost = pageReady, 0, false, true
	p.bits = span(0, blocks)
	p.logged = p.bits
	for i := range p.sums {
		p.sums[i] = unknownSum
	}
}

// regain notes that nothing of a lost page is missing any more.
func (p *page) regain() {
	for i := range uint32(blocks) {
		if !p.isLost || p.bits.has(i) && p.sums[i] == unknownSum {
			return
		}
	}
	p.isLost = false
}

// seqLeap is added where the pages on the disk cannot be read: more folds than
// this are never interrupted one after another without a header page in between.
const seqLeap = 1 << 10

// learnSeq keeps page numbers ascending: a fold that a crash interrupted may
// have left newer pages than the header names.
func (c *Core) learnSeq(p *page, b []byte, err error) {
	p.needsSeq = false
	in := &c.slots.info[p.slot]
	if err != nil {
		in.pageSeq += seqLeap
		return
	}
	for t := range 2 {
		var x chunkPage
		if x.decode(b[t*pageSize:], c.salt, p.slot, nil) && x.head.pageSeq&1 == uint32(t) {
			in.pageSeq = max(in.pageSeq, x.head.pageSeq)
		}
	}
}

// decodePage takes the twin that the header names. For a chunk with records in
// the log a newer one counts as well: its fold was interrupted, and the log
// covers all that it lacks. Otherwise a newer one means that the header is
// stale, and nothing is believed.
func (c *Core) decodePage(p *page, b []byte, err error) transport.Status {
	if err != nil {
		return transport.StatusIO
	}
	if p.state == pageReady {
		return transport.StatusOK
	}
	in := &c.slots.info[p.slot]
	var best chunkPage
	twin := -1
	for t := range 2 {
		var x chunkPage
		if !x.decode(b[t*pageSize:], c.salt, p.slot, nil) || x.head.pageSeq&1 != uint32(t) {
			continue
		}
		if twin < 0 || x.head.pageSeq > best.head.pageSeq {
			best, twin = x, t
		}
	}
	overlay := p.state == pageOverlay
	p.topSeq = best.head.pageSeq
	if twin < 0 || best.head.key != in.key || best.head.state != slotUsed ||
		!overlay && best.head.pageSeq != in.pageSeq {
		return transport.StatusRot
	}
	// The next fold must go to the other twin, whatever number the header has: if
	// the fold before was cut off, this is the only page there is.
	in.pageSeq = best.head.pageSeq
	var sums [blocks]uint64
	best.decode(b[twin*pageSize:], c.salt, p.slot, &sums)
	if !overlay || p.needsBits {
		p.bits, p.sums, p.needsBits = best.bits, sums, false
		return transport.StatusOK
	}
	lost := p.bits
	lost.without(p.have)
	for i := range uint32(blocks) {
		switch {
		case !lost.has(i):
		case best.bits.has(i):
			p.sums[i] = sums[i]
		default:
			p.sums[i] = unknownSum
		}
	}
	return transport.StatusOK
}
