// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"fmt"
	"sort"

	"braid/cluster"
)

// ring is the log as read from the device.
type ring struct {
	mem   []byte    // all pages
	pages []logPage // by place; seq 0: not valid
	n     uint64
}

func readRing(d Disk, lay *layout, salt uint64) (*ring, error) {
	g := &ring{n: uint64(lay.ringPages)}
	g.mem = alignedBytes(int(lay.ringPages) * pageSize)
	g.pages = make([]logPage, lay.ringPages)
	for off := 0; off < len(g.mem); off += scanBytes {
		end := min(off+scanBytes, len(g.mem))
		if err := readFull(d, g.mem[off:end], ringOffset+int64(off)); err != nil {
			return nil, fmt.Errorf("log ring: %w", err)
		}
	}
	for i := range g.pages {
		p := &g.pages[i]
		if !p.open(g.mem[i*pageSize:(i+1)*pageSize], salt, uint32(i), lay.ringPages) {
			*p = logPage{}
		}
	}
	return g, nil
}

func (g *ring) at(seq uint64) *logPage { return &g.pages[seq%g.n] }

// group returns the first page of the complete group that starts at seq, or nil.
func (g *ring) group(seq uint64) *logPage {
	h := g.at(seq)
	if h.seq != seq || h.group != seq {
		return nil
	}
	for i := uint64(1); i < uint64(h.count); i++ {
		p := g.at(seq + i)
		if p.seq != seq+i || p.group != seq || p.count != h.count || p.start != h.start {
			return nil
		}
	}
	return h
}

// last returns the complete group with the highest sequence number, after
// checking that it is the end of an unbroken chain from its tail and that no
// later group was ever written: a hole in the middle is damage, because groups
// are written one after another, each after the flush of the one before.
func (g *ring) last() (*logPage, error) {
	var last *logPage
	for i := range g.pages {
		p := &g.pages[i]
		if p.seq != 0 && p.seq == p.group && (last == nil || p.seq > last.seq) && g.group(p.seq) != nil {
			last = p
		}
	}
	if last == nil {
		return nil, fmt.Errorf("%w: the log ring has no valid page", ErrCorrupt)
	}
	for s := last.tail; s <= last.seq; {
		h := g.group(s)
		if h == nil {
			return nil, fmt.Errorf("%w: the log has a hole at page %d (tail %d, end %d)",
				ErrCorrupt, s, last.tail, last.seq)
		}
		s += uint64(h.count)
	}
	end := last.seq + uint64(last.count)
	for i := range g.pages {
		p := &g.pages[i]
		if p.seq < end {
			continue
		}
		// What may lie beyond the end: the pieces of the group that a crash cut off,
		// or of one that an earlier start cut off and a later one wrote over.
		if p.group != end && (p.group > last.group || p.start >= last.start) {
			return nil, fmt.Errorf("%w: the log has a hole before page %d (end %d)",
				ErrCorrupt, p.seq, end)
		}
	}
	return last, nil
}

// records calls fn for every record of a group.
func (g *ring) records(h *logPage, fn func(*record) error) error {
	for i := range uint64(h.count) {
		k := (h.seq + i) % g.n
		b := g.mem[k*pageSize+logHeader:][:g.pages[k].used]
		for len(b) > 0 {
			var r record
			rest, ok := r.next(b)
			if !ok {
				return fmt.Errorf("%w: log page %d has an unreadable record", ErrCorrupt, h.seq+i)
			}
			if err := fn(&r); err != nil {
				return err
			}
			b = rest
		}
	}
	return nil
}

// replay applies the log to what the header table said.
type replay struct {
	c         *Core
	seq       uint64
	uncertain map[uint64]bool
	regions   map[chunkKey]*replayRegion
	order     uint64
}

type replayRegion struct {
	seq, order uint64
	marks      Marks
}

func (c *Core) replayLog(d Disk) error {
	g, err := readRing(d, &c.lay, c.salt)
	if err != nil {
		return err
	}
	last, err := g.last()
	if err != nil {
		return err
	}
	p := &replay{c: c, uncertain: map[uint64]bool{}, regions: map[chunkKey]*replayRegion{}}
	isClean := c.sb.flags&superClean != 0
	// Only the last group can lack its flush; not if a clean stop came after it.
	if last.seq >= c.sb.certain {
		p.uncertain[last.seq] = true
		c.doubted = append(c.doubted, last.seq)
	}
	end := last.seq + uint64(last.count)
	if end < c.sb.certain {
		// The group's pages were flushed before a clean stop: no crash can have cut them off.
		return fmt.Errorf("%w: the log ends at page %d, a clean stop left it at %d", ErrCorrupt, end, c.sb.certain)
	}
	each := func(fn func(*record) error) error {
		for s := last.tail; s < end; {
			h := g.group(s)
			p.seq = s
			if err := g.records(h, fn); err != nil {
				return err
			}
			s += uint64(h.count)
		}
		return nil
	}
	// Doubts first: a doubt stands behind the group that it speaks of.
	if err := each(func(r *record) error {
		if r.kind == recDoubt {
			p.uncertain[r.seq] = true
		}
		return nil
	}); err != nil {
		return err
	}
	limit := c.cache.limit
	c.cache.limit = int(c.lay.slots) + slabPages // what the log speaks of must fit
	if err := each(p.apply); err != nil {
		return err
	}
	c.cache.limit = max(limit, c.cache.made)
	c.log.next, c.log.tail, c.log.durableTail = end, last.tail, last.tail
	c.log.durable = last.seq
	p.finish(isClean)
	return nil
}

