// SPDX-License-Identifier: Apache-2.0

package store

import (
	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/transport"
)

// A pass of the scrubber goes over the device in this order; the position counts
// the pieces:
//
//	0                       both superblocks
//	1 to log pieces         the part of the log ring that is in use
//	then                    the header table, a piece of 1 MiB at a time
//	then, one a slot        chunks: the page's newest twin, then the data
//
// What is damaged in superblocks, log and header table is known in memory, so it
// is written again: a superblock and a header page in place, a page of the log by
// folding what it holds and letting the tail pass it. A chunk's page is written
// again if it is in memory; otherwise its checksums are lost.
type scrubPlace struct {
	kind  scrubKind
	index uint32
}

type scrubKind uint8

const (
	scrubSuper scrubKind = iota
	scrubLog
	scrubHeaders
	scrubChunk
	scrubEnd
)

const (
	ringPiece    = scanBytes / pageSize       // log pages
	headersPiece = scanBytes / (2 * pageSize) // header pages, both twins
)

func (c *Core) scrubAt(at uint64) scrubPlace {
	for _, x := range [...]struct {
		kind  scrubKind
		count uint32
	}{
		{scrubSuper, 1},
		{scrubLog, (c.lay.ringPages + ringPiece - 1) / ringPiece},
		{scrubHeaders, (c.lay.headerPages() + headersPiece - 1) / headersPiece},
		{scrubChunk, c.lay.slots},
	} {
		if at < uint64(x.count) {
			return scrubPlace{x.kind, uint32(at)}
		}
		at -= uint64(x.count)
	}
	return scrubPlace{kind: scrubEnd}
}

// stepScrub answers OpScrub.
func (c *Core) stepScrub(r *Request) {
	if r.stage == stageLoad {
		c.scrubData(r)
		return
	}
	r.Length, r.Hole = 0, true
	for looked := 0; looked < maxScan; looked++ {
		at := c.scrubAt(r.Value)
		r.Value++
		r.slot = at.index
		if r.Only != 0 && at.kind < scrubChunk {
			continue
		}
		switch at.kind {
		case scrubSuper:
			c.scrubRead(r, 0, superB+pageSize)
			return
		case scrubLog:
			n := min(ringPiece, c.lay.ringPages-at.index*ringPiece)
			r.seq, r.io.seq = c.log.durableTail, c.log.next
			if c.commit.stage != commitIdle {
				r.io.seq = c.commit.group
			}
			c.scrubRead(r, ringOffset+int64(at.index)*scanBytes, int64(n)*pageSize)
			return
		case scrubHeaders:
			first := at.index * headersPiece
			n := min(headersPiece, c.lay.headerPages()-first)
			c.scrubRead(r, c.lay.headerAt(first, 0), int64(n)*2*pageSize)
			return
		case scrubChunk:
			if in := &c.slots.info[at.index]; in.state == stateUsed && !c.isDoubted(in.al) &&
				(r.Only == 0 || cluster.VolumeID(in.key.volume) == r.Only) {
				c.scrubChunk(r, in)
				return
			}
		case scrubEnd:
			r.Value = 0
			c.stats.ScrubPasses++
			c.reply(r, transport.StatusOK)
			return
		}
	}
	c.reply(r, transport.StatusOK)
}

func (c *Core) scrubRead(r *Request, off, n int64) {
	r.io.Kind, r.io.Meta, r.io.owner, r.io.req = IORead, true, ownScrub, r
	r.io.Off, r.io.Len, r.io.Data = off, n, r.Data[:n]
	c.startIO(&r.io)
}

// scrubIODone looks at what was read.
func (c *Core) scrubIODone(r *Request, err error) {
	if c.failed != nil {
		c.reply(r, transport.StatusIO)
		return
	}
	r.Length += uint32(r.io.Len)
	c.stats.ScrubBytes += uint64(r.io.Len)
	if r.stage == stageIO {
		c.scrubbed(r, err)
		return
	}
	if err != nil {
		clear(r.io.Data) // what cannot be read is damaged
		c.stats.Errors++
	}
	switch c.scrubAt(r.Value - 1).kind {
	case scrubSuper:
		c.judgeSuper(r.Data)
	case scrubLog:
		c.judgeLog(r)
	case scrubHeaders:
		c.judgeHeaders(r)
	case scrubChunk:
		c.judgePage(r)
		return
	}
	c.reply(r, transport.StatusOK)
}

