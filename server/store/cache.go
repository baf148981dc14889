// SPDX-License-Identifier: Apache-2.0

package store

import "braid/transport"

// pageState is where a cached page stands.
type pageState uint8

const (
	pageNone    pageState = iota
	pageLoading           // a read of its twins is under way or queued
	pageReady
	pageOverlay // from the log at recovery: sums outside have lie in the page on the disk
	pageBroken  // metadata of the chunk is damaged
)

// page is the metadata of one chunk in memory: its bitmap and checksums as
// acked. No pointers, so that the collector skips the cache.
//
// A page is dirty from a change until a commit has logged it, unfolded from
// then until its twin on the disk holds it. Dirty, unfolded, folding and
// pinned pages stay; the others are evicted in order of last use.
type page struct {
	bits      bitmap
	dirty     bitmap // blocks changed since the last record
	logged    bitmap // as in the newest record, or in the page on the disk
	young     bitmap // blocks that the newest record was the first to call present
	flying    bitmap // blocks whose data is being written
	have      bitmap // pageOverlay: blocks whose sum is known from the log
	sums      [blocks]uint64
	folded    header // the chunk's header as the header table holds it
	firstSeq  uint64 // oldest group with a record that is not folded; 0: none
	lastSeq   uint64 // newest group with a record
	slot      uint32
	topSeq    uint32 // highest sequence number seen on the disk
	loadNext  uint32 // load queue
	pins      uint32
	writes    uint32 // pins that will change it
	cost      uint32 // bytes of log that its dirty blocks will take
	next      uint32 // dirty queue
	chain     link   // clean: order of use; unfolded: order of firstSeq
	state     pageState
	isDirty   bool
	isFresh   bool // no record of this chunk in this slot has been logged
	isFolded  bool // folded is valid although not unfolded (set while dirty or unfolded)
	needsBits bool // pageOverlay: the bitmap, too, lies in the page on the disk
	hold      bool // a doubt was settled: no data is written before that is proven
	needsSeq  bool // from the log: the disk may hold newer pages than the header knows
	isLost    bool // the page on the disk is damaged: see lose
	folding   bool
	loading   bool
	freed     bool             // the record of the chunk's removal is durable
	fault     transport.Status // pageBroken: what to answer
	doubted   bool             // waits for verification before it may be folded
}

const slabPages = 64

// pageCache owns the pages, numbered from 1, in slabs allocated on demand up to
// a bound. List heads are pages of their own in slab 0.
type pageCache struct {
	slabs [][]page
	wait  []reqQueue
	free  []uint32
	limit int // pages
	made  int
	inUse int
	// pinned counts pages that may not be evicted for an unbounded time: dirty,
	// unfolded or about to be.
	unfolded int
	clean    uint32 // list head: order of use
	log      uint32 // list head: unfolded, ascending by firstSeq
}

func (c *pageCache) init(limit int) {
	c.limit = limit
	c.wait = make([]reqQueue, 0, slabPages)
	c.grow()
	c.free = c.free[:len(c.free)-1] // page 0 means none
	c.clean, c.log = c.take(), c.take()
	c.made -= 3
	for _, h := range [2]uint32{c.clean, c.log} {
		c.at(h).chain = link{h, h}
	}
}

func (c *pageCache) at(i uint32) *page { return &c.slabs[i/slabPages][i%slabPages] }

func (c *pageCache) grow() {
	base := uint32(len(c.slabs) * slabPages)
	c.slabs = append(c.slabs, make([]page, slabPages))
	c.wait = append(c.wait, make([]reqQueue, slabPages)...)
	c.made += slabPages
	for i := uint32(slabPages); i > 0; i-- {
		c.free = append(c.free, base+i-1)
	}
}

func (c *pageCache) take() uint32 {
	i := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	return i
}

func (c *pageCache) push(head, i uint32) {
	h, p := c.at(head), c.at(i)
	p.chain = link{prev: h.chain.prev, next: head}
	c.at(h.chain.prev).chain.next = i
	h.chain.prev = i
}

func (c *pageCache) unlink(i uint32) {
	p := c.at(i)
	c.at(p.chain.prev).chain.next = p.chain.next
	c.at(p.chain.next).chain.prev = p.chain.prev
	p.chain = link{}
}

// evictable pages lie in the clean list, and only there.
func (p *page) evictable() bool {
	return p.pins == 0 && !p.isDirty && p.firstSeq == 0 && !p.folding && p.state == pageReady
}

// get returns an empty page for a slot, evicting the least recently used one,
// or 0 when every page is needed.
func (c *Core) newPage(slot uint32) uint32 {
	pc := &c.cache
	if len(pc.free) == 0 && pc.made < pc.limit {
		pc.grow()
	}
	if len(pc.free) == 0 {
		i := pc.at(pc.clean).chain.next
		if i == pc.clean {
			return 0
		}
		c.dropPage(i)
	}
	i := pc.take()
	p := pc.at(i)
	*p = page{slot: slot}
	c.slots.info[slot].page = i
	pc.inUse++
	return i
}

// dropPage forgets a page that nothing refers to.
func (c *Core) dropPage(i uint32) {
	p := c.cache.at(i)
	if p.chain.next != 0 {
		c.cache.unlink(i)
	}
	c.slots.info[p.slot].page = 0
	p.state = pageNone
	c.cache.free = append(c.cache.free, i)
	c.cache.inUse--
}

// pin keeps a page in memory; unpin lets it go.
func (c *Core) pin(i uint32) {
	p := c.cache.at(i)
	p.pins++
	if p.pins == 1 && p.chain.next != 0 && p.firstSeq == 0 {
		c.cache.unlink(i)
	}
}

func (c *Core) unpin(i uint32) {
	p := c.cache.at(i)
	p.pins--
	c.settle(i)
}

// settle puts a page where it belongs once it may have become evictable.
func (c *Core) settle(i uint32) {
	p := c.cache.at(i)
	if p.freed && p.pins == 0 {
		p.freed = false
		c.discardSlot(p.slot)
	}
	if p.state == pageBroken && p.pins == 0 && p.firstSeq == 0 && !p.isDirty {
		c.dropPage(i) // read again at the next use
		c.wakeCache()
	}
	if !p.evictable() {
		return
	}
	p.isFolded = false
	if c.slots.info[p.slot].state != stateUsed {
		c.dropPage(i)
	} else if p.chain.next == 0 {
		c.cache.push(c.cache.clean, i)
	}
	c.wakeCache()
}