func (p *replay) apply(r *record) error {
	c := p.c
	switch r.kind {
	case recALAdd:
		p.order++
		p.regions[r.key] = &replayRegion{p.seq, p.order, Marks(r.flags)}
	case recALRemove:
		delete(p.regions, r.key)
	case recFence:
		v := c.volume(cluster.VolumeID(r.key.volume))
		v.gen = max(v.gen, cluster.Generation(r.gen))
		v.durable, v.logSeq = v.gen, p.seq
	case recDrop:
		if v := c.volumes[cluster.VolumeID(r.key.volume)]; v != nil {
			c.forget(v)
		}
	case recChunk:
		if r.slot >= c.lay.slots {
			return fmt.Errorf("%w: log record of slot %d of %d", ErrCorrupt, r.slot, c.lay.slots)
		}
		p.chunk(r)
	}
	return nil
}

// chunk applies a chunk record. Records hold absolute values, so that it does
// not matter which of them the pages on the disk already contain.
func (p *replay) chunk(r *record) {
	c := p.c
	in := &c.slots.info[r.slot]
	i := in.page
	if i == 0 {
		i = c.newPage(r.slot)
		g := c.cache.at(i)
		g.folded, g.isFolded = c.headerOf(r.slot), true
		g.state, g.needsBits = pageOverlay, true
		g.firstSeq, g.needsSeq = p.seq, true
		c.cache.push(c.cache.log, i)
		c.cache.unfolded++
	}
	g := c.cache.at(i)
	g.lastSeq = p.seq
	if d := c.doubts[r.key]; d != nil && d.seq != p.seq {
		delete(c.doubts, r.key) // a later record: the doubt was settled before it
		g.doubted = false
	}
	if r.flags&chunkFreed != 0 {
		*in = slotInfo{pageSeq: in.pageSeq, page: i}
		g.bits, g.state, g.needsBits, g.doubted, g.isFresh = bitmap{}, pageReady, false, false, false
		return
	}
	if r.flags&chunkFresh != 0 {
		g.bits, g.have, g.logged = bitmap{}, bitmap{}, bitmap{}
		g.state, g.needsBits, g.isFresh = pageReady, false, false
	}
	in.key, in.state = r.key, stateUsed
	if p.uncertain[p.seq] {
		p.doubt(r, g)
		return
	}
	g.doubted = false
	in.gen, in.interval, in.blocks = r.gen, r.interval, uint16(r.bits.count())
	g.bits, g.needsBits = r.bits, false
	g.have.or(r.mask)
	g.logged = r.bits
	eachSum(r, func(b uint32, sum uint64) { g.sums[b] = sum })
}

// doubt keeps the record of an uncertain group apart until the chunk's data was
// looked at. The page keeps what was certain before.
func (p *replay) doubt(r *record, g *page) {
	c := p.c
	d := c.doubts[r.key]
	if d == nil {
		d = &doubt{seq: p.seq}
		c.doubts[r.key] = d
	}
	d.add(r)
	g.doubted = true
	if r.flags&chunkFresh != 0 {
		g.isFresh = true
	}
}

func eachSum(r *record, fn func(block uint32, sum uint64)) {
	o := 0
	for w, m := range r.mask {
		for ; m != 0; m &= m - 1 {
			fn(uint32(w*64+tz(m)), binary.LittleEndian.Uint64(r.sums[o:]))
			o += 8
		}
	}
}

// finish builds the activity log. After a crash every region in it is suspect,
// and its blocks are compared with their checksums before anyone sees them.
func (p *replay) finish(isClean bool) {
	c := p.c
	for key := range c.doubts {
		if p.regions[key] == nil { // cannot be, and is safe this way
			p.order++
			p.regions[key] = &replayRegion{c.log.durableTail, p.order, 0}
		}
	}
	keys := make([]chunkKey, 0, len(p.regions))
	for k := range p.regions {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(a, b int) bool { return p.regions[keys[a]].order < p.regions[keys[b]].order })
	c.al.init(c.cfg.ALSlots, len(keys)) // what a crash left does not take room from what comes
	c.log.reserveFor(c.lay.ringPages, len(c.al.ent))
	c.commit.init(c.log.groupMax, len(c.al.ent))
	for _, k := range keys {
		e := c.al.add(&k)
		ent := &c.al.ent[e]
		ent.state = alDurable
		ent.logMarks = p.regions[k].marks
		ent.durMarks = ent.logMarks
		if c.al.mark(e, ent.logMarks); !isClean || c.doubts[k] != nil {
			c.al.mark(e, ent.logMarks|MarkSuspect|MarkVerify)
		}
		c.al.logged(e, p.regions[k].seq)
	}
	for s := range c.lay.slots {
		in := &c.slots.info[s]
		if in.state != stateUsed {
			continue
		}
		if e := c.al.find(&in.key); e != 0 {
			in.al = e
			ent := &c.al.ent[e]
			ent.slot, ent.gen, ent.interval = s+1, in.gen, in.interval
		}
	}
	for e := c.al.ent[0].lru.next; e != 0; e = c.al.ent[e].lru.next {
		if ent := &c.al.ent[e]; ent.slot == 0 {
			c.al.mark(e, ent.marks&^c.settled())
		}
	}
}