// scrubChunk starts with the chunk's page, that is, both twins.
func (c *Core) scrubChunk(r *Request, in *slotInfo) {
	r.Hole = false
	r.Volume, r.Layer, r.Chunk = cluster.VolumeID(in.key.volume), in.key.layer, in.key.chunk
	r.seq = uint64(in.pageSeq)
	c.scrubRead(r, c.lay.pageAt(r.slot, 0), 2*pageSize)
}

// judgePage looks at the twin that counts, unless that has changed meanwhile.
func (c *Core) judgePage(r *Request) {
	in := &c.slots.info[r.slot]
	key := r.key()
	if in.state != stateUsed || in.key != key {
		r.Hole = true
		c.reply(r, transport.StatusOK)
		return
	}
	var p *page
	if in.page != 0 {
		p = c.cache.at(in.page)
	}
	settled := p == nil || p.state == pageReady && !p.folding && !p.needsSeq
	if settled && in.pageSeq != 0 && uint64(in.pageSeq) == r.seq {
		var x chunkPage
		t := int64(in.pageSeq & 1)
		if !x.decode(r.Data[t*pageSize:], c.salt, r.slot, nil) || x.head.pageSeq != in.pageSeq {
			c.stats.MetaRot++
			if p != nil && !p.isLost {
				c.rewritePage(in.page)
			}
		}
	}
	r.stage = stageLoad
	c.scrubData(r)
}

// rewritePage has a page logged whole and folded anew, to its other twin.
func (c *Core) rewritePage(i uint32) {
	p := c.cache.at(i)
	if p.isDirty || !c.roomFor(recordCost(p.bits.count())) || c.unfoldable() >= c.unfoldedLimit() {
		return // with the next pass
	}
	c.keepFolded(p)
	if p.chain.next != 0 && p.firstSeq == 0 {
		c.cache.unlink(i)
	}
	p.dirty = p.bits
	c.markDirty(i)
	c.stats.MetaMended++
}

// scrubData reads what is stored of a chunk. Blocks that are being written are
// left for the next pass.
func (c *Core) scrubData(r *Request) {
	p, slot, ok := c.readable(r)
	if !ok {
		return
	}
	if p.isLost {
		c.unpin(r.page)
		c.reply(r, transport.StatusRot)
		return
	}
	t := r.Table
	*t = transport.SumTable{Stored: true}
	m := p.bits
	m.without(p.flying)
	if tb := c.torn[r.key()]; tb != nil {
		m.without(tb.bits)
		tb.bits.put(t.Torn[:])
	}
	in := &c.slots.info[slot]
	t.Gen, t.Interval = in.gen, in.interval
	c.fillRegion(t, in.al)
	p.bits.put(t.Present[:])
	t.Sums = p.sums
	c.stats.ScrubChunks++
	if m.empty() {
		c.unpin(r.page)
		c.reply(r, transport.StatusOK)
		return
	}
	r.present, r.slot, r.stage = m, slot, stageIO
	a := m.first()
	n := int64(m.last()+1-a) << blockShift
	r.io.Kind, r.io.Meta, r.io.owner, r.io.req = IORead, false, ownScrub, r
	r.io.Off, r.io.Len, r.io.Data = c.lay.dataAt(slot)+int64(a)<<blockShift, n, r.Data[:n]
	c.startIO(&r.io)
}

// scrubbed compares. A block that was changed since the read began is not judged.
func (c *Core) scrubbed(r *Request, err error) {
	p, t := c.cache.at(r.page), r.Table
	a := r.present.first()
	isDoubted := c.isDoubted(c.slots.info[r.slot].al) // a write has failed meanwhile
	for i := range uint32(blocks) {
		if !r.present.has(i) || isDoubted || p.flying.has(i) || !p.bits.has(i) || p.sums[i] != t.Sums[i] {
			continue
		}
		o := (i - a) << blockShift
		if err != nil {
			t.Rot.Set(int(i)) // which of them cannot be read is not known
			continue
		}
		sum := xxhash.Sum64(r.Data[o : o+pageSize])
		if sum != t.Sums[i] {
			t.Rot.Set(int(i))
			t.Sums[i] = sum
			c.stats.Rot++
		}
	}
	c.unpin(r.page)
	if err != nil {
		c.stats.Errors++
		c.reply(r, transport.StatusIO)
		return
	}
	c.reply(r, transport.StatusOK)
}
